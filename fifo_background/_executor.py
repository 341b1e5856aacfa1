"""What users see of an executor: submitting, lanes and what can be done to them, closing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Hashable
from contextvars import copy_context
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

import anyio.lowlevel
from starlette.background import BackgroundTask

from fifo_background import _log
from fifo_background._arguments import only_a_key
from fifo_background._core import operations
from fifo_background._core.history import Timing
from fifo_background._core.job import Job
from fifo_background._core.job_record import JobRecord
from fifo_background._core.lane import Lane, key_of, plain_key
from fifo_background._core.lane_picture import LaneList, LaneRecord
from fifo_background._core.position import Position
from fifo_background._core.state import CANCELLED, JobState
from fifo_background._core.statistics import ExecutorStatistics
from fifo_background._run.call import make_task, not_callable
from fifo_background._run.current import current_party, origin_of
from fifo_background._run.runner import Runner
from fifo_background._settings import (
    NOT_GIVEN,
    AfterFailure,
    Keep,
    NotGiven,
    Options,
    Settings,
    check_key,
)
from fifo_background.exceptions import lane_name

if TYPE_CHECKING:
    from typing_extensions import Never, Self

__all__ = ("ExecutorLane", "SerialExecutor", "Submitter")

P = ParamSpec("P")
T = TypeVar("T")


class Submitter:
    """Submits tasks to one lane of an executor: `executor.options(timeout=2.0).submit_nowait(func)`."""

    __slots__ = ("_key", "_options", "_runner")

    def __init__(self, runner: Runner, key: Hashable, options: Options) -> None:
        self._runner = runner
        self._key = key
        self._options = options

    def options(self, *, timeout: float | NotGiven | None = NOT_GIVEN) -> Submitter:
        """For tasks with a `timeout` (seconds, None for no limit) other than the executor's.

        Raises ValueError or TypeError for an invalid `timeout`.
        """
        return Submitter(self._runner, self._key, self._options.replace(timeout=timeout))

    @overload
    def submit_nowait(
        self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Job[T]: ...

    @overload
    def submit_nowait(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Job[T]: ...

    def submit_nowait(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Job[Any]:
        """Queue `func(*args, **kwargs)` and return its `Job`. It does not start before this returns.

        May be called from any thread, once the executor has its event loop, and never blocks. The task
        sees a copy of the caller's context. Raises TypeError if `func` cannot be called, or if it is a plain
        function that does not take these arguments. Raises RuntimeError before the executor has a loop,
        `QueueFull` if `max_waiting` tasks wait already, and `ExecutorClosed` after the end.
        """
        job, position = self._prepare("submit_nowait", func, args, kwargs)
        self._runner.submit(job, position)
        return job

    @overload
    async def submit(
        self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Job[T]: ...

    @overload
    async def submit(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Job[T]: ...

    async def submit(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Job[Any]:
        """Like `submit_nowait`, but wait for capacity instead of raising `QueueFull`.

        First come, first served. Write `job = await executor.submit(func, ...)`: without `await` nothing is
        queued. `submit` lets other tasks run before it returns. If `submit` is cancelled, the task does not
        run, unless it has begun. Inside a task, and in a request whose own tasks have not ended, `submit`
        never waits: it raises `QueueFull`. In the executor's event loop only.
        """
        self._runner.check_in_loop()
        await anyio.lowlevel.checkpoint_if_cancelled()
        job, position = self._prepare("submit", func, args, kwargs)
        await self._runner.waits.wait_for_capacity(job, position)
        try:
            await anyio.lowlevel.cancel_shielded_checkpoint()
        except BaseException:  # cancelled natively, which no shield stops
            if job._own_state is None:
                job.cancel()
            raise
        return job

    def _prepare(
        self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Job[Any], Position]:
        if not callable(func):
            raise not_callable(name, func)
        runner = self._runner
        runner.check_has_loop()
        job = runner.make_job(make_task(name, BackgroundTask, func, args, kwargs), self._options)
        # last of what may raise: a lane that is made here stays until something has been in it
        position = Position(runner.scheduler.lanes.of(self._key), None, made_by=origin_of(current_party()))
        position.context = copy_context()
        job._position = position
        return job, position


# Python names the coroutine by this where it warns that it "was never awaited".
Submitter.submit.__qualname__ = "executor.submit (write `job = await executor.submit(func, ...)`)"


class ExecutorLane(Submitter):
    """One lane of an executor: `executor.lane(key)`. Nothing is kept for it while it is idle.

    You can submit its tasks from any thread. `pause`, `resume`, `peek`, `skip_head`, `retry_head` and `clear`
    run on the event loop: in an anyio worker thread of the loop they wait for it, in other threads they raise
    RuntimeError.
    """

    __slots__ = ()

    @property
    def key(self) -> Hashable:
        """The key, as it was given."""
        return plain_key(self._key)

    @property
    def picture(self) -> LaneRecord:
        """The lane at this moment. In the executor's event loop only."""
        return self._runner.overview.lane(self._key)

    def _found(self) -> Lane | None:
        return self._runner.scheduler.lanes.find(self._key)

    def _on_loop(self, name: str, function: Callable[[], T]) -> T:
        return self._runner.loop_calls.move(function, f"executor.lane(key).{name}")

    def pause(self) -> None:
        """Start no task of the lane until `resume`; a running task continues. Works on any key."""
        scheduler = self._runner.scheduler
        lane = scheduler.lanes.of(self._key)  # here the key's own code runs

        def pause() -> None:
            operations.pause(scheduler, lane if lane.listed else scheduler.lanes.list_lane(lane))

        try:
            self._on_loop("pause", pause)
        except BaseException:
            scheduler.inbox.append(lane)  # it may have been made for nothing
            raise

    def resume(self) -> bool:
        """Let a paused lane run again. False if there is no such lane."""

        def resume() -> bool:
            lane = self._found()
            if lane is None:
                return False
            operations.resume(self._runner.scheduler, lane)
            return True

        return self._on_loop("resume", resume)

    def peek(self) -> Job[Any] | None:
        """The task that is next; of a stopped lane, the failed one. None if nothing waits."""

        def peek() -> Job[Any] | None:
            lane = self._found()
            return None if lane is None else lane.peek()

        return self._on_loop("peek", peek)

    def skip_head(self, head: Job[Any] | None = None) -> Job[Any] | None:
        """Leave out, and return, what `peek` returns: it ends `SKIPPED`, or the stopped lane goes on.

        With `head`, only if that job is next: otherwise nothing is skipped, and None is returned.
        """

        def skip() -> Job[Any] | None:
            lane = self._found()
            return None if lane is None else operations.skip_head(self._runner.scheduler, lane, head)

        return self._on_loop("skip_head", skip)

    def retry_head(self) -> Job[Any]:
        """Run the failed task of a stopped lane again, before all others; returns its new `Job`.

        With `keep="latest"` the new job is superseded if a newer task waits. Raises RuntimeError if the lane
        has not stopped.
        """

        def retry() -> Job[Any] | None:
            lane = self._found()
            return None if lane is None else operations.retry_head(self._runner.scheduler, lane)

        job = self._on_loop("retry_head", retry)
        if job is None:
            raise RuntimeError(
                f"{lane_name(self.key)} has not stopped, so there is nothing to retry: `retry_head` is for "
                'lanes with after_failure="stop"'
            )
        return job

    def clear(self) -> list[Job[Any]]:
        """Cancel, and return, all tasks that wait in the lane; a stopped lane goes on."""

        runner, facts = self._runner, _log.Facts()

        def clear() -> list[Job[Any]]:
            lane = self._found()
            if lane is None:
                return []
            facts.update(_log.facts_of(lane.waiting, runner.settings.log_arguments))
            return operations.clear_lane(runner.scheduler, lane, CANCELLED)

        jobs = self._on_loop("clear", clear)
        _log.cleared(self.key, jobs, facts)
        return jobs

    def __repr__(self) -> str:
        return f"<ExecutorLane {self.key!r}>"


class SerialExecutor(Submitter):
    """Runs tasks one after the other, first in, first out, in one event loop.

    `async with SerialExecutor() as executor:` drains it at the end of the block.

    `max_lanes_running` (default 16): how many lanes may run a task at the same time. They take turns.
    `max_waiting` (default None, no limit): how many tasks may wait, in all lanes together.
    `timeout` (seconds, default None): after this time an async task is cancelled and fails with TimeoutError;
    a sync task cannot be stopped, and the log names it.
    `lane_after_failure` (default "continue"): with "stop" a lane stops when a task of it fails.
    `drain_timeout` (seconds, default 30.0): how long the end of the block waits for queued tasks.
    `history` (default 1000): how many ended jobs `jobs()` still knows; 0 switches it off.
    `history_seconds` (default 86400.0, a day): for how long it knows them.
    `results` (default False): whether the history keeps results that are JSON.
    `results_bytes` (default 10,000,000): how much all kept results may take, and ten times what one may.
    `log_arguments` (default False): whether the log shows the arguments of tasks that did not run.

    The executor belongs to the event loop that uses it first. After that, `submit_nowait` and `Job.cancel`
    may be called from any thread. Raises ValueError or TypeError for an invalid setting.
    """

    __slots__ = ("__weakref__",)

    def __init__(
        self,
        *,
        max_lanes_running: int = 16,
        max_waiting: int | None = None,
        timeout: float | None = None,
        lane_after_failure: AfterFailure = "continue",
        drain_timeout: float = 30.0,
        history: int = 1000,
        history_seconds: float = 86_400.0,
        results: bool = False,
        results_bytes: int = 10_000_000,
        log_arguments: bool = False,
    ) -> None:
        settings = Settings(
            max_lanes_running=max_lanes_running,
            max_waiting=max_waiting,
            timeout=timeout,
            lane_after_failure=lane_after_failure,
            drain_timeout=drain_timeout,
            history=history,
            history_seconds=history_seconds,
            results=results,
            results_bytes=results_bytes,
            log_arguments=log_arguments,
        )
        super().__init__(Runner(settings), None, settings.options)

    @classmethod
    def _of_runner(cls, runner: Runner) -> Self:
        executor = cls.__new__(cls)
        Submitter.__init__(executor, runner, None, runner.settings.options)
        return executor

    def lane(
        self,
        key: Hashable,
        *arguments: Never,
        keep: Keep | NotGiven = NOT_GIVEN,
        max_waiting: int | NotGiven | None = NOT_GIVEN,
        after_failure: AfterFailure | NotGiven = NOT_GIVEN,
    ) -> ExecutorLane:
        """The lane of a hashable key; None is the default lane. The options are for the tasks added by it.

        `keep="latest"`: a task replaces a waiting older one of the same function, which ends as
        `SUPERSEDED`. `max_waiting`: how many tasks may wait in the lane. `after_failure="stop"`: the lane
        stops when a task that was added like this fails. Raises TypeError for a key that is not hashable,
        ValueError for an invalid option.
        """
        if arguments:
            raise only_a_key("executor.lane(key).submit_nowait(func, ...)")
        check_key(key)
        options = self._options.replace(keep=keep, max_waiting=max_waiting, after_failure=after_failure)
        return ExecutorLane(self._runner, key_of(key), options)

    def job(self, id: str) -> Job[Any] | JobRecord | None:
        """The job with that `Job.id`: the `Job` while it is alive, else what the history has of it.

        None for an id that this executor has not given, and for one that the history has forgotten. In the
        executor's event loop only.
        """
        return self._runner.overview.find(id)

    async def jobs(
        self,
        *,
        states: Collection[JobState] | None = None,
        lane: str | None = None,
        function: str | None = None,
        search: str | None = None,
        limit: int = 50,
        before: int | None = None,
    ) -> list[JobRecord]:
        """Pictures of the newest jobs: those that wait or run, and those in the history.

        `states`: only jobs in these. `lane`: only those of the lane with that id (`LaneName.id`). `function`:
        only those with that name. `search`: a part of the name of the job or lane, or a number, or the
        beginning of an id. `before`: only jobs with smaller numbers. Where there are many, other tasks run in
        between. In the executor's event loop only.
        """
        return await self._runner.overview.jobs(states, lane, function, search, limit, before)

    async def lanes(self, limit: int = 50) -> LaneList:
        """Pictures of the lanes that need a person most: stopped, held, paused, busy and idle ones.

        Idle lanes are those of the history. In the executor's event loop only.
        """
        return await self._runner.overview.lanes(limit)

    def find_lane(self, id: str) -> ExecutorLane | None:
        """The lane that was listed with that id (`LaneName.id`)."""
        try:
            key = self._runner.scheduler.names.key(id)
        except KeyError:
            return None
        return ExecutorLane(self._runner, key, self._options)

    def counts(self) -> dict[str, Any]:
        """How many jobs run and wait, and how many have ended in which way since the executor's start.

        From any thread, which does not see the end of a job before the loop has heard of it.
        """
        return self._runner.overview.counts()

    def oldest_head(self) -> float | None:
        """For how many seconds the first task or request of a lane has waited, at most; None if none waits.

        From any thread, once the executor has its event loop. It looks at every lane that is not idle.
        """
        return self._runner.overview.oldest_head()

    def timings(self, after: int = 0) -> tuple[list[Timing], int]:
        """How long the jobs that ended behind the first `after` have waited and run, and what to give next.

        From any thread. What the history has forgotten is not in the list.
        """
        return self._runner.overview.timings(after)

    async def changed(self, version: int = 0) -> int:
        """Wait until something has changed since `changed` returned `version`; returns the version now.

        Raises `ExecutorClosed` once the executor closes. In the executor's event loop only.
        """
        self._runner.check_in_loop()
        return await self._runner.changes.wait(version)

    @property
    def epoch(self) -> str:
        """Tells this executor's numbers from another's."""
        return self._runner.scheduler.names.epoch

    def ended(self, after: int = 0, limit: int = 200) -> tuple[list[JobRecord], int] | None:
        """What has ended behind the first `after` jobs that ended, and how many have ended with these.

        None if the history has forgotten some of them. In the executor's event loop only.
        """
        return self._runner.overview.ended(after, limit)

    @property
    def ended_count(self) -> int:
        """How many jobs have ended, as the history counts them."""
        return self._runner.overview.ended_count

    async def __aenter__(self) -> Self:
        self._runner.check_in_loop()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Refuse new work, give up held positions, run what is queued for at most `drain_timeout` seconds.

        Tasks behind a paused or stopped head are dropped. After that time the tasks that still wait are
        dropped, and running async tasks are cancelled, with one second to clean up. The log names all of
        these tasks. Raises `WouldDeadlock` inside a task of this executor. If another `aclose` has begun,
        this one waits for it.
        """
        await self._runner.closing.aclose()

    async def join(self) -> None:
        """Wait for a moment at which every task that was added or submitted has ended.

        Tasks that requests have added count from `add_task` on. Raises `WouldDeadlock` inside a task, and in
        a request whose own tasks have not ended. In the executor's event loop only: in a worker thread of it,
        `anyio.from_thread.run(executor.join)`.
        """
        await self._runner.waits.join()

    def statistics(self) -> ExecutorStatistics:
        """A frozen snapshot of the lanes at this moment.

        It runs on the event loop: in an anyio worker thread of the loop it waits for the loop, in other
        threads it raises RuntimeError. A signal handler or finalizer that has interrupted the executor gets
        the last snapshot that was taken.
        """
        return self._runner.loop_calls.statistics()

    @property
    def is_open(self) -> bool:
        """Whether the executor takes new work: True until `aclose`, or the end of the `async with` block."""
        return self._runner.scheduler.is_open

    def __repr__(self) -> str:
        scheduler = self._runner.scheduler
        running = sum(lane.running is not None for lane in list(scheduler.turns.occupied))
        unfinished = len(scheduler.waiting) + running
        return f"<SerialExecutor {scheduler.status.value}, {unfinished} unfinished, {running} running>"
