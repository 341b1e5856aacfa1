"""A job: the handle to one task, and the one table of the states it goes through.

Knows nothing of lanes, requests or event loops. Only the executor moves a job.
"""

from __future__ import annotations

import contextlib
import functools
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from starlette.background import BackgroundTask

from fifo_background._call import STARLETTES_CALL, Around, is_starlettes_call, overrides_call
from fifo_background._settings import Options
from fifo_background.exceptions import JobDropped, JobNotEnded, LaneStopped

if TYPE_CHECKING:
    from fifo_background._lane import Place
    from fifo_background._loop import Waiter
    from fifo_background._waiting import WaitingExecutor

__all__ = (
    "PENDING",
    "QUEUED",
    "RUNNING",
    "SUCCEEDED",
    "FAILED",
    "SKIPPED",
    "CANCELLED",
    "SUPERSEDED",
    "DROPPED",
    "Batch",
    "Job",
    "JobState",
    "name_of",
)

T = TypeVar("T")


class JobState(Enum):
    """Where a job is. `TRANSITIONS` says what can follow."""

    PENDING = "pending"
    """Added, but its request has not ended its response, or does not await its tasks yet."""
    QUEUED = "queued"
    """In line: it runs as soon as what is before it has ended."""
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """The function raised; `Job.exception()` has the error."""
    SKIPPED = "skipped"
    """A task before it, of its request and lane, failed (`on_error="skip_rest"`); or by `skip_head`."""
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    """A newer task of the same function took over before it ran (`keep="latest"`)."""
    DROPPED = "dropped"
    """Its request ended without running its tasks, or its executor was closed."""

    if not TYPE_CHECKING:
        __hash__ = object.__hash__  # the members are single objects; Enum's own is slow

    after: frozenset[JobState]

    @property
    def ended(self) -> bool:
        """Whether the job will not change any more."""
        return not self.after


UNRUN = frozenset({JobState.SKIPPED, JobState.CANCELLED, JobState.SUPERSEDED, JobState.DROPPED})

TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.PENDING: frozenset({JobState.QUEUED, JobState.RUNNING}) | UNRUN,
    JobState.QUEUED: frozenset({JobState.RUNNING}) | UNRUN,
    JobState.RUNNING: frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.SKIPPED: frozenset(),
    JobState.CANCELLED: frozenset(),
    JobState.SUPERSEDED: frozenset(),
    JobState.DROPPED: frozenset(),
}

for _state, _after in TRANSITIONS.items():
    _state.after = _after


# By these names where it is looked up for every task: through its class, an Enum's member is slow to reach.
PENDING, QUEUED, RUNNING, SUCCEEDED, FAILED, SKIPPED, CANCELLED, SUPERSEDED, DROPPED = JobState


def name_of(func: object) -> str:
    """How logs and errors call a task: its qualified name, else its class's."""
    inner: Any = func
    while isinstance(inner, (functools.partial, BackgroundTask)) and hasattr(inner, "func"):
        inner = inner.func
    return str(getattr(inner, "__qualname__", type(inner).__qualname__))


class Batch:
    """The jobs that one `await` waits for, and what became of them."""

    __slots__ = ("attached", "error", "left", "others", "stopped", "waiter")

    def __init__(self, attached: bool = False) -> None:
        self.attached: bool = attached  # a request waits for its own tasks
        self.left: int = 0
        self.error: BaseException | None = None
        self.others: tuple[BaseException, ...] = ()
        self.stopped: LaneStopped | None = None
        self.waiter: Waiter | None = None

    def claim(self, job: Job[Any], around: Around) -> None:
        """The object that has the job in its list is awaited, and this is its batch."""
        self.left += 1
        job.batch = self
        job.around = around

    def watch(self, job: Job[Any]) -> None:
        self.left += 1
        job.watchers += (self,)

    def saw_end_of(self, job: Job[Any]) -> Waiter | None:
        """Count one job out; the waiter to wake if it was the last."""
        self.left -= 1
        if job.state is FAILED:
            error: BaseException = job.outcome
            if self.error is None:
                self.error = error
            elif error is not self.error:
                self.others += (error,)
        return None if self.left else self.waiter

    def raise_first(self) -> None:
        """Raise the first failure in time; the later ones are listed in its `.others`."""
        error = self.stopped if self.error is None else self.error
        if error is None:
            return
        if self.others:
            with contextlib.suppress(AttributeError):  # an error class may forbid it
                error.others = self.others  # type: ignore[attr-defined]
        try:
            raise error
        finally:
            # a traceback that holds this frame must not hold the error through it
            del self, error


class Job(Generic[T]):
    """The handle to one task, as `add_task` and `submit` return it.

    `state` is its `JobState`; `await wait()` waits for its end and returns the function's result.
    """

    __slots__ = (
        "__weakref__",
        "around",
        "batch",
        "behind",
        "direct",
        "executor",
        "on_loop",
        "options",
        "outcome",
        "parts",
        "place",
        "state",
        "task",
        "traceback",
        "watchers",
        "within",
    )

    def __init__(self, task: BackgroundTask, executor: WaitingExecutor | None, options: Options) -> None:
        self.task: BackgroundTask = task
        self.executor: WaitingExecutor | None = executor
        self.options: Options = options
        self.place: Place | None = None
        self.behind: Job[Any] | None = None  # the next one that is ready in its place
        self.around: Around = None
        self.on_loop: bool = True  # not in a thread
        self.direct: bool = False  # nothing is around the function
        self.state: JobState = PENDING
        self.outcome: Any = None
        self.traceback: TracebackType | None = None  # of the error, where the function raised it
        self.batch: Batch | None = None  # of the object in whose list it is, once that is awaited
        self.parts: tuple[Job[Any], ...] = ()  # of the object that is its task: they run inside it
        self.within: Job[Any] | None = None  # whose part it is
        self.watchers: tuple[Batch, ...] = ()  # of those who wait for this one job

    @property
    def name(self) -> str:
        """The qualified name of the task's function."""
        return name_of(self.task)

    @property
    def entry(self) -> Job[Any]:
        """The job inside which it will run; itself if it stands in line by itself, or has started."""
        job: Job[Any] = self
        while job.within is not None and job.waits_inside(job.within):
            job = job.within
        return job

    def waits_inside(self, entry: Job[Any]) -> bool:
        """Whether it waits for running inside `entry`, as a part of it; nobody has awaited it by itself."""
        return self.within is entry and self.state is PENDING and self.batch is None

    def get_ready(self) -> None:
        """Settle where the task will run, and whether straight."""
        task = self.task
        own_call = type(task).__call__
        if own_call is STARLETTES_CALL or is_starlettes_call(own_call):
            on_loop = self.on_loop = getattr(task, "is_async", True)
            self.direct = self.around is None and (not on_loop or self.options.timeout is None)

    @property
    def stoppable(self) -> bool:
        """Whether a cancel can end it while it runs: not what runs in a thread."""
        return self.on_loop and (overrides_call(self.task) or getattr(self.task, "is_async", True))

    def move(self, state: JobState, outcome: Any = None) -> None:
        """Go to `state`. Raises RuntimeError, and changes nothing, if the table does not allow it."""
        if state not in self.state.after:
            raise RuntimeError(f"a job cannot go from {self.state.value} to {state.value}: {self!r}")
        self.state = state
        self.outcome = outcome

    def result(self) -> T:
        """What the function returned.

        Raises the function's own error if it failed, `JobNotEnded` before its end, and `JobDropped` if
        it was dropped, skipped, superseded or cancelled.
        """
        if self.state is SUCCEEDED:
            result: T = self.outcome
            return result
        if self.state is FAILED:
            error: BaseException = self.outcome
            try:  # without what earlier calls, here and elsewhere, have added to its traceback
                raise error.with_traceback(self.traceback)
            finally:
                del error
        if self.state.ended:
            raise JobDropped(self.name, self.state.value)
        raise JobNotEnded(self.name, self.state.value)

    def exception(self) -> BaseException | None:
        """The error that the function raised, or None.

        Raises `JobNotEnded` before the job's end.
        """
        if not self.state.ended:
            raise JobNotEnded(self.name, self.state.value)
        return self.outcome if self.state is FAILED else None

    async def wait(self) -> T:
        """Wait until the job has ended, and return or raise as `result` does.

        A cancelled wait leaves the job as it is. Raises `WouldDeadlock` where the job cannot end before
        the task or request that waits.
        """
        if not self.state.ended:
            if self.executor is None:
                raise RuntimeError(
                    f"{self.name} has no place in a line yet: the object it was added to was made outside "
                    "a request and has not been awaited. Wait for it after `await tasks()`, or use "
                    "`executor.submit_nowait`"
                )
            await self.executor.wait_for(self)
        return self.result()

    def cancel(self) -> bool:
        """Call the task off: one that waits never runs, a running async one is cancelled.

        False if that cannot be: it has ended, or runs in a thread. May be called from the event loop and
        from anyio worker threads; raises RuntimeError elsewhere.
        """
        if self.executor is not None:
            return self.executor.cancel(self)
        if self.state is not PENDING:
            return False
        self.move(CANCELLED)
        return True

    def __reduce__(self) -> Any:
        return _no_job, ()  # a copy of a task, or one that is unpickled, has been added nowhere

    def __repr__(self) -> str:
        return f"<Job {self.name} {self.state.value}>"


def _no_job() -> None:
    return None
