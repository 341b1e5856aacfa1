"""Runs the async jobs of a lane in a task of the loop: the consecutive ones of a position, in its context."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast

import anyio

from fifo_background import _log
from fifo_background._core.job import Job
from fifo_background._core.lane import Lane
from fifo_background._core.position import Position
from fifo_background._core.state import CANCELLED, FAILED, RUNNING, SUCCEEDED
from fifo_background._run.call import call, overrides_call
from fifo_background._run.current import current
from fifo_background._run.groups import is_group_of

if TYPE_CHECKING:
    from fifo_background._run.runner import Runner

__all__ = ("LoopRuns",)


class LoopRuns:
    """The runs of one runner's lanes in tasks of the loop."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._scheduler = runner.scheduler

    async def run(self, lane: Lane, position: Position, job: Job[Any]) -> None:
        """Run the consecutive async jobs of one position, of which the first has been started."""
        runner, scheduler = self._runner, self._scheduler
        while True:
            current.set(job)
            task: Any = job._task
            try:
                if job._direct and job._special is None and job._options.timeout is None:
                    outcome = await task.func(*task.args, **task.kwargs)
                else:
                    outcome = await self._call(job)
            except BaseException as error:
                after = self._ended_badly(lane, job, error)
            else:
                after = scheduler.end(lane, job, SUCCEEDED, outcome, runner.may_go_on)
            task = outcome = None
            if scheduler.woken or scheduler.effects:
                runner.dispatch.carry_out()
            if after is None:
                break
            job = after
        del lane, position, job  # a traceback that holds this frame holds no request
        if not runner.pumping:
            runner.pump()

    def _ended_badly(self, lane: Lane, job: Job[Any], error: BaseException) -> Job[Any] | None:
        """Record how a job ended. Returns the next one, unless this task must await nothing more."""
        runner, scheduler = self._runner, self._scheduler
        cancelled = self._is_cancellation(error)
        if cancelled and (lane.stopping or runner.backend.ends_by(error)):
            _log.was_cancelled(job, runner.settings.log_arguments)
            return scheduler.end(lane, job, CANCELLED, None, None)
        goes_on = None if cancelled else runner.may_go_on
        after = scheduler.end(lane, job, FAILED, scheduler.failure(error), goes_on)
        if issubclass(type(error), (KeyboardInterrupt, SystemExit)):
            runner.dispatch.reraise(job, error)
        return after

    def _is_cancellation(self, error: BaseException) -> bool:
        cancelled = self._runner.backend.cancelled
        return issubclass(type(error), (cancelled, GeneratorExit)) or is_group_of(error, cancelled)

    async def _call(self, job: Job[Any]) -> Any:
        """Call a task that something is around: a span, an instrumentation, its timeout."""
        thread_runs = self._runner.thread_runs
        timeout, task = job._options.timeout, cast(Any, job._task)
        around = None if job._special is None else job._special.around
        if timeout is None:
            return await call(task, thread_runs.call, around)
        if not _is_stoppable(job):
            watch = thread_runs.watch(job, timeout)
            try:
                return await call(task, thread_runs.call, around)
            finally:
                watch.cancel()
        with anyio.fail_after(timeout):
            return await call(task, thread_runs.call, around)

    async def run_part(self, job: Job[Any]) -> None:
        """Run a claimed job inside the running one; raises its error, which the outer task reports."""
        runner = self._runner
        runner.let_go(job)
        job._runner = runner
        job._started = self._scheduler.clock()
        job._own_state = RUNNING
        try:
            outcome = await self._call(job)
        except BaseException as error:
            if self._is_cancellation(error):
                job._end(CANCELLED)
            else:
                failure = self._scheduler.failure(error)
                failure.reported = True  # by the outer task, if it does not handle it
                job._end(FAILED, failure)
            raise
        else:
            job._end(SUCCEEDED, outcome)
        finally:
            self._scheduler.tell_end(job)
            runner.pump_soon()

    def cancel(self, job: Job[Any]) -> bool:
        """Ask for a running job to be cancelled. False if it runs in a thread, or inside a job."""
        if job._position is None or not job._on_loop or not _is_stoppable(job):
            return False
        # in the loop's next turn: then the run is suspended in the job, or past it
        return self._runner.backend.soon(partial(self._cancel, job))

    def _cancel(self, job: Job[Any]) -> None:
        lane = None if job._position is None else job._position.lane
        if lane is not None and lane.job is job and lane.handle is not None:
            lane.stopping = True
            lane.handle.cancel()


def _is_stoppable(job: Job[Any]) -> bool:
    """Whether a cancel can end the running job: not what runs in a thread."""
    task: Any = job._task
    return task is None or overrides_call(task) or getattr(task, "is_async", True)
