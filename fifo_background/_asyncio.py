"""The face of an asyncio loop, uvloop's included."""

from __future__ import annotations

import asyncio
import sys
import time
import weakref
from asyncio import _get_running_loop
from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fifo_background._loop import Handle, Waiter

__all__ = ("AsyncioLoop",)


class AsyncioLoop:
    """asyncio, and uvloop, which is an asyncio loop."""

    cancelled: type[BaseException] = asyncio.CancelledError
    is_ending_seen_from_thread: Callable[[], bool] | None = None  # who waits for the thread is cancelled

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

    def start(self, run: Coroutine[Any, Any, None], context: Context) -> Handle | None:
        loop = asyncio.get_running_loop()
        if _eager_task is not None and loop.get_task_factory() is None:
            task: asyncio.Task[None] = _eager_task(run, loop=loop, context=context, eager_start=True)
        else:
            task = context.run(loop.create_task, run)  # not every factory knows `context=`
        return None if task.done() else task

    def when_over(self, handle: asyncio.Task[None], call: Callable[..., None], *args: Any) -> None:
        self._tasks.add(handle)
        handle.add_done_callback(partial(self._over, call, args))

    def _over(self, call: Callable[..., None], args: tuple[Any, ...], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() and _by_others(task):
            self._was_cancelled = True
        call(*args)

    def runs(self, run: Coroutine[Any, Any, None], handle: Handle | None) -> bool:
        task = asyncio.current_task()
        return task is not None and (task is handle or task.get_coro() is run)

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

    def wake(self, waiters: list[asyncio.Future[None]]) -> None:
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


# Starts to run at once, and needs no turn of the loop if it does not suspend. Python < 3.12 has none.
_eager_task: Any = asyncio.Task if sys.version_info >= (3, 12) else None


def _by_others(task: asyncio.Task[Any]) -> bool:
    """Whether a cancelled task did not cancel itself, by raising; Python 3.10 cannot tell."""
    return sys.version_info < (3, 11) or task.cancelling() > 0


def _is_being_cancelled(task: asyncio.Task[Any]) -> bool:
    if sys.version_info >= (3, 11):
        return task.cancelling() > 0
    waits_for: Any = getattr(task, "_fut_waiter", None)
    return getattr(task, "_must_cancel", False) or (waits_for is not None and waits_for.cancelled())
