"""What the runner needs of an event loop, and which loop is running."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import trio

__all__ = ("Backend", "Handle", "NoBackend", "Waiter", "backend_of", "in_a_loop", "running_loop")


class Handle(Protocol):
    """Something that can be cancelled: a running task, or a call that waits for its time."""

    def cancel(self) -> Any: ...


class Waiter(Protocol):
    """What one task awaits, until `Backend.wake` is called with it."""

    def __await__(self) -> Generator[Any, None, Any]: ...


class Backend(Protocol):
    """One event loop. It is held by a weak reference."""

    cancelled: type[BaseException]
    ending: bool
    """Whether the loop is about to end: everything in it is being cancelled."""
    loop_ends: Callable[[], object]
    """Called once the backend is told that the loop ends; set by the runner."""

    @property
    def clock(self) -> Callable[[], float]:
        """Returns the loop's time, in seconds; may be called from any thread."""
        ...

    @property
    def is_dead(self) -> bool:
        """Whether the loop is closed, or gone."""
        ...

    def is_current(self) -> bool:
        """Whether the caller runs in this loop."""
        ...

    @property
    def is_ending_seen_from_thread(self) -> Callable[[], bool] | None:
        """The same, asked in a worker thread that the loop waits for; None where the loop tells it itself."""
        ...

    def ends_by(self, error: BaseException) -> bool:
        """Whether a cancellation that nobody asked of us is the end of the loop."""
        ...

    def is_cancelling(self) -> bool:
        """Whether the running task, one of ours, was cancelled, and may not have heard of it yet."""
        ...

    def start(self, run: Coroutine[Any, Any, None], context: Context) -> Handle | None:
        """Run a coroutine in a task of its own, in `context`. None if it has ended already.

        Where tasks can start at once, this one does, unless something is in its context.
        """
        ...

    def when_over(self, handle: Any, call: Callable[[Any], object]) -> None:
        """Call, with the handle, when the task that `start` has just returned is over, stepped or not."""
        ...

    def soon(self, call: Callable[[], object]) -> bool:
        """Call from the loop, in its next turn; may be asked from any thread. False if the loop is gone."""
        ...

    def work_soon(self, call: Callable[[], object]) -> bool:
        """As `soon`, for a call that may start tasks: it is not made in a loop that ends."""
        ...

    def later(self, delay: float, call: Callable[[], None]) -> Handle:
        """Call from the loop after `delay` seconds; must be asked in the loop."""
        ...

    def waiter(self) -> Waiter: ...

    def wake(self, waiter: Any) -> None:
        """Wake who awaits a waiter; in the loop."""
        ...

    def reraise(self, error: BaseException) -> bool:
        """Raise a KeyboardInterrupt or SystemExit from the loop. False if that cannot be done here."""
        ...


class NoBackend:
    """Stands for the loop of an executor that was not used yet."""

    cancelled: type[BaseException] = GeneratorExit
    ending = False
    is_dead = False

    def is_current(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(
            "this executor has no event loop yet: it belongs to the loop in which it is used first. Write "
            "`async with SerialExecutor() as executor:`, and submit inside of it"
        )


def running_loop() -> object:
    """The object that identifies the running event loop: an asyncio loop, or a trio token.

    Raises RuntimeError if the calling thread runs none.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return _trio_token() or _no_loop()
    # trio as a guest of asyncio runs its tasks inside callbacks of the asyncio loop
    if "trio" in sys.modules and asyncio.current_task(loop) is None:
        return _trio_token() or loop
    return loop


def in_a_loop() -> bool:
    """Whether the calling thread runs an event loop."""
    try:
        running_loop()
    except RuntimeError:
        return False
    return True


def _trio_token() -> trio.lowlevel.TrioToken | None:
    if "trio" not in sys.modules:
        return None
    import trio

    try:
        return trio.lowlevel.current_trio_token()
    except RuntimeError:
        return None


def _no_loop() -> object:
    raise RuntimeError("this must be called from a running event loop, or from an anyio worker thread of one")


def backend_of(native: object) -> Backend:
    """The backend of a native loop, as `running_loop` returned it."""
    if isinstance(native, asyncio.AbstractEventLoop):
        from fifo_background._run.backends.asyncio import AsyncioBackend

        return AsyncioBackend(native)
    from fifo_background._run.backends.trio import TrioBackend

    return TrioBackend(native)
