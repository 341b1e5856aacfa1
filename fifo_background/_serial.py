"""What users see of an executor: submitting, joining, closing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import copy_context
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

import anyio
from starlette.background import BackgroundTask

from fifo_background._executor import Executor
from fifo_background._job import Job
from fifo_background._lane import Place
from fifo_background._line import LineState
from fifo_background._log import logger, names
from fifo_background._settings import Settings

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ("SerialExecutor", "not_callable")

P = ParamSpec("P")
T = TypeVar("T")


class SerialExecutor(Executor):
    """Runs tasks one after the other, first in, first out, in one event loop.

    `async with SerialExecutor() as executor:` drains it at the end of the block.

    `hold` (seconds, default 5.0): how long a request that does not respond may keep back ready tasks.
    `drain_timeout` (seconds, default 30.0): how long the end of the block waits for what is in line.

    It belongs to the event loop in which it is used first. Its methods may be called from that loop and
    from anyio's worker threads of that loop; other threads get a RuntimeError.
    """

    def __init__(self, *, hold: float = 5.0, drain_timeout: float = 30.0) -> None:
        super().__init__(Settings(hold=hold, drain_timeout=drain_timeout))

    async def __aenter__(self) -> Self:
        self.check_caller()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    @overload
    def submit_nowait(
        self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Job[T]: ...

    @overload
    def submit_nowait(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Job[T]: ...

    def submit_nowait(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Job[Any]:
        """Put `func(*args, **kwargs)` in line and return its `Job`. It does not start before this returns.

        The task sees a copy of the caller's context. Raises TypeError if `func` cannot be called and
        `ExecutorClosed` after the end.
        """
        if not callable(func):
            raise not_callable("submit_nowait", func)
        self.check_caller()
        place = Place(None, None)
        place.context = copy_context()
        task = BackgroundTask(func)
        vars(task).update(args=args, kwargs=kwargs)  # whatever their names, `func` included
        job: Job[Any] = Job(task, self, place)
        line = self.line
        with line.lock:
            line.register(job)
            line.queue(place, job)
        self.advance_soon(place.key)
        return job

    @overload
    async def submit(
        self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Job[T]: ...

    @overload
    async def submit(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Job[T]: ...

    async def submit(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Job[Any]:
        """As `submit_nowait`; it lets other tasks run before it returns, in line already."""
        job: Job[Any] = self.submit_nowait(func, *args, **kwargs)
        await anyio.sleep(0)
        return job

    async def join(self) -> None:
        """Wait until every task that was added or submitted has ended.

        Tasks that requests have added count from `add_task` on.
        """
        self.check_caller()
        while self.line.unfinished:
            waiter = self._loop.waiter()
            with self.line.lock:
                self.line.joiners.append(waiter)
            await waiter

    async def aclose(self) -> None:
        """Refuse new work, give up held places, run what is in line for at most `drain_timeout` seconds.

        What is left then is cancelled, or dropped, and logged by name.
        """
        self.check_caller()
        line = self.line
        if line.state is not LineState.OPEN:
            return
        with line.lock:
            held = line.close()
            waiters = line.drop(held)
        self.wake(waiters)
        if held:
            logger.warning("the executor was closed, requests gave up their places: dropped %s", names(held))
        for lane in list(line.lanes.values()):
            self._advance(lane)
        with anyio.move_on_after(self._settings.drain_timeout, shield=True):
            while line.ready or self.started:
                waiter = self._loop.waiter()
                with line.lock:
                    line.drainers.append(waiter)
                await waiter
        self.stop("the executor was closed")

    @property
    def is_open(self) -> bool:
        """Whether new work is taken: True until `aclose`, or the end of the `async with` block."""
        return self.line.state is LineState.OPEN

    def __repr__(self) -> str:
        line = self.line
        return f"<SerialExecutor {line.state.value}, {line.unfinished} unfinished, {line.running} running>"


def not_callable(where: str, func: object) -> TypeError:
    """The error for a task that is not one, which says what to write."""
    return TypeError(
        f"{where} takes a function and then its arguments, got {func!r}: "
        f"write {where}(func, argument), not {where}(func(argument))"
    )
