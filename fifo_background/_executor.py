"""The only file that runs a task.

Invariants:

1. A lane has at most one runner, and a runner runs one job at a time: what is behind starts after it ended.
2. A runner leaves its lane only after its thread, if it has one, has left the task's function.
3. The next job is the first one of the lane's head; a place is appended to a line once, at a named moment.
4. A job changes its state in `Line`, under its lock, on the loop or in the thread that ran it.
5. Runners and timers start on the loop only (`_advance`); a lane without work has neither.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from contextvars import Context, ContextVar, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from fifo_background._call import call, drive, run_here
from fifo_background._job import Batch, Job, JobState
from fifo_background._lane import Lane, Place, Runner
from fifo_background._line import Line
from fifo_background._log import logger, names, of_request
from fifo_background._loop import EventLoop, NoLoop, Waiter, enter_thread, face_of, running_loop
from fifo_background._settings import Settings
from fifo_background._threads import Threads, in_loop_of_caller

if TYPE_CHECKING:
    from fifo_background._request import TrackedRequest

__all__ = ("Executor", "current")

T = TypeVar("T")

# The request that is handled, or the job that runs, in this context.
current: ContextVar[TrackedRequest | Job[Any] | None] = ContextVar("fifo_background", default=None)

# How many runners that end without suspending start one after the other before the loop gets its turn.
BURST = 32


class Executor:
    """Runs what its line says, in one event loop. `SerialExecutor` is what users see of it."""

    def __init__(self, settings: Settings) -> None:
        self.line: Line = Line(settings.hold)
        self._settings = settings
        self._loop = cast(EventLoop, NoLoop())
        self.is_current: Callable[[], bool] = self._loop.is_current  # whether the caller runs in that loop
        self._known_threads = threading.local()
        self._threads = Threads()
        self._to_wake: list[Waiter] = []  # by worker threads; `_waking`: the loop has been told
        self._waking = False
        self.started: int = 0  # how many runners' tasks are not over

    # -- the loop it belongs to ---------------------------------------------------------------------------

    def check_caller(self) -> None:
        """Raise RuntimeError unless the caller is in the executor's loop, or in a worker thread of it."""
        if self.is_current():
            return
        loop = self._loop
        if isinstance(loop, NoLoop):
            self._loop = in_loop_of_caller(lambda: face_of(running_loop()))
            self.is_current = self._loop.is_current
            self.line.clock = self._loop.clock
        elif not getattr(self._known_threads, "mine", False):
            if not loop.is_(in_loop_of_caller(running_loop)):
                raise RuntimeError("this executor belongs to another event loop")
            self._known_threads.mine = True

    def stop(self, why: str) -> None:
        """Drop what waits, cancel what runs, and say so."""
        line = self.line
        with line.lock:
            left = line.clear()
            runners = [lane.runner for lane in line.lanes.values() if lane.runner is not None]
            waiters = line.drop(left)
        self.wake(waiters)
        if left:
            logger.warning("%s and did not run %s", why, names(left))
        for runner in runners:
            if runner.place is None and runner.job is not None:
                logger.warning(
                    "%s while %s runs in its thread, which cannot be stopped", why, runner.job.name
                )
            else:
                assert runner.handle is not None
                runner.handle.cancel()

    # -- starting ---------------------------------------------------------------------------------------

    def advance_soon(self, key: Hashable) -> None:
        """Start what can start in a lane, in the loop's next turn. From any thread that may call."""
        lane = self.line.lanes.get(key)
        if lane is not None and lane.runner is None and not lane.asked:
            lane.asked = True  # before the call: the loop may be quicker than this thread
            if not self._loop.soon(self._advance, lane):
                lane.asked = False

    def advance(self, key: Hashable) -> None:
        """Start what can start in a lane. On the loop only."""
        lane = self.line.lanes.get(key)
        if lane is not None:
            self._advance(lane)

    def _advance(self, lane: Lane) -> None:
        lane.asked = False
        line = self.line
        lost: list[Place] = []
        for _ in range(BURST):
            with line.lock:
                start = line.next_runner(lane, lost)
            if not isinstance(start, Runner):
                if start is not None:
                    self._look_again(lane, start)
                break
            if not self._start(lane, start):
                break
            if not lane.line and lane.key is None:
                break  # nothing is left, and the default lane stays
        else:
            lane.asked = self._loop.soon(self._advance, lane)
        for place in lost:
            logger.warning(
                "%s lost its place: it kept ready tasks waiting for more than %g s without responding or "
                "running its own; when its response has ended it takes a new one, for %s",
                place.owner,
                self._settings.hold,
                names(place.added or ()),
            )

    def _look_again(self, lane: Lane, delay: float) -> None:
        """The head of the lane is held: look again when its time is over."""

        def ring() -> None:
            lane.timer = None
            self._advance(lane)

        if lane.timer is None:
            lane.timer = self._loop.later(delay, ring)

    def _start(self, lane: Lane, runner: Runner) -> bool:
        """Start a runner. True if it ended at once."""
        if lane.timer is not None:
            lane.timer.cancel()
            lane.timer = None
        if runner.place is None:
            run, context = self._run_sync_jobs(lane, runner), Context()
        else:
            run, context = self._run_async_jobs(lane, runner), runner.place.context or copy_context()
        runner.handle = self._loop.start(run, context, self._left, lane, runner)
        if runner.handle is not None:
            self.started += 1
            return False
        if lane.runner is runner:
            self._cut_off(lane, runner)
        return True

    def _left(self, lane: Lane, runner: Runner) -> None:
        """The runner's task is over: it had nothing more to run, or somebody cancelled it."""
        self.started -= 1
        if lane.runner is runner:
            self._cut_off(lane, runner)
        if self._loop.is_ending():
            self.stop("the event loop ended")
        self._advance(lane)
        if not self.started and self.line.drainers:
            waiters, self.line.drainers = self.line.drainers, []
            self.wake(waiters)

    def _cut_off(self, lane: Lane, runner: Runner) -> None:
        with self.line.lock:
            self.line.leave(lane, runner)

    # -- running ----------------------------------------------------------------------------------------

    async def _run_async_jobs(self, lane: Lane, runner: Runner) -> None:
        """Run the consecutive async jobs of one place, in the context they share."""
        line = self.line
        with line.lock:
            job = line.start_job(lane, runner)
        while job is not None:
            current.set(job)
            task = job.task
            try:
                if job.direct:
                    outcome = await task.func(*task.args, **task.kwargs)
                else:
                    outcome = await call(task, self._in_thread, job.around)
            except BaseException as error:
                cancelled = self._is_cancellation(error)
                self.wake(self._end(job, *_failed_or_cancelled(error, cancelled)))
                if cancelled:
                    raise
                with line.lock:
                    job = line.start_job(lane, runner)
            else:
                with line.lock:
                    waiters = line.end(job, JobState.SUCCEEDED, outcome)
                    job = line.start_job(lane, runner)
                self.wake(waiters)
        place = runner.place
        if place is not None and place.queued:
            place.context = copy_context()  # Python < 3.12 ran these jobs in a copy

    async def run_inline(self, job: Job[Any], outer: Job[Any]) -> None:
        """Run a job inside the running `outer` one that awaits it, in its place; raises its error."""
        with self.line.lock:
            self.line.start_inline(job)
            job.executor = self
        try:
            outcome = await call(job.task, self._in_thread, job.around)
        except BaseException as error:
            self.wake(self._end(job, *_failed_or_cancelled(error, self._is_cancellation(error))))
            outer.outcome = error  # logged: `outer` need not log it again if it fails of it
            raise
        self.wake(self._end(job, JobState.SUCCEEDED, outcome))

    async def _run_sync_jobs(self, lane: Lane, runner: Runner) -> None:
        try:
            await self._threads.run(partial(self._work, lane, runner), self._loop, runner)
        except Exception as error:  # no thread can be started: the job fails of it, the line moves
            runner.stopped = False
            with self.line.lock:
                job = self.line.start_job(lane, runner)
            if job is not None:
                self.wake(self._end(job, JobState.FAILED, error))
        finally:
            self._deliver()

    def _work(self, lane: Lane, runner: Runner) -> None:
        """In a thread: run the consecutive sync jobs of the lane, whosever they are."""
        line = self.line
        with line.lock:
            job = line.start_job(lane, runner)
        while job is not None:
            assert job.place is not None
            assert job.place.context is not None
            try:
                outcome = job.place.context.copy().run(_call_sync, job)
            except BaseException as error:
                waiters = self._end(job, *_failed_or_cancelled(error, self._is_cancellation(error)))
            else:
                with line.lock:
                    waiters = line.end(job, JobState.SUCCEEDED, outcome)
            if self._loop.is_ending_seen_from_thread():
                runner.stopped = True
            with line.lock:
                job = line.start_job(lane, runner)
            if waiters:
                with line.lock:
                    self._to_wake += waiters
                    # if this was the last job, the end of the stay in the thread wakes the loop anyway
                    if job is not None and not self._waking:
                        self._waking = self._loop.soon(self._deliver)

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await self._threads.run(function, self._loop)

    def _end(self, job: Job[Any], state: JobState, outcome: Any = None) -> list[Waiter]:
        """Record how a job ended, log it if it failed, and return whom to wake."""
        logged = outcome is not None and job.outcome is outcome
        with self.line.lock:
            waiters = self.line.end(job, state, outcome)
            skipped: list[Job[Any]] = []
            if state is JobState.FAILED:
                skipped, more = self.line.skip_rest(job)
                waiters += more
        if state is JobState.FAILED and not logged:
            after = f"; skipped after it: {names(skipped)}" if skipped else ""
            logger.error("%s failed%s%s", job.name, of_request(job.place), after, exc_info=outcome)
        elif state is JobState.CANCELLED:
            logger.warning("%s was cancelled%s", job.name, of_request(job.place))
        return waiters

    def _is_cancellation(self, error: BaseException) -> bool:
        if isinstance(error, (self._loop.cancelled, GeneratorExit)):
            return True
        parts: Any = getattr(error, "exceptions", None)  # a group of nothing but cancellations
        return isinstance(parts, tuple) and bool(parts) and all(map(self._is_cancellation, parts))

    # -- waiting ----------------------------------------------------------------------------------------

    async def wait(self, batch: Batch) -> None:
        """Wait for the jobs of a batch; a cancelled wait leaves them as they are."""
        with self.line.lock:
            if not batch.left:
                return
            batch.waiter = self._loop.waiter()
        await batch.waiter

    async def wait_for(self, job: Job[Any]) -> None:
        """Wait until `job` has ended, however it ends."""
        self.check_caller()
        batch = Batch()
        with self.line.lock:
            if not job.state.ended:
                batch.watch(job)
        try:
            await self.wait(batch)
        finally:
            with self.line.lock:
                job.watchers = tuple(watcher for watcher in job.watchers if watcher is not batch)

    def wake(self, waiters: list[Waiter]) -> None:
        """Wake whoever waits. On the loop only."""
        for waiter in waiters:
            self._loop.wake(waiter)

    def _deliver(self) -> None:
        """On the loop: wake for the jobs that ended in threads."""
        with self.line.lock:
            waiters, self._to_wake = self._to_wake, []
            self._waking = False
        self.wake(waiters)


def _failed_or_cancelled(error: BaseException, cancelled: bool) -> tuple[JobState, BaseException | None]:
    return (JobState.CANCELLED, None) if cancelled else (JobState.FAILED, error)


def _call_sync(job: Job[Any]) -> Any:
    enter_thread()
    current.set(job)
    if job.direct:
        return job.task.func(*job.task.args, **job.task.kwargs)
    return drive(call(job.task, run_here, job.around))
