"""What replaces Starlette's classes: they collect calls, and hand them to the line when they are awaited."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ParamSpec, TypeVar, overload

from starlette.background import BackgroundTask, BackgroundTasks

from fifo_background import _call
from fifo_background._executor import Executor, current
from fifo_background._job import Batch, Job, JobState
from fifo_background._request import JOB, TrackedRequest, default_executor, take_job, tracked_request
from fifo_background._serial import not_callable
from fifo_background._settings import Settings

__all__ = ("OrderedBackgroundTask", "OrderedBackgroundTasks")

P = ParamSpec("P")
T = TypeVar("T")

# Where there is no middleware, a place is taken when the object is awaited.
_WITHOUT_MIDDLEWARE = Settings(order="responded")


class OrderedBackgroundTask(BackgroundTask):
    """One task for `Response(background=OrderedBackgroundTask(func, *args, **kwargs))`.

    Awaiting it puts the task in line and, by default, waits for its end and raises its error. Awaiting it
    again runs it again, in a new place.
    """

    _request: TrackedRequest | None = None

    def __init__(self, func: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        if not callable(func):
            raise not_callable("BackgroundTask", func)
        super().__init__(func, *args, **kwargs)
        self._request = tracked_request()

    async def __call__(self) -> None:
        task = BackgroundTask(self.func, *self.args, **self.kwargs)
        task.is_async = self.is_async
        tasks = _Single([task])
        tasks._request = self._request
        await tasks()


class OrderedBackgroundTasks(BackgroundTasks):
    """The tasks of a request, first in, first out over all requests.

    A drop-in for `starlette.background.BackgroundTasks` and `fastapi.BackgroundTasks`: same constructor,
    `add_task`, `.tasks`, and `await tasks()`, which FastAPI and Starlette call after the response.
    """

    _request: TrackedRequest | None = None  # in which it was made
    _spans = True  # FastAPI opens a span around each task of a list, and none around a single one
    _awaited: tuple[TrackedRequest, Batch] | None = None  # where it was awaited last

    def __init__(self, tasks: Sequence[BackgroundTask] | None = None) -> None:
        super().__init__(tasks)
        self._request = tracked_request()

    @property
    def func(self) -> Callable[[], Awaitable[None]]:  # type: ignore[override]
        """FastAPI names the entries of a list by their `func`; as an entry, this object is its own."""
        return self.__call__

    # Starlette's returns None, this one the Job
    @overload  # type: ignore[override]
    def add_task(self, func: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> Job[T]: ...

    @overload
    def add_task(self, func: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Job[T]: ...

    def add_task(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, func: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Job[Any]:
        """Add `func(*args, **kwargs)` and return the `Job` that tells its state and result.

        Raises TypeError if `func` cannot be called, RuntimeError if the request's tasks have ended or the
        caller's thread is not one of the event loop's, and `ExecutorClosed` after `lifespan.shutdown`.
        """
        if not callable(func):
            raise not_callable("add_task", func)
        if _call.is_starlettes(BackgroundTasks.add_task):
            task = BackgroundTask(func, *args, **kwargs)
        else:  # an instrumentation has wrapped `add_task`: let it have its say
            collected = BackgroundTasks()
            collected.add_task(func, *args, **kwargs)
            task = collected.tasks[0]
        request, batch = self._awaited or (self._request, None)
        if request is None or (self._request is None and batch is not None and not batch.left):
            job: Job[Any] = Job(task, None, None)
        else:
            job = request.add(task, batch)
        task.__dict__[JOB] = job
        self.tasks.append(task)
        return job

    async def __call__(self) -> None:
        around = _call.around_here() if self._spans else None
        here = current.get()
        if isinstance(here, Job):
            if here.state is JobState.RUNNING and here.executor is not None:
                await self._run_inline(here, here.executor, around)
                return
            here = None
        request = here or self._request or TrackedRequest.outside(default_executor(), _WITHOUT_MIDDLEWARE)
        batch = request.line_up(self.tasks, around, self)
        if batch is not request.handed_over and request.settings.wait:
            if batch.left:
                await request.executor.wait(batch)
            batch.raise_first()

    async def _run_inline(self, outer: Job[Any], executor: Executor, around: _call.Around) -> None:
        """The running task `outer` awaits this object: its tasks are part of that task."""
        for task in self.tasks:
            job = take_job(task)
            if job is None or job.state is not JobState.PENDING or job.watchers:
                job = Job(task, None, None)
            job.around = around
            await executor.run_inline(job, outer)


class _Single(OrderedBackgroundTasks):
    """What awaiting an `OrderedBackgroundTask` runs."""

    _spans = False
