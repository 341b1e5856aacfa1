"""What replaces Starlette's classes: they collect calls, and hand them to the line when they are awaited."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ParamSpec, TypeVar, overload

from starlette.background import BackgroundTask, BackgroundTasks

from fifo_background import _call
from fifo_background._executor import SerialExecutor, check_callable
from fifo_background._job import Batch, Job, JobState
from fifo_background._request import (
    TrackedRequest,
    default_executor,
    job_of,
    remember_job,
    running_job,
    tracked_request,
)
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
        check_callable("BackgroundTask", func)
        super().__init__(func, *args, **kwargs)
        self._request = tracked_request()

    async def __call__(self) -> None:
        task = BackgroundTask(self.func, *self.args, **self.kwargs)
        task.is_async = self.is_async
        await _run([task], self._request, None)


class OrderedBackgroundTasks(BackgroundTasks):
    """The tasks of a request, first in, first out over all requests.

    A drop-in for `starlette.background.BackgroundTasks` and `fastapi.BackgroundTasks`: same constructor,
    `add_task`, `.tasks`, and `await tasks()`, which FastAPI and Starlette call after the response.
    """

    _request: TrackedRequest | None = None  # in which it was made
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
        check_callable("add_task", func)
        task = self._make_task(func, args, kwargs)
        around = _call.around_tasks
        request, batch = self._awaited or (self._request, None)
        if request is None or (self._request is None and batch is not None and not batch.left):
            job: Job[Any] = Job(task, None, None, around)
        else:
            job = request.add(task, around, batch)
        remember_job(task, job)
        self.tasks.append(task)
        return job

    @staticmethod
    def _make_task(func: Callable[..., Any], args: Any, kwargs: Any) -> BackgroundTask:
        if _call.is_starlettes(BackgroundTasks.add_task):
            return BackgroundTask(func, *args, **kwargs)
        collected = BackgroundTasks()  # an instrumentation has wrapped `add_task`: let it have its say
        collected.add_task(func, *args, **kwargs)
        return collected.tasks[0]

    async def __call__(self) -> None:
        await _run(self.tasks, self._request, _call.around_tasks, self)


async def _run(
    tasks: Sequence[BackgroundTask],
    made_in: TrackedRequest | None,
    around: _call.Around,
    owner: OrderedBackgroundTasks | None = None,
) -> None:
    job = running_job()
    if job is not None and job.executor is not None:
        await _run_inline(job, job.executor, tasks, around)
        return
    request = tracked_request() or made_in
    if request is None:
        request = TrackedRequest.outside(default_executor(), _WITHOUT_MIDDLEWARE)
    batch = request.line_up(tasks, around, owner)
    if batch is not request.handed_over and request.settings.wait:
        await request.executor.wait(batch)
        batch.raise_first()


async def _run_inline(
    outer: Job[Any], executor: SerialExecutor, tasks: Sequence[BackgroundTask], around: _call.Around
) -> None:
    """A running task awaits one of our objects: its tasks are part of that task."""
    for task in tasks:
        job = job_of(task)
        if job is None or job.state is not JobState.PENDING or job.watchers:
            job = Job(task, None, None, around)
            remember_job(task, job)
        await executor.run_inline(job, outer)
