"""asyncio as a backend, uvloop included."""

from __future__ import annotations

import asyncio
import sys
import time
import types
import weakref
from asyncio import _get_running_loop
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fifo_background._run.backends.api import Handle, Waiter

__all__ = ("AsyncioBackend",)


class _RunnerTask(asyncio.Task[None]):
    """A task of ours. It can tell that its loop ends: then it is cancelled while the loop stands still.

    `asyncio.run`, `anyio.run`, uvloop and portals do so at their end; nobody else does.
    """

    backend: AsyncioBackend | None = None

    def cancel(self, *args: Any, **kwargs: Any) -> bool:
        backend = self.backend
        if backend is not None and not backend.ending and not self.get_loop().is_running():
            backend.ending = True
            backend.loop_ends()
        self.is_cancelling = True
        return super().cancel(*args, **kwargs)

    is_cancelling = False  # `cancelling()` is new in Python 3.11


class _WorkTask(_RunnerTask):
    """A call in the loop's next turn, as a task, so that it is told if the loop ends before."""

    def cancel(self, *args: Any, **kwargs: Any) -> bool:
        # nobody else may cancel it: what it does is needed
        return False if self.get_loop().is_running() else super().cancel(*args, **kwargs)


class AsyncioBackend:
    """asyncio, and uvloop, which is an asyncio loop."""

    cancelled: type[BaseException] = asyncio.CancelledError
    is_ending_seen_from_thread: Callable[[], bool] | None = None  # the task that waits for it is cancelled

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._ref = weakref.ref(loop)
        self.ending: bool = False
        self.loop_ends: Callable[[], object] = bool
        self._tasks: set[asyncio.Task[None]] = set()  # asyncio keeps only weak references

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

    @property
    def is_dead(self) -> bool:
        loop = self._ref()
        return loop is None or loop.is_closed()

    def is_current(self) -> bool:
        return _get_running_loop() is (self._ref() or self)

    def ends_by(self, error: BaseException) -> bool:
        return self.ending

    def is_cancelling(self) -> bool:
        return getattr(asyncio.current_task(), "is_cancelling", False)

    def start(self, run: Coroutine[Any, Any, None], context: Context) -> Handle | None:
        task = _start(run, _get_running_loop(), context)
        if task.done():
            return None
        task.backend = self
        return task

    def when_over(self, handle: asyncio.Task[None], call: Callable[[Any], object]) -> None:
        self._keep(handle)
        handle.add_done_callback(call)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def soon(self, call: Callable[[], object]) -> bool:
        try:
            loop = self._loop()
            if self._is_awake():
                loop.call_soon(call)
            else:
                loop.call_soon_threadsafe(call)
        except RuntimeError:  # closed, or gone
            return False
        return True

    def _is_awake(self) -> bool:
        """Whether the loop looks for work without being woken: a signal handler may interrupt its sleep."""
        return self.is_current() and asyncio.current_task() is not None

    def work_soon(self, call: Callable[[], object]) -> bool:
        if not self.is_current():
            return self.soon(call)
        if not self._is_awake():
            self.soon(bool)
        task = _WorkTask(_call(call), loop=self._loop())
        task.backend = self
        self._keep(task)
        task.add_done_callback(partial(_call_again, call))
        return True

    def later(self, delay: float, call: Callable[[], None]) -> Handle:
        return self._loop().call_later(delay, call)

    def waiter(self) -> Waiter:
        return asyncio.get_running_loop().create_future()

    def wake(self, waiter: asyncio.Future[None]) -> None:
        if not waiter.done():
            waiter.set_result(None)

    def reraise(self, error: BaseException) -> bool:
        def throw() -> None:
            raise error

        return self.soon(throw)


async def _call(call: Callable[[], object]) -> None:
    call()


def _call_again(call: Callable[[], object], task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:  # a KeyboardInterrupt, perhaps before the call
        call()


if sys.version_info >= (3, 11):
    # a task starts to run at once, and needs no turn of the loop if it does not suspend
    _EAGER: dict[str, Any] = {"eager_start": True} if sys.version_info >= (3, 12) else {}

    def _start(run: Coroutine[Any, Any, None], loop: Any, context: Context) -> _RunnerTask:
        try:
            context.run(bool)
        except RuntimeError:  # a run that ends, and pumps, is in it: asyncio must not try to enter it
            return _RunnerTask(run, loop=loop, context=context)
        return _RunnerTask(run, loop=loop, context=context, **_EAGER)

else:

    def _start(run: Coroutine[Any, Any, None], loop: Any, context: Context) -> _RunnerTask:
        task = _RunnerTask(_in_context(run, context), loop=loop)
        task.add_done_callback(lambda _: run.close())  # it may have been cancelled before its first step
        return task

    async def _in_context(run: Coroutine[Any, Any, None], context: Context) -> None:
        await _steps(run, context)

    @types.coroutine
    def _steps(run: Coroutine[Any, Any, None], context: Context) -> Generator[Any, Any, None]:
        """Before Python 3.11 a task makes a copy of its context: step the coroutine in the context itself."""
        resume: Callable[..., Any] = run.send
        value: Any = None
        while True:
            try:
                awaited = context.run(resume, value)
            except StopIteration:
                return
            try:
                value = yield awaited
                resume = run.send
            except GeneratorExit:
                context.run(run.close)
                raise
            except BaseException as error:
                value = error
                resume = run.throw
