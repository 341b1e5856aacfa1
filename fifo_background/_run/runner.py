"""One executor in its event loop: lets lanes run. `on_loop.py` and `in_threads.py` run tasks, no other file.

The way of one task: `hand_over` or `submit` makes it ready, `pump` lets the next lane run, `LoopRuns.run` or
`ThreadRuns.run` runs its jobs, and `Dispatch` wakes who waits.

Invariants:

1. A lane is occupied by one run at most, which has one job at a time: the next starts after it has ended.
2. A run leaves its lane only after its thread, if it has one, has left the task's function.
3. The next job is the first one of the lane's head; a position enters a queue once, at a named moment.
4. Runs, timers and wake-ups are started on the loop only, outside of moves; a lane without work has none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from functools import partial
from typing import Any, ClassVar, TypeVar, cast

from fifo_background import _log
from fifo_background._core.job import Job
from fifo_background._core.job_record import JobRecord
from fifo_background._core.lane import Lane, Trip
from fifo_background._core.picture import of_job
from fifo_background._core.position import Position
from fifo_background._core.scheduler import Scheduler
from fifo_background._core.special import Callback
from fifo_background._core.state import CANCELLED, CLOSED, DROPPED, FAILED, RUNNING
from fifo_background._run.backends.api import Backend, Handle, NoBackend, backend_of, running_loop
from fifo_background._run.call import identity_of, is_direct
from fifo_background._run.changes import Changes
from fifo_background._run.closing import Closing
from fifo_background._run.dispatch import Dispatch
from fifo_background._run.in_threads import ThreadRuns, give
from fifo_background._run.loop_calls import LoopCalls
from fifo_background._run.on_loop import LoopRuns
from fifo_background._run.overview import Overview
from fifo_background._run.parking import Parking
from fifo_background._run.waits import Waits
from fifo_background._settings import Options, Settings
from fifo_background.exceptions import ExecutorClosed

__all__ = ("Runner",)

T = TypeVar("T")

# How many jobs start one after the other before the loop gets its turn.
BURST = 32

_OTHER_LOOP = "this executor belongs to another event loop"
_IN_EACH_LOOP = "Make an executor in each loop: `async with SerialExecutor() as executor:`"


class Runner:
    """Runs what its scheduler says, in one event loop."""

    # For tests of apps: each is called with a job that has become ready, and may give it another task.
    stand_ins: ClassVar[tuple[Callable[[Runner, Job[Any]], None], ...]] = ()

    def __init__(self, settings: Settings) -> None:
        self.settings: Settings = settings
        self.scheduler: Scheduler = Scheduler(settings)
        self.backend: Backend = cast(Backend, NoBackend())
        self.is_current: Callable[[], bool] = self.backend.is_current
        self.waits: Waits = Waits(self)
        self.closing: Closing = Closing(self)
        self.face: Any = None  # the SerialExecutor that users see
        self.tasks_alive: int = 0  # how many of the loop's tasks that run jobs are not over
        self.dispatch: Dispatch = Dispatch(self)
        self.loop_runs: LoopRuns = LoopRuns(self)
        self.thread_runs: ThreadRuns = ThreadRuns(self)
        self.parking: Parking = Parking(self)
        self.overview: Overview = Overview(self)
        self.changes: Changes = Changes(self)
        self.loop_calls: LoopCalls = LoopCalls(self)
        self._asked = False  # the loop is to pump in its next turn
        self.pumping: bool = False
        self._started = 0  # jobs since the loop had its turn

    # -- the loop it belongs to ------------------------------------------------------------------------------

    def bind(self) -> None:
        """Belong to the running event loop. Raises RuntimeError if there is none."""
        backend = backend_of(running_loop())
        backend.loop_ends = self.closing.loop_ends
        self.scheduler.clock = backend.clock
        self.is_current = backend.is_current
        self.backend = backend  # last: a KeyboardInterrupt in between does no harm

    def check_has_loop(self) -> None:
        """Raise RuntimeError unless it has an event loop, or the caller runs in one that it can belong to."""
        if type(self.backend) is NoBackend:
            try:
                self.bind()
            except RuntimeError:
                _ = self.backend.clock  # raises, and says what to write

    def check_in_loop(self) -> None:
        """Raise RuntimeError unless the caller runs in the executor's loop."""
        if not self.is_current():
            self.check_has_loop()
            if not self.is_current():
                raise RuntimeError(f"{_OTHER_LOOP}, and can be waited for only there. {_IN_EACH_LOOP}")

    # -- from any thread -------------------------------------------------------------------------------------

    def make_job(self, task: Any, options: Options) -> Job[Any]:
        """A job of this executor, which is not accepted yet."""
        job: Job[Any] = Job(task, self, options, self.scheduler.waiting)
        if options.keep == "latest":
            job._make_special().function = identity_of(task)
        return job

    def look_at(self, job: Job[Any]) -> None:
        """Decide how the task is called, when it is ready: somebody may replace `__call__` until then."""
        if self.stand_ins:
            for stand_in in self.stand_ins:
                stand_in(self, job)
        task: Any = job._task
        if is_direct(task):
            job._on_loop = task.is_async
            job._direct = True

    def submit(self, job: Job[Any], position: Position) -> None:
        """Put a job into the queue of its lane, in a position of its own: the named moment is here."""
        scheduler = self.scheduler
        if self.backend.ending:
            raise RuntimeError(f"{_OTHER_LOOP}, which has ended. {_IN_EACH_LOOP}")
        self.look_at(job)
        now = scheduler.clock()
        position.submit(job, now)  # before it is accepted: an executor that closes lets it run
        try:
            scheduler.accept(job, position.lane, now)
            self.post(position)
        except BaseException:
            if job._claim():  # a KeyboardInterrupt: nobody waits for a job that nobody knows
                job._end(CANCELLED)
                scheduler.inbox.extend((position, job))  # in this order; a position that is there is ignored
            self.pump_soon()  # one that waits for capacity may have been counted out for a refused one
            raise
        if scheduler.status is CLOSED and job._claim():  # closed just now: the loop does not start it
            job._end(DROPPED)
            self.post(job)
            raise ExecutorClosed(job.name)
        if not self.is_current() and self.backend.is_dead and job._claim():
            raise RuntimeError(f"{_OTHER_LOOP}, which has ended. {_IN_EACH_LOOP}")

    def post(self, entry: Job[Any] | Callback | Position) -> None:
        """Hand something to the loop. Waits for nothing."""
        self.scheduler.inbox.append(entry)
        self.pump_soon()

    def pump_soon(self) -> None:
        """`pump` in the loop's next turn."""
        if not self._asked:
            try:
                self._asked = True  # before the call: the loop may be quicker than this thread
                if not self.backend.work_soon(self._pump_in_turn):
                    self._asked = False
            except BaseException:
                self._asked = False
                raise

    def count_out(self, job: Job[Any]) -> None:
        self.scheduler.capacity.discard(job)

    def cancel_running(self, job: Job[Any]) -> bool:
        return self.loop_runs.cancel(job)

    def id_of(self, job: Job[Any]) -> str:
        return self.scheduler.names.of_job(job)

    def note_change(self) -> None:
        """Those who follow the executor hear of something; from any thread."""
        self.changes.noted = True
        if self.changes.waiters:
            self.pump_soon()

    def hear(self) -> None:
        """On the loop, before somebody looks: what has just been added or cancelled counts. Else nothing."""
        if self.scheduler.inbox and self.is_current():
            self.scheduler.drain()
            self.pump_soon()

    def picture_of(self, job: Job[Any]) -> JobRecord:
        self.hear()
        self.scheduler.history.compare_clocks(self.scheduler.clock())
        return of_job(self.scheduler, job)

    async def wait_for(self, job: Job[Any], raises: bool) -> None:
        await self.waits.wait_for(job, raises)

    # -- pumping ---------------------------------------------------------------------------------------------

    def _pump_in_turn(self) -> None:
        self._asked = False
        self._started = 0
        self.pump()

    def pump(self) -> None:
        """Do what others asked for, let lanes run, wake who waits, log. On the loop, outside of moves."""
        scheduler = self.scheduler
        if self.pumping or scheduler.moving:  # a run ends while it is being started: the pump there goes on
            return
        self.pumping = True
        try:
            while True:
                if scheduler.inbox:
                    scheduler.drain()
                if scheduler.woken:
                    self.dispatch.wake()
                if not scheduler.turns.due or self.backend.ending:
                    break
                if self._started >= BURST:
                    self.pump_soon()
                    break
                lane = scheduler.turns.start_next()
                if lane is None:  # what a thread posts meanwhile asks for a pump itself
                    break
                self._started += 1
                try:
                    self._run_lane(lane)
                except BaseException:  # a KeyboardInterrupt
                    if lane.occupied and lane.handle is None:
                        scheduler.turns.undo_start(lane)
                    raise
        finally:
            self.pumping = False
        if scheduler.woken or scheduler.effects or self.dispatch.watchers:
            self.dispatch.carry_out()
        self.changes.noted = True
        if self.changes.waiters:
            self.changes.wake()
        if scheduler.gone:
            gone = scheduler.gone.copy()
            scheduler.gone.clear()  # frees the users' objects, outside of moves
            for one in gone:
                if type(one) is Position and one.owner is not None and one.owner.has_ended:
                    one.owner.forget(one)  # leaves the collector no cycle of it and its request
        if self.parking.waiter is not None or (scheduler.queued and not scheduler.turns.occupied):
            self.parking.look()

    # -- running ---------------------------------------------------------------------------------------------

    def _run_lane(self, lane: Lane) -> None:
        """Run the jobs of a lane that `start_next` has just occupied."""
        job = lane.job
        if job is not None:
            position: Any = job._position  # a job that runs has one
            run, context = self.loop_runs.run(lane, position, job), position.context
        else:
            lane.trip = Trip()
            self.thread_runs.fill(lane, lane.trip)
            run, context = self.thread_runs.run(lane, lane.trip), Context()
        try:
            handle = self.backend.start(run, context)
        except BaseException as error:
            run.close()
            if lane.occupied:  # no task could be started: the job fails with that error
                self._could_not_start(lane, job, error)
            if isinstance(error, Exception):
                return
            raise  # a KeyboardInterrupt, perhaps in the first step of the task
        if handle is not None:
            lane.handle = handle
            self.tasks_alive += 1
            self.backend.when_over(handle, partial(self._task_over, lane))

    def _could_not_start(self, lane: Lane, job: Job[Any] | None, error: BaseException) -> None:
        if lane.trip is not None:
            self.thread_runs.fail(lane.trip, error)
        elif job is not None and not job.done():
            ends = CANCELLED if self.backend.ending else FAILED
            failure = None if self.backend.ending else self.scheduler.failure(error)
            self.scheduler.end(lane, job, ends, failure, None)
            return
        self.scheduler.turns.leave(lane)

    def _task_over(self, lane: Lane, handle: Handle) -> None:
        """The loop's task that ran jobs is over; somebody may have cancelled it before its first step."""
        self.tasks_alive -= 1
        if lane.handle is handle:
            job = lane.job
            if job is not None and job._own_state is RUNNING:
                task = job._task  # freed after the move  # noqa: F841
                _log.was_cancelled(job, self.settings.log_arguments)
                self.scheduler.end(lane, job, CANCELLED, None, None)
            else:
                self.scheduler.turns.leave(lane)
            self.pump_soon()
        if self.dispatch.watchers:
            self.dispatch.wake_watchers()

    def may_go_on(self) -> bool:
        """Whether the running task may run the next job of its position, which then counts as started.

        A job may have cancelled, as its last act, the task in which it runs: the next needs another.
        """
        if self._started >= BURST or self.backend.is_cancelling():
            return False
        self._started += 1
        return True

    def let_go(self, job: Job[Any]) -> None:
        """A claimed job does not hold a position of its request anymore, nor wait in its lane."""
        position, job._position = job._position, None
        if position is not None:
            runner = cast(Runner, job._runner)
            runner.scheduler.let_go(job, position)
            runner.pump_soon()

    # -- handing over ----------------------------------------------------------------------------------------

    def _ready(self, job: Job[Any], position: Position) -> None:
        self.scheduler.ready(job)
        trip = position.lane.trip
        if trip is not None and not job._on_loop:
            give(trip, job, position)

    def hand_over(self, jobs: Sequence[Job[Any]], held: Sequence[Job[Any]] = ()) -> None:
        """A move, and what follows: these jobs of a request are ready.

        `held`: those that were awaited before, come before them, and keep the context of that: nothing of
        the request has run yet. It is one move: a failure of these skips the others, too.
        """
        scheduler = self.scheduler
        if scheduler.moving:  # a finalizer drives a coroutine inside a move
            for job in (*held, *jobs):
                self.look_at(job)
            for taken in [job._position for job in (*held, *jobs) if job._position is not None]:
                taken.keep_context()
            scheduler.inbox.extend((*held, *jobs))
            return
        scheduler.moving = True
        joined = scheduler.joined
        try:
            if scheduler.inbox:
                scheduler._drain(joined)
            for job in jobs if not held else (*held, *jobs):
                position = job._position
                if position is None:  # cancelled a moment ago
                    continue
                if position.context is None or not (held or position.first or _runs(position)):
                    position.context = copy_context()  # one for each lane, as they run side by side
                self.look_at(job)
                self._ready(job, position)
            while joined:
                job = joined[0]
                if job._position is not None:
                    self._ready(job, job._position)
                joined.popleft()  # last: a KeyboardInterrupt in between does no harm
        finally:
            scheduler.moving = False
            if joined:
                scheduler.inbox.extendleft(reversed(joined))
                joined.clear()
        if not self.pumping:
            self._started = 0  # a turn of its own
        self.pump()


def _runs(position: Position) -> bool:
    """Whether a run is in the context of the position."""
    return position.lane.occupied and position.lane.first is position
