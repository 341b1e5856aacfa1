"""The event loops behind one face: start a task in a context, wake a waiter, call later, from any thread.

Knows asyncio (uvloop included) and trio, and nothing of jobs, lanes or requests. A face holds its loop by a
weak reference, so that what belongs to a loop can be kept in a mapping that forgets it when the loop is gone.
"""

from __future__ import annotations

import asyncio
import sys
import time
import weakref
from asyncio import _get_running_loop
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import trio

_sniffio_library: Any
try:
    from sniffio import current_async_library_cvar as _sniffio_library
except ImportError:  # anyio >= 4.12 does without
    _sniffio_library = None

__all__ = ("EventLoop", "Handle", "NoLoop", "Waiter", "enter_thread", "face_of", "running_loop")


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

    def is_ending_seen_from_thread(self) -> bool:
        """The same, asked in a worker thread that the loop waits for, where the loop cannot tell it."""
        ...

    def start(
        self, run: Coroutine[Any, Any, None], context: Context, ended: Callable[..., None], *args: Any
    ) -> Handle | None:
        """Run a coroutine in a task of its own, in `context` or a copy of it.

        Returns None if it ended at once; otherwise the task, and `ended(*args)` is called when it is over,
        also when it was cancelled before its first step.
        """
        ...

    def runs(self, run: Coroutine[Any, Any, None]) -> bool:
        """Whether the caller is in the task that `start` has made of `run`, not in one spawned by it."""
        ...

    def soon(self, call: Callable[..., object], *args: Any) -> bool:
        """Call from the loop; may be asked from any thread. False if the loop is gone."""
        ...

    def later(self, delay: float, call: Callable[[], None]) -> Handle:
        """Call from the loop after `delay` seconds; must be asked in the loop."""
        ...

    def waiter(self) -> Waiter: ...

    def wake(self, waiter: Any) -> None:
        """Let go who awaits `waiter`; in the loop's own thread."""
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


def enter_thread() -> None:
    """Make the current context one of a worker thread: no async library runs in it."""
    if _sniffio_library is not None:
        _sniffio_library.set(None)


class AsyncioLoop:
    """asyncio, and uvloop, which is an asyncio loop."""

    cancelled: type[BaseException] = asyncio.CancelledError

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._ref = weakref.ref(loop)
        # `is_ending` asks whether all others are being cancelled; and asyncio keeps only weak references
        self._tasks: set[asyncio.Task[None]] = set()
        self._was_cancelled = False  # one of them, since `is_ending` has looked

    def _loop(self) -> asyncio.AbstractEventLoop:
        loop = self._ref()
        if loop is None:
            raise RuntimeError("the event loop of this executor is gone")
        return loop

    @property
    def clock(self) -> Callable[[], float]:
        own = type(self._loop()).time
        # uvloop's is the same clock, but read once per turn of the loop
        if own is asyncio.BaseEventLoop.time or type(self._loop()).__module__.startswith("uvloop"):
            return time.monotonic
        return lambda: self._loop().time()

    def is_current(self) -> bool:
        return _get_running_loop() is (self._ref() or self)

    def is_(self, native: object) -> bool:
        return native is self._ref()

    def is_ending(self) -> bool:
        if not self._was_cancelled:
            return False
        # asyncio.run, at its end, cancels all tasks before it lets any of them run
        self._was_cancelled = False
        return all(
            task in self._tasks or task.done() or _is_being_cancelled(task)
            for task in asyncio.all_tasks(self._loop())
        )

    def is_ending_seen_from_thread(self) -> bool:
        return False  # whoever waits for the thread is cancelled, and tells it

    def start(
        self, run: Coroutine[Any, Any, None], context: Context, ended: Callable[..., None], *args: Any
    ) -> Handle | None:
        loop = asyncio.get_running_loop()
        if sys.version_info < (3, 12) or loop.get_task_factory() is not None:
            task = context.run(loop.create_task, run)  # not every factory knows `context=`
        else:
            task = asyncio.Task(run, loop=loop, context=context, eager_start=True)
        if task.done():
            return None
        self._tasks.add(task)
        task.add_done_callback(partial(self._over, ended, args))
        return task

    def _over(self, ended: Callable[..., None], args: tuple[Any, ...], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() and _by_others(task):
            self._was_cancelled = True
        ended(*args)

    def runs(self, run: Coroutine[Any, Any, None]) -> bool:
        task = asyncio.current_task()
        return task is not None and task.get_coro() is run

    def soon(self, call: Callable[..., object], *args: Any) -> bool:
        try:
            loop = self._loop()
            if self.is_current():
                loop.call_soon(call, *args)
            else:
                loop.call_soon_threadsafe(call, *args)
        except RuntimeError:  # closed, or gone
            return False
        return True

    def later(self, delay: float, call: Callable[[], None]) -> Handle:
        return self._loop().call_later(delay, call)

    def waiter(self) -> Waiter:
        return asyncio.get_running_loop().create_future()

    def wake(self, waiter: asyncio.Future[None]) -> None:
        if not waiter.done():
            waiter.set_result(None)


def _by_others(task: asyncio.Task[Any]) -> bool:
    """Whether a cancelled task did not cancel itself, by raising; Python 3.10 cannot tell."""
    return sys.version_info < (3, 11) or task.cancelling() > 0


def _is_being_cancelled(task: asyncio.Task[Any]) -> bool:
    if sys.version_info >= (3, 11):
        return task.cancelling() > 0
    waits_for: Any = getattr(task, "_fut_waiter", None)
    return getattr(task, "_must_cancel", False) or (waits_for is not None and waits_for.cancelled())


class _TrioWaiter:
    __slots__ = ("event",)

    def __init__(self, event: trio.Event) -> None:
        self.event = event

    def __await__(self) -> Generator[Any, None, Any]:
        return self.event.wait().__await__()


class TrioLoop:
    """trio, by its system tasks: they outlive the request that starts them, and end with the run."""

    def __init__(self, token: Any) -> None:
        import trio

        self._trio = trio
        self._ref = weakref.ref(token)
        self._clock = trio.lowlevel.current_clock()
        self._ending = False
        self._tasks: dict[object, Coroutine[Any, Any, None]] = {}
        self.cancelled: type[BaseException] = trio.Cancelled

    @property
    def clock(self) -> Callable[[], float]:
        return self._clock.current_time

    def is_current(self) -> bool:
        try:
            return self._trio.lowlevel.current_trio_token() is self._ref()
        except RuntimeError:
            return False

    def is_(self, native: object) -> bool:
        return native is self._ref()

    def is_ending(self) -> bool:
        return self._ending

    def is_ending_seen_from_thread(self) -> bool:
        try:
            self._trio.from_thread.check_cancelled()
        except AttributeError:  # trio < 0.23 cannot tell
            pass
        except self._trio.Cancelled:
            self._ending = True
        return self._ending

    def start(
        self, run: Coroutine[Any, Any, None], context: Context, ended: Callable[..., None], *args: Any
    ) -> Handle | None:
        scope = self._trio.CancelScope()

        async def system_task() -> None:
            if _sniffio_library is not None:  # trio < 0.22 sets it in contexts of its own only
                _sniffio_library.set("trio")
            task = self._trio.lowlevel.current_task()
            self._tasks[task] = run
            try:
                with scope:
                    await run
            except self._trio.Cancelled:  # not by our own scope: the run ends
                self._ending = True
                raise
            finally:
                del self._tasks[task]
                ended(*args)

        self._trio.lowlevel.spawn_system_task(system_task, context=context)
        return scope

    def runs(self, run: Coroutine[Any, Any, None]) -> bool:
        return self._tasks.get(self._trio.lowlevel.current_task()) is run

    def soon(self, call: Callable[..., object], *args: Any) -> bool:
        token = self._ref()
        if token is None:
            return False
        try:
            token.run_sync_soon(call, *args)
        except self._trio.RunFinishedError:
            return False
        return True

    def later(self, delay: float, call: Callable[[], None]) -> Handle:
        scope = self._trio.CancelScope()

        async def system_task() -> None:
            with scope:
                await self._trio.sleep(delay)
                call()

        self._trio.lowlevel.spawn_system_task(system_task)
        return scope

    def waiter(self) -> Waiter:
        return _TrioWaiter(self._trio.Event())

    def wake(self, waiter: _TrioWaiter) -> None:
        waiter.event.set()
