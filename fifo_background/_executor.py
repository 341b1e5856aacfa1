"""What users see of an executor: its settings, its lanes, its jobs, closing."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fifo_background._arguments import only_a_key
from fifo_background._core.history import Timing
from fifo_background._core.job import Job
from fifo_background._core.job_record import JobRecord
from fifo_background._core.lane import key_of
from fifo_background._core.lane_picture import LaneList
from fifo_background._core.state import JobState
from fifo_background._core.statistics import ExecutorStatistics
from fifo_background._run.runner import Runner
from fifo_background._settings import (
    NOT_GIVEN,
    AfterFailure,
    Keep,
    NotGiven,
    Settings,
    check_count,
    check_key,
)
from fifo_background._submitter import ExecutorLane, Submitter

if TYPE_CHECKING:
    from typing_extensions import Never, Self

__all__ = ("ExecutorLane", "SerialExecutor", "Submitter")


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
        """The one that users see of this runner."""
        if runner.face is None:
            runner.face = cls.__new__(cls)
            Submitter.__init__(runner.face, runner, None, runner.settings.options)
        executor: Self = runner.face
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
        between. Raises ValueError or TypeError for an invalid `limit`. In the executor's event loop only.
        """
        check_count("limit", limit)
        return await self._runner.overview.jobs(states, lane, function, search, limit, before)

    async def lanes(self, limit: int = 50) -> LaneList:
        """Pictures of the lanes that need a person most: stopped, held, paused, busy and idle ones.

        Idle lanes are those of the history. Raises ValueError or TypeError for an invalid `limit`. In the
        executor's event loop only.
        """
        check_count("limit", limit)
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

        None if the history has forgotten some of them. Raises ValueError or TypeError for an invalid `limit`.
        In the executor's event loop only.
        """
        check_count("limit", limit)
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
