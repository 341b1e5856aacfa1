"""The only file that runs a task.

Invariants:

1. A lane has at most one runner, and a runner runs one job at a time: what is behind starts after it ended.
2. A runner leaves its lane only after its thread, if it has one, has left the task's function.
3. The next job is the first one of the lane's head; a place is appended to a line once, at a named moment.
4. A job changes its state in `Line`, under its lock, on the loop or in the thread that ran it.
5. Runners and timers start on the loop only (`settle`); a lane without work has neither.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import anyio

from fifo_background._call import call, drive, run_here
from fifo_background._effects import Held, Lost, Overdue, Unrun
from fifo_background._job import CANCELLED, FAILED, RUNNING, SUCCEEDED, Job
from fifo_background._lane import IN_LINE, Lane, Place, Runner
from fifo_background._line import Line
from fifo_background._log import in_brackets, logger, names, of_request
from fifo_background._loop import EventLoop, NoLoop, face_of, running_loop
from fifo_background._operations import drop_all
from fifo_background._settings import Settings
from fifo_background._sniffio import set_library
from fifo_background._threads import Threads, in_loop_of_caller
from fifo_background.exceptions import lane_name

if TYPE_CHECKING:
    from fifo_background._request import TrackedRequest

__all__ = ("Executor", "current", "here")

T = TypeVar("T")

# The request that is handled, or the job that runs, in this context.
current: ContextVar[TrackedRequest | Job[Any] | None] = ContextVar("fifo_background", default=None)
here = current.get  # bound once: looked up for every request

# How many runners that end without suspending start one after the other before the loop gets its turn.
BURST = 32


class Executor:
    """Runs what its line says, in one event loop. `SerialExecutor` is what users see of it."""

    def __init__(self, settings: Settings) -> None:
        self.line: Line = Line(settings)
        self.settings: Settings = settings
        self._loop = cast(EventLoop, NoLoop())
        self.is_current: Callable[[], bool] = self._loop.is_current  # whether the caller runs in that loop
        self._known_threads = threading.local()
        self._threads = Threads()
        self._asked = False  # the loop is to settle in its next turn
        self._starting = False  # runners are being started
        self.tasks_alive: int = 0  # how many runners' tasks are not over

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

    def stop(self, why: str) -> list[Runner]:
        """Drop what waits, cancel what runs, and say so; returns whom it has cancelled."""
        line = self.line
        with line.lock:
            left = drop_all(line)
            runners = list(line.runners)
        if left:
            logger.warning("%s and did not run %s", why, names(left))
        cancelled: list[Runner] = []
        for runner in runners:
            if runner.place is None:
                logger.warning(
                    "%s while %s runs in its thread, which cannot be stopped", why, runner.job.name
                )
            else:
                assert runner.handle is not None
                runner.cancelled = True
                runner.handle.cancel()
                cancelled.append(runner)
        self.settle()
        return cancelled

    # -- starting ---------------------------------------------------------------------------------------

    def settle_soon(self) -> None:
        """`settle` in the loop's next turn. From any thread that may call."""
        if not self._asked:
            self._asked = True  # before the call: the loop may be quicker than this thread
            if not self._loop.soon(self.settle):
                self._asked = False

    def settle(self) -> None:
        """Do what the line's last moves ask for: start runners, wake who waits, log. On the loop only."""
        line = self.line
        self._asked = False
        if self._starting:  # a runner ends while it is being started below, and the loop there goes on
            return
        self._starting = True
        try:
            for _ in range(BURST):
                if not line.turns:
                    break
                with line.lock:
                    runner = line.next_runner()
                if runner is None:
                    break
                self.start(runner)
            else:
                self.settle_soon()
        finally:
            self._starting = False
        if line.effects:
            with line.lock:
                effects, line.effects = line.effects, []
            for effect in effects:
                if isinstance(effect, Lost):
                    self._log_lost(effect.place)
                elif isinstance(effect, Held):
                    self._look_again(effect.lane, effect.delay)
                elif isinstance(effect, Overdue):
                    self._watch(effect.runner, effect.job)
                elif isinstance(effect, Unrun):
                    logger.warning(
                        "%s ended without running %s%s",
                        effect.job.name,
                        names(effect.parts),
                        in_brackets(effect.owner),
                    )
                else:
                    with line.lock:
                        line.room.tell_hopeless()
        if line.woken:
            with line.lock:
                woken, line.woken = line.woken, []
            self._loop.wake(woken)

    def start(self, runner: Runner) -> None:
        """Let a runner that the line has just made run its jobs. On the loop only."""
        place = runner.place
        context = Context() if place is None else place.context
        run = runner.run = self._run_sync_jobs(runner) if place is None else self._run_async_jobs(runner)
        try:
            assert context is not None
            handle = runner.handle = self._loop.start(run, context)
        except Exception as error:  # no task can be started: the job fails of it, the line moves
            run.close()
            self._end_badly(runner.job, error, False)
            with self.line.lock:
                self.line.leave(runner)
            return
        if handle is not None:
            self.tasks_alive += 1
            self._loop.when_over(handle, self._left, runner)
        elif runner.lane is not None:
            self._cut_off(runner)

    def _left(self, runner: Runner) -> None:
        """The runner's task is over: it had nothing more to run, or somebody cancelled it."""
        self.tasks_alive -= 1
        if runner.lane is not None:
            self._cut_off(runner)
        ending = self._loop.is_ending()
        if ending and not (runner.cancelled or self.line.drainers):  # who drains is not over yet
            self.stop("the event loop ended")
        line = self.line
        if line.drainers:
            with line.lock:
                line.woken += line.drainers
                line.drainers = []
        self.settle()

    def _cut_off(self, runner: Runner) -> None:
        """The runner's task was cancelled, before it could take its leave."""
        job = runner.job
        with self.line.lock:
            cancelled = job.state is RUNNING
            if cancelled:
                self.line.end(job, CANCELLED)
            self.line.leave(runner)
        if cancelled:
            logger.warning("%s was cancelled%s", job.name, of_request(job.place))

    def _log_lost(self, place: Place) -> None:
        logger.warning(
            "%s lost its place: it kept ready tasks waiting for more than %g s without responding or "
            "running its own; when its response has ended it takes a new one%s",
            place.owner,
            self.settings.hold,
            f", for {names(place.added)}" if place.added else "",
        )

    def _look_again(self, lane: Lane, delay: float) -> None:
        """The head of the lane is held: look again when its time is over.

        Not if the lane has been left behind, or has a runner, since the line said so.
        """

        def ring() -> None:
            lane.timer = None
            with self.line.lock:
                self.line.wants_turn(lane)
            self.settle()

        if lane.runner is None and self.line.lanes.get(lane.key) is lane:
            if lane.timer is not None:
                lane.timer.cancel()
            lane.timer = self._loop.later(delay, ring)
            lane.rings = self.line.clock() + delay

    def _watch(self, runner: Runner, job: Job[Any]) -> None:
        """A task with a timeout runs and cannot be stopped: name it when its time is over."""
        timeout: float = job.options.timeout  # type: ignore[assignment]

        def ring() -> None:
            if runner.job is job and job.state is RUNNING:
                lane = runner.lane
                logger.warning(
                    "%s%s has been running for %.3g s, longer than its timeout of %g s, and cannot be "
                    "stopped: %d tasks wait behind it",
                    job.name,
                    of_request(job.place),
                    self.line.clock() - runner.since,
                    timeout,
                    0 if lane is None else lane.waiting,
                )

        if runner.job is job and job.state is RUNNING:
            if runner.watch is not None:
                runner.watch.cancel()
            runner.watch = self._loop.later(max(0.0, runner.since + timeout - self.line.clock()), ring)

    # -- running ----------------------------------------------------------------------------------------

    async def _run_async_jobs(self, runner: Runner) -> None:
        """Run the consecutive async jobs of one place, in the context they share."""
        line = self.line
        job: Job[Any] | None = runner.job
        while job is not None:
            current.set(job)
            task = job.task
            try:
                if job.direct:
                    outcome = await task.func(*task.args, **task.kwargs)
                else:
                    outcome = await self._call(job)
            except BaseException as error:
                cancelled = self._is_cancellation(error)
                self._end_badly(job, error, cancelled)
                if cancelled:
                    _leave_context(runner)
                    raise
                with line.lock:
                    job = line.next_job(runner)
            else:
                line.lock.acquire()
                try:
                    line.end(job, SUCCEEDED, outcome)
                    job = line.next_job(runner)
                finally:
                    line.lock.release()
            if job is None and runner.place.state is IN_LINE:  # type: ignore[union-attr]
                _leave_context(runner)
            if line.woken or line.effects or (job is None and line.turns):
                self.settle()

    async def _call(self, job: Job[Any]) -> Any:
        """Call a task that something is around: a span, an instrumentation, its timeout."""
        timeout = job.options.timeout
        if timeout is None or not job.stoppable:
            return await call(job.task, self._in_thread, job.around)
        with anyio.fail_after(timeout):
            return await call(job.task, self._in_thread, job.around)

    async def run_inline(self, job: Job[Any], outer: Job[Any]) -> None:
        """Run a job inside the running `outer` one that awaits it, in its place; raises its error."""
        line = self.line
        if job.executor is not None and job.executor is not self:
            job.executor.give_away(job)
        with line.lock:
            line.start_inline(job, outer)
            job.executor = outer.executor
        try:
            outcome = await self._call(job)
        except BaseException as error:
            if outer.outcome is error:  # of a job inside this one
                job.outcome = error
            self._end_badly(job, error, self._is_cancellation(error), inline=True)
            outer.outcome = error  # logged: `outer` need not log it again if it fails of it
            raise
        else:
            with line.lock:
                line.end(job, SUCCEEDED, outcome)
        finally:
            self.settle_soon()

    def give_away(self, job: Job[Any]) -> None:
        """A task of another executor runs this waiting job."""
        with self.line.lock:
            self.line.give_away(job)
        self.settle_soon()

    async def _run_sync_jobs(self, runner: Runner) -> None:
        try:
            await self._threads.run(partial(self._work, runner), self._loop, runner)
        except Exception as error:  # no thread can be started: the job fails of it, the line moves
            self._end_badly(runner.job, error, False)
        finally:
            if runner.watch is not None:
                runner.watch.cancel()
        if not runner.stopped:
            self.settle()

    def _work(self, runner: Runner) -> None:
        """In a thread: run the consecutive sync jobs of the lane, whosever they are."""
        line, is_ending = self.line, self._loop.is_ending_seen_from_thread
        job: Job[Any] | None = runner.job
        while job is not None:
            assert job.place is not None
            assert job.place.context is not None
            outcome = None
            try:
                outcome = job.place.context.copy().run(_call_sync, job)
            except BaseException as error:
                self._end_badly(job, error, self._is_cancellation(error))
                ended = True
            else:
                ended = False
            if is_ending is not None and is_ending():
                runner.stopped = True
            # Who blocks in `acquire` gets the lock without the GIL, so that the next one blocks as well, and
            # so on: with a thread for each of many lanes, that costs more than all the rest.
            while not line.lock.acquire(False):
                time.sleep(0)  # lets the thread run that has the lock
            try:
                if not ended:
                    line.end(job, SUCCEEDED, outcome)
                job = line.next_job(runner)
            finally:
                line.lock.release()
            # if this was the last job, the end of the stay in the thread has the loop settle anyway
            if job is not None and (line.woken or line.effects or (line.turns and line.slots > 0)):
                self.settle_soon()

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await self._threads.run(function, self._loop)

    def _end_badly(
        self, job: Job[Any], error: BaseException, cancelled: bool, *, inline: bool = False
    ) -> None:
        """Record that a job failed or was cancelled, and log it, once."""
        logged = job.outcome is error
        job.traceback = error.__traceback__
        skipped: list[Job[Any]] = []
        with self.line.lock:
            if cancelled:
                self.line.end(job, CANCELLED)
            elif inline:
                self.line.end(job, FAILED, error)
            else:
                skipped = self.line.fail(job, error)
        if cancelled:
            logger.warning("%s was cancelled%s", job.name, of_request(job.place))
        else:
            after = f"; skipped after it: {names(skipped)}" if skipped else ""
            lane = None if inline or job.place is None else job.place.lane
            if lane is not None and lane.failed is not None:
                after += f"; {lane_name(lane.key)} has stopped"
            if not logged:
                logger.error("%s failed%s%s", job.name, of_request(job.place), after, exc_info=error)
            elif after:
                logger.warning("%s failed of that%s%s", job.name, of_request(job.place), after)

    def _is_cancellation(self, error: BaseException) -> bool:
        if isinstance(error, (self._loop.cancelled, GeneratorExit)):
            return True
        parts: Any = getattr(error, "exceptions", None)  # a group of nothing but cancellations
        return isinstance(parts, tuple) and bool(parts) and all(map(self._is_cancellation, parts))

    # -- calling off ------------------------------------------------------------------------------------

    def cancel(self, job: Job[Any]) -> bool:
        """`Job.cancel`."""
        self.check_caller()
        line = self.line
        with line.lock:
            if job.state is RUNNING:
                runner = None if job.place is None or job.place.lane is None else job.place.lane.runner
                if runner is None or runner.job is not job or not job.stoppable:
                    return False
                # in the loop's next turn: then the runner's task is suspended in the job, or past it
                return self._loop.soon(self._cancel_running, runner, job)
            if job.state.ended:
                return False
            line.end_waiting(job, CANCELLED)
        self.settle_soon()
        return True

    def _cancel_running(self, runner: Runner, job: Job[Any]) -> None:
        if runner.job is job and job.state is RUNNING and runner.handle is not None:
            runner.stopped = runner.cancelled = True
            runner.handle.cancel()


def _leave_context(runner: Runner) -> None:
    """What runs in the place after this runner goes on with a copy: no context can be entered twice."""
    assert runner.place is not None
    runner.place.context = copy_context()


def _call_sync(job: Job[Any]) -> Any:
    set_library(None)
    current.set(job)
    if job.direct:
        return job.task.func(*job.task.args, **job.task.kwargs)
    return drive(call(job.task, run_here, job.around))
