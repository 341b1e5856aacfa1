"""What replaces Starlette's classes: they collect calls, and hand them over when they are awaited."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, overload

from starlette.background import BackgroundTask, BackgroundTasks
from starlette.types import Scope

from fifo_background._adder import TaskAdder, asked_for, note_override
from fifo_background._awaited import run
from fifo_background._core.job import Job
from fifo_background._core.naming import name_of
from fifo_background._core.state import RUNNING
from fifo_background._engine import EngineRequest
from fifo_background._entries import Entry, name_by_function
from fifo_background._fastapi.spans import around_here
from fifo_background._object_state import AWAITED, COLLECTING, INLINE, PART, STATES, State
from fifo_background._parts import add_part, run_parts
from fifo_background._replaced import add_through, run_through
from fifo_background._request import ENDED, SCOPE_KEY, TrackedRequest
from fifo_background._run.awaited_jobs import AwaitedJobs
from fifo_background._run.backends.api import in_a_loop
from fifo_background._run.call import Around, is_starlettes, make_task, not_callable, own_class
from fifo_background._run.current import current_party
from fifo_background._run.per_loop import default_runner
from fifo_background._settings import NOT_GIVEN, PLAIN, AfterFailure, Keep, NotGiven, Retry
from fifo_background.exceptions import ExecutorClosed

if TYPE_CHECKING:
    from typing_extensions import Never

__all__ = ("OrderedBackgroundTask", "OrderedBackgroundTasks")

P = ParamSpec("P")
T = TypeVar("T")

# Users subclass the classes below: their private names begin with "_fifo_". These two are a copy's, too.
_COPIED = frozenset({"_fifo_entry", "_fifo_function"})


class OrderedBackgroundTask(BackgroundTask):
    """One task for `Response(background=OrderedBackgroundTask(func, *args, **kwargs))`.

    Awaiting it queues the task and, by default, waits for its end and raises its error. Awaiting it again
    runs it again, in a new position. The entries of `OrderedBackgroundTasks.tasks` are of this class, too.
    """

    _fifo_request: TrackedRequest | None = None
    _fifo_job: Job[Any] | None = None  # that `add_task` made, until it is handed over
    _fifo_entry: Entry | None = None

    def __init__(self, func: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        if not callable(func):
            raise not_callable("BackgroundTask", func)
        super().__init__(func, *args, **kwargs)
        request = _request_here()
        if request is not None:
            self._fifo_request = request
        elif (stored_by := _engine_here()) is not None:
            stored_by.add(self, None)

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or what is unpickled, is a task of its own."""
        return {name: value for name, value in vars(self).items() if name in _COPIED or name[:6] != "_fifo_"}

    async def __call__(self) -> None:
        if "_fifo_is_shown" in vars(self):  # to a replaced `__call__`, which has called us: all else is done
            await self.func(*self.args, **self.kwargs)
            return
        job = self.__dict__.pop("_fifo_job", None)
        task: BackgroundTask = object.__new__(OrderedBackgroundTask)
        task.func, task.args, task.kwargs, task.is_async = self.func, self.args, self.kwargs, self.is_async
        vars(task)["_fifo_is_alone"] = True  # whatever replaced our `__call__` has seen it
        if job is not None:
            vars(task)["_fifo_job"] = job
        if "_fifo_stored" in vars(self):  # by an engine
            vars(task)["_fifo_stored"] = vars(self).pop("_fifo_stored")
        if self._fifo_entry is not None:
            vars(task)["_fifo_entry"] = self._fifo_entry
        tasks = _Single([task])
        request = (
            self._fifo_request if job is None else getattr(job._position, "owner", None) or self._fifo_request
        )
        tasks._fifo_request = request
        await OrderedBackgroundTasks._fifo_run(tasks)


own_class.task = OrderedBackgroundTask
own_class.call = OrderedBackgroundTask.__call__

_STARLETTES_ADD: Any = BackgroundTasks.add_task if is_starlettes(BackgroundTasks.add_task) else None
_STARLETTES_LIST_CALL: Any = BackgroundTasks.__call__ if is_starlettes(BackgroundTasks.__call__) else None


class _OwnCall:
    """FastAPI names the entries of a list by their `func`; of a list in a list that is its own `__call__`."""

    def __get__(self, tasks: Any, owner: Any) -> Any:
        return self if tasks is None else tasks.__call__


class OrderedBackgroundTasks(BackgroundTasks, OrderedBackgroundTask):
    """The tasks of a request, first in, first out over all requests.

    A drop-in for `starlette.background.BackgroundTasks` and `fastapi.BackgroundTasks`: same constructor,
    `add_task`, `.tasks`, and `await tasks()`, which FastAPI and Starlette call after the response.
    """

    func: Any = _OwnCall()
    # Whether somebody has replaced these of FastAPI's class: what FastAPI injects looks there
    _fifo_fastapi_add_is_replaced = staticmethod(bool)
    _fifo_fastapi_call_is_replaced = staticmethod(bool)
    _fifo_class_below: type[BackgroundTasks] = BackgroundTasks
    _fifo_spans = True  # FastAPI opens a span around each task of a list, and none around a single one
    _fifo_stored_by: EngineRequest | None = None  # an engine keeps the tasks of the request
    _fifo_state: State = COLLECTING
    _fifo_jobs = AwaitedJobs()  # that were handed over the last time: replaced, never changed
    _fifo_awaited_by: TrackedRequest | None = None  # by this request
    _fifo_outer: Job[Any] | None = None  # the job that this object is a part of
    _fifo_unclaimed: set[Job[Any]] | None = None  # jobs that no executor knows
    _fifo_is_outside: bool = False  # injected by an app without our middleware, which a handler has called

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """An overriding `add_task` may use `self.lane` and `self.options`, which must not call it again."""
        super().__init_subclass__(**kwargs)
        note_override(cls, OrderedBackgroundTasks)

    def __init__(self, tasks: Sequence[BackgroundTask] | None = None) -> None:
        BackgroundTasks.__init__(self, tasks)
        self._fifo_request = _request_here()
        if self._fifo_request is None and (stored_by := _engine_here()) is not None:
            self._fifo_stored_by = stored_by
            stored_by.note(self)

    def _fifo_in_app_of(self, scope: Scope) -> None:
        """FastAPI injects this object into the endpoint of that scope."""
        if self._fifo_request is not None and self._fifo_request is not scope.get(SCOPE_KEY):
            self._fifo_request, self._fifo_is_outside = None, True

    # Starlette's returns None, this one the Job
    @overload  # type: ignore[override]
    def add_task(self, func: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> Job[T]: ...

    @overload
    def add_task(self, func: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Job[T]: ...

    def add_task(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, func: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Job[Any]:
        """Add `func(*args, **kwargs)` and return the `Job` that tells its state and result.

        May be called from any thread, and never blocks. Raises TypeError if `func` cannot be called, or
        if it is a plain function that does not take these arguments. Raises RuntimeError if the request's
        tasks have ended, `QueueFull` if `max_waiting` tasks wait already, and `ExecutorClosed` after
        `lifespan.shutdown`.
        """
        # by `tasks.lane(key).add_task`, through an `add_task` that is not this one
        entry = asked_for.of(func) if asked_for.tasks is self else None
        return self._fifo_add(func, args, kwargs, entry)

    @property
    def _fifo_adds_itself(self) -> bool:
        return getattr(self.add_task, "__func__", None) is _OWN_ADD

    def lane(
        self,
        key: Hashable,
        *arguments: Never,
        keep: Keep | NotGiven = NOT_GIVEN,
        max_waiting: int | NotGiven | None = NOT_GIVEN,
        after_failure: AfterFailure | NotGiven = NOT_GIVEN,
    ) -> TaskAdder:
        """`tasks.lane(key).add_task(func, ...)` uses the queue of that key; other keys run at the same time.

        `key` is hashable; None is the app's default lane. `keep="latest"`: the task replaces an older waiting
        task of the same function. `max_waiting`: how many tasks may wait in the lane. `after_failure="stop"`:
        the lane stops if the task fails. Raises TypeError for a key that is not hashable, ValueError for an
        invalid option.
        """
        return TaskAdder(self, Entry(..., {})).lane(
            key, *arguments, keep=keep, max_waiting=max_waiting, after_failure=after_failure
        )

    def options(
        self,
        *,
        timeout: float | NotGiven | None = NOT_GIVEN,
        wait: bool | NotGiven = NOT_GIVEN,
        retry: int | Retry | NotGiven | None = NOT_GIVEN,
    ) -> TaskAdder:
        """`tasks.options(timeout=2.0).add_task(func, ...)` sets options of single tasks.

        `timeout` (seconds, None for no limit; default: the app's). `wait`: whether the request waits for the
        task (default: the app's). `retry` (with an engine): how often a task that fails is run at most, or a
        `Retry(attempts, wait, wait_max)`; its lane waits meanwhile. Raises TypeError for `retry` without an
        engine.
        """
        return TaskAdder(self, Entry(..., {})).options(timeout=timeout, wait=wait, retry=retry)

    async def store(self, connection: Any = None) -> None:
        """With an engine: store what was added now, in the transaction of that connection.

        `connection`: a `psycopg.AsyncConnection`, or an `AsyncSession` or `AsyncConnection` of SQLAlchemy;
        None for a transaction of its own. Raises RuntimeError without an engine.
        """
        if self._fifo_stored_by is None:
            raise RuntimeError(
                "`tasks.store()` is for an app with an engine: "
                "`app.add_middleware(OrderedBackgroundMiddleware, engine=PostgresEngine(dsn))`"
            )
        await self._fifo_stored_by.store(self, connection)

    def _fifo_add(self, func: Any, args: Any, kwargs: Any, entry: Entry | None) -> Job[Any]:
        if not callable(func) or type(func) is TaskAdder:
            raise not_callable("add_task", func)
        if BackgroundTasks.add_task is not _STARLETTES_ADD or self._fifo_fastapi_add_is_replaced():
            return add_through(self, super().add_task, func, args, kwargs, entry)
        task = make_task("add_task", OrderedBackgroundTask, func, args, kwargs)
        if self._fifo_stored_by is not None and self._fifo_state is not INLINE:
            stored: Job[Any] = self._fifo_stored_by.add(task, entry)
            if entry is not None:
                task._fifo_entry = entry
            self.tasks.append(task)
            return stored
        request = self._fifo_request
        if request is not None and self._fifo_state is COLLECTING and request.stage is not ENDED:
            job = request.add(task, entry)
        else:
            job = self._fifo_make_job(task, entry)
        task._fifo_job = job
        if entry is not None:
            task._fifo_entry = entry
        self.tasks.append(task)
        if self._fifo_state is AWAITED and job._attached is None:
            self._fifo_join(job)
        return job

    def _fifo_join(self, job: Job[Any]) -> None:
        """It was awaited while this thread was adding. Who awaited it may have found the job: no harm."""
        request, position = self._fifo_awaited_by, job._position
        if request is not None and position is not None and position.owner is request:
            request.join(job, self._fifo_jobs)

    def _fifo_make_job(self, task: BackgroundTask, entry: Entry | None) -> Job[Any]:
        """The job of a new entry: of the request, or of nobody yet."""
        awaited_by = self._fifo_awaited_by
        if self._fifo_state is PART or self._fifo_state is INLINE:
            return self._fifo_make_part(task, cast(Job[Any], self._fifo_outer))
        if self._fifo_state is AWAITED and awaited_by is not None:
            job = awaited_by.add_awaited(task, entry, self._fifo_jobs)
            if job is not None:
                return job
        request = self._fifo_request
        if request is None:
            return self._fifo_orphan(task)
        if request.has_ended and (here := _request_here()) is not None:  # one object for many requests
            request = self._fifo_request = here
            if self._fifo_state is AWAITED:
                self._fifo_become(COLLECTING)
        if self._fifo_state is AWAITED:
            raise request.too_late(task)
        return request.add(task, entry)

    def _fifo_make_part(self, task: BackgroundTask, outer: Job[Any]) -> Job[Any]:
        """The job of a new entry of an object that runs inside `outer`."""
        if outer.done():
            if self._fifo_request is not None and self._fifo_request.has_ended:
                raise self._fifo_request.too_late(task)
            return self._fifo_orphan(task)
        runner: Any = outer._runner
        if self._fifo_state is PART and not runner.scheduler.is_open:
            raise ExecutorClosed(name_of(task))
        job = self._fifo_orphan(task)
        return job if add_part(job, outer) else self._fifo_make_part(task, outer)

    def _fifo_orphan(self, task: BackgroundTask) -> Job[Any]:
        """A job that no executor knows: cancelled, or run inline, by who takes it out of `_unclaimed`."""
        if self._fifo_unclaimed is None:
            self._fifo_unclaimed = set()
        job: Job[Any] = Job(task, None, PLAIN, self._fifo_unclaimed)
        name_by_function(job, task)
        self._fifo_unclaimed.add(job)
        return job

    async def __call__(self) -> None:
        if BackgroundTasks.__call__ is not _STARLETTES_LIST_CALL or self._fifo_fastapi_call_is_replaced():
            await run_through(self._fifo_class_below, self._fifo_run)
        else:
            await self._fifo_run()

    def _fifo_run(self) -> Coroutine[Any, Any, None]:
        """What awaiting the object comes to: a part of the task that awaits it, or tasks of a request."""
        around = around_here() if self._fifo_spans else None
        party = current_party()
        if isinstance(party, Job):
            if party._own_state is RUNNING and party._runner is not None and party._runner.is_current():
                return self._fifo_run_inline(party, around)
            party = None
        if isinstance(party, EngineRequest):
            if party.is_here:
                return party.run(self)
            party = None
        request = party or self._fifo_request
        # a test client carries contexts into its loop
        if request is None or self._fifo_is_outside or not request.runner.is_current():
            request = TrackedRequest.outside(default_runner(), party)
        return run(request, self, around)

    def _fifo_was_awaited(self, request: TrackedRequest, jobs: AwaitedJobs) -> None:
        self._fifo_awaited_by = request
        self._fifo_jobs = jobs
        self._fifo_state = AWAITED  # from any state; last, as threads look at it first

    # -- handing over ----------------------------------------------------------------------------------------

    def _fifo_become(self, state: State) -> None:
        """Move to another state. Raises RuntimeError if `STATES` does not have it."""
        if state not in STATES[self._fifo_state]:
            raise RuntimeError(f"{self!r} cannot go from {self._fifo_state.value} to {state.value}")
        self._fifo_state = state

    def _fifo_become_part(self, outer: Job[Any]) -> set[Job[Any]]:
        """This object is a task itself: it runs inside `outer`. Returns where its jobs wait for that."""
        self._fifo_become(PART)
        self._fifo_outer = outer
        if self._fifo_unclaimed is None:
            self._fifo_unclaimed = set()
        return self._fifo_unclaimed

    # -- inside a task ---------------------------------------------------------------------------------------

    async def _fifo_run_inline(self, outer: Job[Any], around: Around) -> None:
        """The running task `outer` awaits this object: its tasks are part of that task."""
        before, outside = self._fifo_state, self._fifo_outer
        self._fifo_become(INLINE)
        self._fifo_outer = outer
        try:
            await run_parts(self, outer, around)
        finally:
            # else somebody else has awaited it meanwhile
            if self._fifo_state is INLINE and self._fifo_outer is outer:
                self._fifo_become(before)
                self._fifo_outer = outside


_OWN_ADD: Any = OrderedBackgroundTasks.add_task


def _request_here() -> TrackedRequest | None:
    """The request in whose context the caller runs, if any: in its event loop, or in a thread without one."""
    party = current_party()
    if type(party) is not TrackedRequest or party.stage is ENDED:
        return None
    return party if party.runner.is_current() or not in_a_loop() else None


def _engine_here() -> EngineRequest | None:
    """As `_request_here`, for a request whose tasks an engine keeps."""
    party = current_party()
    if not isinstance(party, EngineRequest) or party.has_ended:
        return None
    return party if party.is_here or not in_a_loop() else None


class _Single(OrderedBackgroundTasks):
    """What awaiting an `OrderedBackgroundTask` runs."""

    _fifo_spans = False
