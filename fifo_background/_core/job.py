"""A job: the handle to one task.

Who may write it: the `set.remove` that takes a job out of its `claims` decides its fate, once, from whatever
thread. Who took it out starts, cancels or drops it, and is from then on the only one who writes `own_state`,
`outcome` and `task`. All other fields are the event loop's.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable
from contextvars import copy_context
from datetime import datetime
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from starlette.background import BackgroundTask

from fifo_background._core.naming import name_of
from fifo_background._core.special import Callback, Progress, Special
from fifo_background._core.state import CANCELLED, FAILED, PENDING, QUEUED, RUNNING, SUCCEEDED, JobState
from fifo_background._settings import Options
from fifo_background.exceptions import JobNoResult, JobNotEnded

if TYPE_CHECKING:
    from fifo_background._core.history import Record
    from fifo_background._core.job_record import Blocker, JobRecord
    from fifo_background._core.lane import Lane
    from fifo_background._core.position import Position

__all__ = ("Job", "JobRunner")

T = TypeVar("T")

# What a wait asks of a job's end: to be told, or to be told and to raise a failure, which reports it.
TOLD, RAISES = False, True


# The claims of a job that has ended. It stays empty.
NOT_WAITING: set[Job[Any]] = set()


class JobRunner(Protocol):
    """What a job needs of the executor that it belongs to."""

    def is_current(self) -> bool:
        """Whether the caller runs in its event loop."""
        ...

    async def wait_for(self, job: Job[Any], raises: bool) -> None: ...

    def post(self, entry: Job[Any] | Callback) -> None:
        """Hand something to the event loop; from any thread."""
        ...

    def count_out(self, job: Job[Any]) -> None:
        """The job takes no capacity anymore; from any thread."""
        ...

    def cancel_running(self, job: Job[Any]) -> bool: ...

    def id_of(self, job: Job[Any]) -> str: ...

    def picture_of(self, job: Job[Any]) -> JobRecord: ...

    def note_change(self) -> None: ...

    def let_go(self, job: Job[Any]) -> None:
        """A claimed job does not hold its position anymore."""
        ...


class Job(Generic[T]):
    """The handle to one task, as `add_task` and `submit` return it.

    `await job` waits for its end and returns the function's result, or raises its error. `await job.wait()`
    only waits, and returns the `JobState`.
    """

    __slots__ = (
        "__weakref__",
        "_added",
        "_attached",
        "_claims",
        "_counted_in",
        "_direct",
        "_ended",
        "_key",
        "_made_by",
        "_name",
        "_next",
        "_number",
        "_on_loop",
        "_options",
        "_outcome",
        "_own_state",
        "_position",
        "_previous",
        "_queued",
        "_record",
        "_runner",
        "_special",
        "_started",
        "_task",
        "_waiters",
    )

    _added: float  # set when it is accepted
    _key: Hashable  # of its lane: set when it has ended and there is no history

    def __init__(
        self, task: BackgroundTask, runner: JobRunner | None, options: Options, claims: set[Job[Any]]
    ) -> None:
        self._task: BackgroundTask | None = task  # None once it has ended: arguments are not kept
        # asked for now: at the end nothing of a user's may run
        func: Any = getattr(task, "func", None)
        plain = func.__func__ if type(func) is MethodType else func
        self._name: str = func.__qualname__ if type(plain) is FunctionType else name_of(task)
        self._runner: JobRunner | None = runner
        self._options: Options = options
        self._claims: set[Job[Any]] = claims
        self._own_state: JobState | None = None  # since it was claimed
        self._outcome: Any = None
        self._position: Position | None = None
        self._made_by: Any = None  # its `Origin`, once its position does not say it anymore
        self._queued: bool = False  # in the chain of its position
        self._on_loop: bool = True  # not in a thread
        self._direct: bool = False  # nothing is around the function
        # a request waits for it, and raises what it fails with; None until its object is awaited
        self._attached: bool | None = None
        self._waiters: dict[Any, bool] | None = None  # with what each asks: TOLD or RAISES
        self._special: Special | None = None
        self._counted_in: Lane | None = None  # see `Capacity`
        # in the order of adding; 0 until it is accepted. Times are the loop's, in seconds
        self._number: int = 0
        self._started: float | None = None
        self._ended: float | None = None  # in a thread; else see `Record`
        self._record: Record | None = None  # of the history, once it has ended
        self._next: Job[Any] | None = None
        self._previous: Job[Any] | None = None

    @property
    def name(self) -> str:
        """The qualified name of the task's function."""
        return self._name

    @property
    def state(self) -> JobState:
        """Where it is: a `JobState`."""
        return self._own_state or (QUEUED if self._queued else PENDING)

    @property
    def number(self) -> int:
        """From 1, in the order in which the executor's jobs were added; 0 if it is in no queue yet."""
        return self._number

    @property
    def id(self) -> str:
        """For other programs: nobody can guess it, and `executor.job(id)` finds the job by it.

        Raises RuntimeError for a job that is in no queue yet.
        """
        return self._has_number().id_of(self)

    @property
    def lane(self) -> Hashable:
        """The key of its lane; None is the default lane."""
        return self._picture().lane

    @property
    def added_at(self) -> datetime:
        """When it was added, in UTC."""
        return self._picture().added_at

    @property
    def started_at(self) -> datetime | None:
        """When its function was called, in UTC."""
        return self._picture().started_at

    @property
    def ended_at(self) -> datetime | None:
        """When it ended, in UTC."""
        return self._picture().ended_at

    @property
    def ahead(self) -> int | None:
        """How many jobs of its lane run or wait before it, counted up to 1,000.

        None if it has started or has no position yet. Seen from another thread, jobs may end meanwhile.
        """
        return self._picture().ahead

    @property
    def blocked_by(self) -> Blocker | None:
        """What keeps it from starting; None if it has started, or starts in the loop's next turn."""
        return self._picture().blocked_by

    @property
    def progress(self) -> Progress | None:
        """What its function has last reported by `report`."""
        return self._picture().progress

    def to_dict(self, *, results: bool = False, errors: bool = False) -> dict[str, Any]:
        """The job as JSON.

        With `results` its result (the executor keeps it only with `results=True`), with `errors` the message
        of its error: both may be private. Raises RuntimeError for a job that is in no queue yet.
        """
        return self._picture().to_dict(results=results, errors=errors)

    def _picture(self) -> JobRecord:
        return self._has_number().picture_of(self)

    def done(self) -> bool:
        """Whether the job has ended, in any way."""
        state = self._own_state
        return state is not None and state is not RUNNING

    def _claim(self) -> bool:
        """Take the job out of what waits. True for one caller only, who decides what becomes of it."""
        try:
            self._claims.remove(self)  # one atomic act
        except KeyError:
            return False
        return True

    def _end(self, state: JobState, outcome: Any = None) -> object:
        """Move to a last state. Returns what the job does not keep: whoever drops it frees the arguments."""
        task, self._task = self._task, None
        if state is FAILED and self._options.after_failure == "stop":
            outcome.task = task
        if self._special is not None:
            self._special.outer = None  # it keeps no other job alive
        self._claims = NOT_WAITING
        self._outcome = outcome  # before the state, which other threads look at first
        self._own_state = state
        return task

    def result(self) -> T:
        """The function's return value.

        Raises the function's own error if it failed, `JobNotEnded` before its end, and `JobNoResult` if it
        was cancelled, skipped, superseded or dropped.
        """
        state = self._own_state
        if state is SUCCEEDED:
            result: T = self._outcome
            return result
        if state is FAILED:
            self._outcome.throw()
        self._check_ended(state)
        raise JobNoResult(self.name, self.state.value)

    def exception(self) -> BaseException | None:
        """The error that the function raised; None if it succeeded.

        Raises `JobNotEnded` before the job's end, and `JobNoResult` if it was cancelled, skipped, superseded
        or dropped.
        """
        state = self._own_state
        if state is FAILED:
            error: BaseException = self._outcome.error
            return error
        if state is not SUCCEEDED:
            self._check_ended(state)
            raise JobNoResult(self.name, self.state.value)
        return None

    def _check_ended(self, state: JobState | None) -> None:
        if state is None or state is RUNNING:
            raise JobNotEnded(self.name, self.state.value)

    def __await__(self) -> Generator[Any, None, T]:
        return self._result_when_ended().__await__()

    async def _result_when_ended(self) -> T:
        """`await job`: wait for its end, then return or raise as `result` does."""
        if not self.done():
            await self._has_runner().wait_for(self, RAISES)
        return self.result()

    async def wait(self) -> JobState:
        """Wait for the job's end, and return its state; the result and the error stay in the job.

        A cancelled wait does not cancel the job. Raises `WouldDeadlock` if the job cannot end before the task
        or request that waits.
        """
        if not self.done():
            await self._has_runner().wait_for(self, TOLD)
        return self.state

    def _has_runner(self) -> JobRunner:
        if self._runner is None:
            raise RuntimeError(
                f"{self.name} is in no queue yet: its object was made outside of a request, and was not "
                "awaited. Write `await tasks()` first, or use `executor.submit_nowait(func, ...)`"
            )
        return self._runner

    def _has_number(self) -> JobRunner:
        runner = self._has_runner()
        if not self._number:
            raise RuntimeError(
                f"{self.name} runs inside another task, and is in no queue itself: ask the job of that task"
            )
        return runner

    def cancel(self) -> bool:
        """Cancel the task, from any thread; never blocks.

        True for a task that has not started: it then never runs. True for a running `async def` task means
        that the cancellation was requested, as with `asyncio.Task`: the task may still succeed. False for a
        task that has ended, runs in a thread, or runs inside another task.
        """
        if self._claim():
            # the arguments are freed here, in the caller
            self._end(CANCELLED)
            if self._runner is not None:
                self._runner.count_out(self)
                self._runner.post(self)
            return True
        return self._own_state is RUNNING and self._runner is not None and self._runner.cancel_running(self)

    def add_done_callback(self, callback: Callable[[Job[T]], object]) -> None:
        """Call `callback(job)` on the event loop once the job has ended; from any thread.

        It runs in a copy of the caller's context. If it raises an exception, that is logged. Raises
        RuntimeError for a job that is in no queue yet.
        """
        self._has_runner().post(Callback(self, callback, copy_context()))

    def _wait_with(self, waiter: object, raises: bool) -> None:
        """On the loop: `waiter` is woken at the job's end."""
        if self._waiters is None:
            self._waiters = {}
        self._waiters[waiter] = raises

    def _wait_no_more(self, waiter: object) -> None:
        cast(dict[Any, bool], self._waiters).pop(waiter, None)

    @property
    def _handed_over(self) -> bool:
        """Whether somebody waits who will raise its failure."""
        return self._attached or (self._waiters is not None and RAISES in self._waiters.values())

    @property
    def _outermost(self) -> Job[Any]:
        """The job inside which it runs; itself if it stands in a queue by itself."""
        job: Job[Any] = self
        while job._special is not None and job._special.outer is not None:
            job = job._special.outer
        return job

    def _make_special(self) -> Special:
        if self._special is None:
            self._special = Special()
        return self._special

    def __copy__(self) -> Job[T]:
        return self  # a handle: copies are the same job

    def __deepcopy__(self, memo: Any) -> Job[T]:
        return self

    def __reduce__(self) -> Any:
        raise TypeError(
            f"{self!r} cannot be pickled: it belongs to an event loop of this process. Send its state"
        )

    def __repr__(self) -> str:
        return f"<Job {self.name} {self.state.value}>"
