"""The event loops behind one face: start a task in a context, wake a waiter, call later, from any thread.

Knows asyncio (uvloop included) and trio, and nothing of jobs, lanes or requests. A face holds its loop by a
weak reference, so that what belongs to a loop can be kept in a mapping that forgets it when the loop is gone.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import TYPE_CHECKING, Any, Protocol

from fifo_background._asyncio import AsyncioLoop
from fifo_background._trio import TrioLoop

if TYPE_CHECKING:
    import trio

__all__ = ("EventLoop", "Handle", "NoLoop", "Waiter", "face_of", "running_loop")


class Handle(Protocol):
    """Something that can be called off: a running task, or a call that waits for its time."""

    def cancel(self) -> Any: ...


class Waiter(Protocol):
    """What one task awaits, until `EventLoop.wake` is called with it."""

    def __await__(self) -> Generator[Any, None, Any]: ...


class EventLoop(Protocol):
    """What the executor needs of an event loop."""

    cancelled: type[BaseException]

    @property
    def clock(self) -> Callable[[], float]:
        """Gives the loop's time, in seconds; may be called from any thread."""
        ...

    def is_current(self) -> bool:
        """Whether the caller runs in this loop's thread, in this loop."""
        ...

    def is_(self, native: object) -> bool:
        """Whether `native`, as `running_loop` returned it, is this loop."""
        ...

    def is_ending(self) -> bool:
        """Whether the loop is about to end: everything in it is being cancelled."""
        ...

    @property
    def is_ending_seen_from_thread(self) -> Callable[[], bool] | None:
        """The same, asked in a worker thread that the loop waits for; None where the loop tells it itself."""
        ...

    def start(self, run: Coroutine[Any, Any, None], context: Context) -> Handle | None:
        """Run a coroutine in a task of its own, in `context` or a copy of it. None if it ended at once."""
        ...

    def when_over(self, handle: Any, call: Callable[..., None], *args: Any) -> None:
        """Call when the task that `start` has just returned is over, even if it was never stepped."""
        ...

    def runs(self, run: Coroutine[Any, Any, None], handle: Handle | None) -> bool:
        """Whether the caller is in the task that `start` has made of `run`, not in one spawned by it.

        `handle` is what `start` returned; None while it has not returned.
        """
        ...

    def soon(self, call: Callable[..., object], *args: Any) -> bool:
        """Call from the loop; may be asked from any thread. False if the loop is gone."""
        ...

    def later(self, delay: float, call: Callable[[], None]) -> Handle:
        """Call from the loop after `delay` seconds; must be asked in the loop."""
        ...

    def waiter(self) -> Waiter: ...

    def wake(self, waiters: list[Any]) -> None:
        """Let go who awaits one of these waiters, in their order; in the loop's own thread."""
        ...


class NoLoop:
    """Stands for the loop of an executor that nobody has used yet."""

    cancelled: type[BaseException] = GeneratorExit

    def is_current(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("the executor has no event loop yet: use `async with`, or submit a task")


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


def face_of(native: object) -> EventLoop:
    """The face of a native loop, as `running_loop` returned it."""
    return AsyncioLoop(native) if isinstance(native, asyncio.AbstractEventLoop) else TrioLoop(native)
