"""What replaces Starlette's classes: they collect calls, and hand them to the line when they are awaited."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any, ParamSpec, TypeVar, overload

from starlette.background import BackgroundTask, BackgroundTasks

from fifo_background import _call
from fifo_background._executor import Executor, here
from fifo_background._job import CANCELLED, PENDING, RUNNING, SKIPPED, Batch, Job, JobState
from fifo_background._log import logger, names
from fifo_background._request import (
    CALLED_OFF,
    ENDED,
    ENTRY,
    JOB,
    Entry,
    TrackedRequest,
    default_executor,
    take_job,
    tracked_request,
)
from fifo_background._serial import not_callable
from fifo_background._settings import AfterFailure, Keep, Options, Settings, check_key

__all__ = ("OrderedBackgroundTask", "OrderedBackgroundTasks", "TaskAdder")

P = ParamSpec("P")
T = TypeVar("T")

# Where there is no middleware, a place is taken when the object is awaited.
_WITHOUT_MIDDLEWARE = Settings(order="responded")


# The options of a task that no line has seen yet.
PLAIN = Options()


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
    _collects = True  # what is added waits for being awaited, with the object; or else one of these three:
    _inline = 0  # how often it runs inside a running task, now
    _spans = True  # FastAPI opens a span around each task of a list, and none around a single one
    _awaited_by: TrackedRequest | None = None  # the last time,
    _batch: Batch | None = None  # which is this
    _part_of: tuple[TrackedRequest, Job[Any]] | None = None  # the task that it is, since that was awaited

    def __init__(self, tasks: Sequence[BackgroundTask] | None = None) -> None:
        super().__init__(tasks)
        request = here()
        if isinstance(request, TrackedRequest) and request.stage is not ENDED:
            self._request = request

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or what is unpickled, has the tasks and no part in the request."""
        return {
            name: value
            for name, value in vars(self).items()
            if name not in ("_request", "_collects", "_awaited_by", "_batch", "_part_of")
        }

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
        caller's thread is not one of the event loop's, `QueueFull` if `max_pending` tasks wait already, and
        `ExecutorClosed` after `lifespan.shutdown`.
        """
        return self._add(func, args, kwargs, None)

    def lane(
        self,
        key: Hashable,
        *,
        keep: Keep | None = None,
        max_pending: int | None = None,
        after_failure: AfterFailure | None = None,
    ) -> TaskAdder:
        """`tasks.lane(key).add_task(func, ...)`: in the line of that key, side by side with other keys.

        `key` is hashable; None is the app's default lane. `keep="latest"`: the task replaces a waiting older
        one of the same function. `max_pending`: how many tasks may wait in the lane. `after_failure="stop"`:
        the lane stops if the task fails. Raises TypeError for a key that is not hashable, ValueError for an
        impossible option.
        """
        return TaskAdder(self, Entry(..., {})).lane(
            key, keep=keep, max_pending=max_pending, after_failure=after_failure
        )

    def options(self, *, timeout: float | None = None) -> TaskAdder:
        """`tasks.options(timeout=2.0).add_task(func, ...)`: a task with a timeout (seconds) of its own."""
        return TaskAdder(self, Entry(..., {})).options(timeout=timeout)

    def _add(self, func: Any, args: Any, kwargs: Any, entry: Entry | None) -> Job[Any]:
        if not callable(func):
            raise not_callable("add_task", func)
        add_task = BackgroundTasks.add_task
        if add_task is _call.STARLETTES_ADD or _call.is_starlettes(add_task):
            task = _call.make_task(func, args, kwargs)
        else:  # an instrumentation has wrapped `add_task`: let it have its say
            collected = BackgroundTasks()
            collected.add_task(func, *args, **kwargs)
            task = collected.tasks[0]
        request = self._request
        job = request.add(task, None, entry) if request and self._collects else self._job(task, entry)
        setattr(task, JOB, job)
        if entry is not None:
            setattr(task, ENTRY, entry)
        self.tasks.append(task)
        return job

    def _job(self, task: BackgroundTask, entry: Entry | None) -> Job[Any]:
        """The job of a new task: of the request, of the task that this object is, or of nobody yet.

        For an object that was made outside a request, or is not a mere collection any more.
        """
        if self._part_of is not None and not self._inline:
            job = self._part_of[0].add_part(task, self._part_of[1], entry)
            if job is not None:
                return job
        request, batch = self._awaited_by or self._request, self._batch
        if (
            request is None
            or self._inline
            or (self._request is None and batch is not None and not batch.left)
        ):
            return Job(task, None, PLAIN)
        return request.add(task, batch, entry)

    async def __call__(self) -> None:
        around = _call.around_here() if self._spans else None
        party = here()
        if isinstance(party, Job):
            if party.state is RUNNING and party.executor is not None:
                await self._run_inline(party, party.executor, around)
                return
            party = None
        request = party or self._request or TrackedRequest.outside(default_executor(), _WITHOUT_MIDDLEWARE)
        batch = request.line_up(self.tasks, around, self)
        if batch is not request.handed_over and request.settings.wait:
            if batch.left:
                if request.inside is not None:
                    await request.executor.wait(batch, request)
                elif (waiter := request.executor.waiter(batch)) is not None:  # without one more coroutine
                    try:
                        await waiter
                    finally:
                        request.awaits = None
            if batch.error is not None or batch.stopped is not None:
                batch.raise_first()

    async def _run_inline(self, outer: Job[Any], executor: Executor, around: _call.Around) -> None:
        """The running task `outer` awaits this object: its tasks are part of that task."""
        self._collects = False
        self._inline += 1
        try:
            for task in self.tasks:
                job = take_job(task)
                if job is not None and job.state in CALLED_OFF and job.batch is None:
                    setattr(task, JOB, job)
                    continue
                if job is None or job.state is not PENDING or job.batch is not None:
                    job = Job(task, None, PLAIN)
                entry: Entry | None = getattr(task, ENTRY, None)
                job.options = PLAIN if entry is None else PLAIN.but(**entry.changes)
                job.around = around
                await executor.run_inline(job, outer)
        except BaseException as error:
            self._end_rest(SKIPPED if isinstance(error, Exception) else CANCELLED)
            raise
        finally:
            self._inline -= 1

    def _end_rest(self, state: JobState) -> None:
        """What no line knows of the list, which ran inside a task, does not run any more."""
        ended: list[Job[Any]] = []
        for task in self.tasks:
            job: Job[Any] | None = getattr(task, JOB, None)
            if job is not None and job.executor is None and job.state is PENDING:
                delattr(task, JOB)
                job.move(state)
                ended.append(job)
        if ended:
            logger.warning("not run after a task of the same list: %s", names(ended))


class _Single(OrderedBackgroundTasks):
    """What awaiting an `OrderedBackgroundTask` runs."""

    _spans = False


class TaskAdder:
    """Adds tasks to an object, in one lane and with options: `tasks.lane(key)`, `tasks.options(...)`."""

    def __init__(self, tasks: OrderedBackgroundTasks, entry: Entry) -> None:
        self._tasks = tasks
        self._entry = entry

    def lane(
        self,
        key: Hashable,
        *,
        keep: Keep | None = None,
        max_pending: int | None = None,
        after_failure: AfterFailure | None = None,
    ) -> TaskAdder:
        """As `OrderedBackgroundTasks.lane`."""
        check_key(key)
        return self._with(key, {"keep": keep, "max_pending": max_pending, "after_failure": after_failure})

    def options(self, *, timeout: float | None = None) -> TaskAdder:
        """As `OrderedBackgroundTasks.options`."""
        return self._with(self._entry.key, {"timeout": timeout})

    def _with(self, key: Hashable, changes: dict[str, Any]) -> TaskAdder:
        PLAIN.but(**changes)  # raises for what cannot be
        return TaskAdder(self._tasks, Entry(key, {**self._entry.changes, **changes}))

    @overload
    def add_task(self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> Job[T]: ...

    @overload
    def add_task(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Job[T]: ...

    def add_task(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Job[Any]:
        """As `OrderedBackgroundTasks.add_task`."""
        return self._tasks._add(func, args, kwargs, self._entry)
