"""The only file that runs a task.

The way of one task: `hand_over` or `submit` makes it ready, `pump` lets the next lane run, `_run_async` or
`_run_in_thread` runs its jobs, and the waiters are woken.

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
from typing import Any, TypeVar, cast

import anyio

from fifo_background import _log
from fifo_background._core.job import Callback, Job
from fifo_background._core.lane import Lane, Trip
from fifo_background._core.operations import drop_all, drop_closed_heads
from fifo_background._core.position import GONE, Position
from fifo_background._core.scheduler import CLOSED, CLOSING, Failed, Held, Lost, Scheduler
from fifo_background._core.state import CANCELLED, DROPPED, FAILED, RUNNING, SUCCEEDED
from fifo_background._core.statistics import NOTHING_YET, ExecutorStatistics, snapshot
from fifo_background._run.backends.api import Backend, Handle, NoBackend, Waiter, backend_of, running_loop
from fifo_background._run.backends.sniffio import set_library
from fifo_background._run.backends.threads import Threads, in_loop_of_caller
from fifo_background._run.call import call, drive, identity_of, is_direct, overrides_call, run_here
from fifo_background._run.closing import Closing
from fifo_background._run.current import current
from fifo_background._run.groups import is_group_of
from fifo_background._run.waits import Waits
from fifo_background._settings import Options, Settings
from fifo_background.exceptions import ExecutorClosed

__all__ = ("Runner",)

T = TypeVar("T")

# How many jobs start one after the other before the loop gets its turn.
BURST = 32
# How often in a row a cancelled parked task is replaced.
PARKS = 8
# How many jobs a thread has in hand at most, without asking the loop.
BATCH = 4096

_OTHER_LOOP = "this executor belongs to another event loop"
_IN_EACH_LOOP = "Make an executor in each loop: `async with SerialExecutor() as executor:`"


class Runner:
    """Runs what its scheduler says, in one event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings: Settings = settings
        self.scheduler: Scheduler = Scheduler(settings)
        self.backend: Backend = cast(Backend, NoBackend())
        self.is_current: Callable[[], bool] = self.backend.is_current
        self.waits: Waits = Waits(self)
        self.closing: Closing = Closing(self)
        self.watchers: list[Any] = []  # waiters of who closes: woken when something has ended
        self.face: Any = None  # the SerialExecutor that users see
        self.tasks_alive: int = 0  # how many of the loop's tasks that run jobs are not over
        self._threads = Threads()
        self._asked = False  # the loop is to pump in its next turn
        self._pumping = False
        self._parked: Waiter | None = None
        self._parks_left: int = 0  # until the next pump: see `_not_parked`
        self._started = 0  # jobs since the loop had its turn
        self._picture: ExecutorStatistics = NOTHING_YET

    # -- the loop it belongs to ------------------------------------------------------------------------------

    def bind(self) -> None:
        """Belong to the running event loop. Raises RuntimeError if there is none."""
        backend = backend_of(running_loop())
        backend.loop_ends = self._loop_ends
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

    def on_loop(self, function: Callable[[], T], what: str) -> T:
        """A move of the loop's; a worker thread waits for it.

        Raises RuntimeError in other threads, and where the caller has interrupted a move.
        """

        def move() -> T:
            self.check_in_loop()
            if self.scheduler.moving:
                raise RuntimeError(
                    f"{what} was called from a finalizer or signal handler that interrupted the executor. "
                    f"Hand the call to the loop: loop.call_soon_threadsafe({what})"
                )
            self.scheduler.drain()
            try:
                return self._in_move(function)
            finally:
                self.pump_soon()
                self._wake_watchers()

        return move() if self.is_current() else in_loop_of_caller(move, what)

    def _in_move(self, function: Callable[[], T]) -> T:
        self.scheduler.moving = True
        try:
            return function()
        finally:
            self.scheduler.moving = False

    def statistics(self) -> ExecutorStatistics:
        """A frozen picture of the lanes at this moment; the last one if the caller has interrupted a move."""
        if self.is_current() and self.scheduler.moving:
            return self._picture

        def look() -> ExecutorStatistics:
            self.check_in_loop()
            if self.scheduler.inbox:
                self.scheduler.drain()
                self.pump_soon()
            self._picture = snapshot(self.scheduler, self.waits.of_jobs)
            return self._picture

        return look() if self.is_current() else in_loop_of_caller(look, "executor.statistics")

    # -- from any thread -------------------------------------------------------------------------------------

    def make_job(self, task: Any, options: Options) -> Job[Any]:
        """A job of this executor, which is not accepted yet."""
        job: Job[Any] = Job(task, self, options, self.scheduler.waiting)
        if options.keep == "latest":
            job.make_special().function = identity_of(task)
        return job

    def look_at(self, job: Job[Any]) -> None:
        """Decide how the task is called, when it is ready: somebody may replace `__call__` until then."""
        task: Any = job.task
        if is_direct(task):
            job.on_loop = task.is_async
            job.direct = True

    def submit(self, job: Job[Any], position: Position) -> None:
        """Put a job into the queue of its lane, in a position of its own: the named moment is here."""
        scheduler = self.scheduler
        if self.backend.ending:
            raise RuntimeError(f"{_OTHER_LOOP}, which has ended. {_IN_EACH_LOOP}")
        self.look_at(job)
        position.submit(job, scheduler.clock())  # before it is accepted: an executor that closes lets it run
        try:
            scheduler.accept(job, position.lane)
            self.post(position)
        except BaseException:
            if job.claim():  # a KeyboardInterrupt: nobody waits for a job that nobody knows
                job.end(CANCELLED)
                scheduler.inbox.extend((position, job))  # in this order; a position that is there is ignored
            self.pump_soon()  # one that waits for capacity may have been counted out for a refused one
            raise
        if scheduler.status is CLOSED and job.claim():  # closed just now, which did not see the job
            job.end(DROPPED)
            self.post(job)
            raise ExecutorClosed(job.name)
        if not self._asked and self.backend.is_dead and job.claim():
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
        """Ask for a running async job to be cancelled. False if it runs in a thread, or inside a job."""
        if job.position is None or not job.on_loop or not _is_stoppable(job):
            return False
        # in the loop's next turn: then the run is suspended in the job, or past it
        return self.backend.soon(partial(self._cancel_running, job))

    def _cancel_running(self, job: Job[Any]) -> None:
        lane = None if job.position is None else job.position.lane
        if lane is not None and lane.job is job and lane.handle is not None:
            lane.stopping = True
            lane.handle.cancel()

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
        if self._pumping or scheduler.moving:  # a run ends while it is being started: the pump there goes on
            return
        self._pumping = True
        try:
            while True:
                if scheduler.inbox:
                    scheduler.drain()
                if scheduler.woken:
                    self._wake()
                if not scheduler.turns or self.backend.ending:
                    break
                if self._started >= BURST:
                    self.pump_soon()
                    break
                lane = scheduler.start_next()
                if lane is not None:
                    self._started += 1
                    try:
                        self._run_lane(lane)
                    except BaseException:  # a KeyboardInterrupt
                        if lane.occupied and lane.handle is None:
                            scheduler.undo_start(lane)
                        raise
                elif not scheduler.inbox:
                    break
        finally:
            self._pumping = False
        if scheduler.effects or self.watchers or scheduler.woken:
            self._tidy()
        if scheduler.gone:
            gone, scheduler.gone = scheduler.gone, []  # frees the users' objects, outside of moves
            for one in gone:
                if type(one) is not Position or one.state is not GONE or one.added:
                    continue
                if one.owner is None or one.owner.has_ended:
                    one.owner = one.context = None  # leaves the collector no cycle of it and its request
        if scheduler.queued or self._parked is not None:
            self._parks_left = PARKS
            self._park()

    def _park(self) -> None:
        """While jobs are queued and none runs, a task of ours waits: it is told if the loop ends."""
        idle = bool(self.scheduler.queued) and not self.scheduler.occupied
        if idle and self._parked is None and not self.backend.ending:
            waiter = self._parked = self.backend.waiter()

            async def wait() -> None:
                await waiter

            run = wait()
            try:
                self.backend.when_over(self.backend.start(run, Context()), self._not_parked)
            except RuntimeError:  # the loop has ended just now
                run.close()
                self._parked = None
        elif not idle and self._parked is not None:
            self.backend.wake(self._parked)

    def _not_parked(self, task: Handle) -> None:
        """The parked task is over; perhaps somebody has cancelled it, as all others of the loop.

        Somebody may cancel tasks until there are none, and must come to an end.
        """
        self._parked = None
        if self.scheduler.queued and self._parks_left:
            self._parks_left -= 1
            self._park()

    def _tidy(self) -> None:
        """What comes after moves. What is said comes last, as a logging handler may do anything."""
        scheduler = self.scheduler
        if scheduler.woken:
            self._wake()
        if scheduler.effects:
            self._carry_out()
        if self.watchers:
            self._wake_watchers()

    def _wake(self) -> None:
        scheduler, backend = self.scheduler, self.backend
        woken, scheduler.woken = scheduler.woken, []
        for waiter in woken:
            if type(waiter) is Callback:
                backend.soon(partial(self._call_back, waiter))
            else:
                backend.wake(waiter)

    def _call_back(self, callback: Callback) -> None:
        try:
            callback()
        except BaseException as error:
            _log.callback_failed(callback.job, callback.function, error)
            known = callback.job.outcome.error if callback.job.own_state is FAILED else None
            if error is not known and issubclass(type(error), (KeyboardInterrupt, SystemExit)):
                self.backend.reraise(error)

    def _wake_watchers(self) -> None:
        watchers, self.watchers = self.watchers, []
        for waiter in watchers:
            self.backend.wake(waiter)

    def _carry_out(self) -> None:
        effects, self.scheduler.effects = self.scheduler.effects, []
        for effect in effects:
            if type(effect) is Held:
                self._look_again(effect.lane, effect.delay)
        for effect in effects:
            if type(effect) is Failed:
                self._say_failed(effect)
            elif type(effect) is Lost:
                _log.lost(effect.position, effect.jobs, self.settings.hold_timeout)
            elif type(effect) is not Held:
                _log.unrun(effect.job, effect.parts, effect.position.owner)  # type: ignore[union-attr]

    def _say_failed(self, effect: Failed) -> None:
        job, position = effect.job, effect.position
        # of these servers and task groups say nothing: they are always logged
        unseen: tuple[type[BaseException], ...] = (self.backend.cancelled, GeneratorExit)
        if job.on_loop:
            unseen += (KeyboardInterrupt, SystemExit)
        reported = job.outcome.reported or (
            effect.handed_over and not issubclass(type(job.outcome.error), unseen)
        )
        stopped = position.lane.key if effect.stopped else _log.NO_LANE
        _log.failed(job, position.owner, position.context, effect.skipped, stopped, with_error=not reported)

    def _look_again(self, lane: Lane, delay: float) -> None:
        """The head of the lane is held: look again when its time is over."""

        def ring() -> None:
            lane.timer = None
            self.scheduler.wants_turn(lane)
            self.pump()

        if not lane.occupied and lane.listed:
            if lane.timer is not None:
                lane.timer.cancel()
            lane.timer = self.backend.later(delay, ring)
            lane.rings = self.scheduler.clock() + delay

    # -- running ---------------------------------------------------------------------------------------------

    def _run_lane(self, lane: Lane) -> None:
        """Run the jobs of a lane that `start_next` has just occupied."""
        job = lane.job
        if job is not None:
            position: Position = job.position  # type: ignore[assignment]
            run, context = self._run_async(lane, position, job), position.context
        else:
            lane.trip = Trip()
            self._fill(lane, lane.trip)
            run, context = self._run_in_thread(lane, lane.trip), Context()
        try:
            handle = self.backend.start(run, context)  # type: ignore[arg-type]
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
            self._fail_trip(lane.trip, error)
        elif job is not None and not job.done():
            ends = CANCELLED if self.backend.ending else FAILED
            failure = None if self.backend.ending else self.scheduler.failure(error)
            self.scheduler.end(lane, job, ends, failure, False)
            return
        self.scheduler.leave(lane)

    def _task_over(self, lane: Lane, handle: Handle) -> None:
        """The loop's task that ran jobs is over; somebody may have cancelled it before its first step."""
        self.tasks_alive -= 1
        if lane.handle is handle:
            job = lane.job
            if job is not None and job.own_state is RUNNING:
                task = job.task  # freed after the move  # noqa: F841
                _log.was_cancelled(job, None if job.position is None else job.position.owner)
                self.scheduler.end(lane, job, CANCELLED, None, False)
            else:
                self.scheduler.leave(lane)
            self.pump_soon()
        if self.watchers:
            self._wake_watchers()

    async def _run_async(self, lane: Lane, position: Position, job: Job[Any] | None) -> None:
        """Run the consecutive async jobs of one position, in its context."""
        scheduler = self.scheduler
        while job is not None:
            current.set(job)
            task: Any = job.task
            try:
                if job.direct and job.special is None and job.options.timeout is None:
                    outcome = await task.func(*task.args, **task.kwargs)
                else:
                    outcome = await self._call(job)
            except BaseException as error:
                job = self._ended_badly(lane, job, error)
            else:
                # a job may have cancelled, as its last act, the task in which it runs: the next needs another
                more = position.first or position.added or scheduler.inbox
                goes_on = self._started < BURST and not (more and self.backend.is_cancelling())
                job = scheduler.end(lane, job, SUCCEEDED, outcome, goes_on)
            self._started += 1
            task = outcome = None
            if scheduler.woken or scheduler.effects:
                self._tidy()
        unfinished = lane.first is position
        del lane, position  # a traceback that holds this frame holds no request
        if self._pumping:
            return
        if unfinished:  # the context of the position is ours until this task is over
            self.pump_soon()
        else:
            self.pump()

    def _ended_badly(self, lane: Lane, job: Job[Any], error: BaseException) -> Job[Any] | None:
        """Record how a job ended. Returns the next one, unless this task must await nothing more."""
        scheduler = self.scheduler
        cancelled = self._is_cancellation(error)
        if cancelled and (lane.stopping or self.backend.ends_by(error)):
            _log.was_cancelled(job, None if job.position is None else job.position.owner)
            return scheduler.end(lane, job, CANCELLED, None, False)
        after = scheduler.end(lane, job, FAILED, scheduler.failure(error), not cancelled)
        if issubclass(type(error), (KeyboardInterrupt, SystemExit)):
            self.backend.reraise(error)
        return after

    def _is_cancellation(self, error: BaseException) -> bool:
        cancelled = self.backend.cancelled
        return issubclass(type(error), (cancelled, GeneratorExit)) or is_group_of(error, cancelled)

    async def _call(self, job: Job[Any]) -> Any:
        """Call a task that something is around: a span, an instrumentation, its timeout."""
        timeout, task = job.options.timeout, cast(Any, job.task)
        around = None if job.special is None else job.special.around
        if timeout is None:
            return await call(task, self._in_thread, around)
        if not _is_stoppable(job):
            watch = self._watch(job, timeout)
            try:
                return await call(task, self._in_thread, around)
            finally:
                watch.cancel()
        with anyio.fail_after(timeout):
            return await call(task, self._in_thread, around)

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await self._threads.run(function, self.backend, Trip())

    async def run_part(self, job: Job[Any]) -> None:
        """Run a claimed job inside the running one; raises its error, which the outer task reports."""
        self.let_go(job)
        job.runner = self
        job.own_state = RUNNING
        try:
            outcome = await self._call(job)
        except BaseException as error:
            if self._is_cancellation(error):
                job.end(CANCELLED)
            else:
                failure = self.scheduler.failure(error)
                failure.reported = True  # by the outer task, if it does not handle it
                job.end(FAILED, failure)
            raise
        else:
            job.end(SUCCEEDED, outcome)
        finally:
            self.scheduler.tell_end(job)
            self.pump_soon()

    def let_go(self, job: Job[Any]) -> None:
        """A claimed job does not hold a position of its request anymore, nor wait in its lane."""
        position, job.position = job.position, None
        if position is not None:
            runner = cast(Runner, job.runner)
            runner.scheduler.let_go(job, position)
            runner.pump_soon()

    # -- in threads ------------------------------------------------------------------------------------------

    def _fill(self, lane: Lane, trip: Trip) -> None:
        """Give the thread the sync jobs that are next in the lane, as far as nothing is between them."""
        jobs, last = trip.jobs, trip.last
        position = lane.first if last is None else last.position
        job = None if position is None else position.first if last is None else last.next
        most = BATCH if not self.scheduler.turns or self.scheduler.slots > 0 else 1
        while position is not None and len(jobs) < most:
            if job is None:
                if position.held:
                    return
                position = position.next
                job = None if position is None else position.first
                continue
            timed = job.options.timeout is not None
            if job.on_loop or (timed and jobs):
                return
            trip.last, trip.reached = job, position.number
            jobs.append(job)
            if timed:
                trip.alone = True
                return
            job = job.next

    async def _run_in_thread(self, lane: Lane, trip: Trip) -> None:
        first = trip.jobs[0] if trip.jobs else None
        timeout = None if first is None else first.options.timeout
        watch = None if first is None or timeout is None else self._watch(first, timeout)
        try:
            await self._threads.run(partial(self._work, lane, trip), self.backend, trip)
        except Exception as error:  # no thread can be started: the job fails with that error
            self._fail_trip(trip, error)
        finally:
            if watch is not None:
                watch.cancel()
            self.scheduler.drain()
            self.scheduler.leave(lane)
            self.pump()

    def _fail_trip(self, trip: Trip, error: BaseException) -> None:
        if trip.jobs and (job := trip.jobs.popleft()).claim():
            job.end(FAILED, self.scheduler.failure(error))
            self.scheduler.inbox.append(job)

    def _work(self, lane: Lane, trip: Trip) -> None:
        """In a thread: run the jobs that the loop gives.

        Nothing is waited for: `jobs.popleft` and the claim are atomic, an end is left in the inbox.
        """
        scheduler, jobs, is_ending = self.scheduler, trip.jobs, self.backend.is_ending_seen_from_thread
        waiting, inbox, clock = scheduler.waiting, scheduler.inbox, scheduler.clock
        here: Position | None = None
        while jobs:
            job = jobs.popleft()
            position = job.position
            if position is None:  # cancelled
                continue
            if trip.stop or (
                # a job was added to the position that ran, and comes before this one; or others have a turn
                here is not None
                and (
                    (position is not here and here.has_added)
                    or lane.lent
                    or (scheduler.turns and scheduler.slots <= 0)
                )
            ):
                return
            here = position
            trip.since = clock()
            trip.job = job  # before the claim: at no moment it is neither waiting nor running
            try:
                waiting.remove(job)
            except KeyError:
                continue
            job.own_state = RUNNING
            if job.counted_in is not None:
                scheduler.capacity.discard(job)
                inbox.append(lane)  # there is capacity
            try:
                outcome = position.context.copy().run(_call_sync, job)  # type: ignore[union-attr]
            except BaseException as error:
                job.end(FAILED, scheduler.failure(error))
                trip.stop = True  # the loop decides what a failure means for the jobs behind it
            else:
                job.end(SUCCEEDED, outcome)
                outcome = None
            trip.job = None
            inbox.append(job)
            if trip.stop or job.waiters is not None or scheduler.capacity.sought:
                self.pump_soon()
            if is_ending is not None and is_ending():
                trip.stop = True

    def _watch(self, job: Job[Any], timeout: float) -> Handle:
        """A sync task cannot be stopped: name it when its time is over."""
        scheduler, position = self.scheduler, cast(Position, job.position)
        owner, lane = position.owner, position.lane

        def ring() -> None:
            since = lane.since if lane.trip is None else lane.trip.since
            ran = scheduler.clock() - since
            if job.own_state is RUNNING and ran >= timeout:
                behind = sum(
                    1 for one in list(scheduler.waiting) if one.position and one.position.lane is lane
                )
                _log.overdue(job, owner, ran, timeout, behind)
            elif not job.done():  # its thread was late
                self.backend.later(timeout - ran if job.own_state is RUNNING else timeout, ring)

        return self.backend.later(timeout, ring)

    # -- handing over ----------------------------------------------------------------------------------------

    def hand_over(self, jobs: Sequence[Job[Any]]) -> None:
        """A move, and what follows: these jobs of a request are ready."""
        scheduler = self.scheduler
        if scheduler.moving:  # a finalizer drives a coroutine inside a move
            for job in jobs:
                self.look_at(job)
            for taken in [job.position for job in jobs if job.position is not None]:
                taken.context = taken.context or copy_context()
            scheduler.inbox.extend(jobs)
            return
        scheduler.moving = True
        try:
            joined: list[Job[Any]] = []  # added while these were handed over: they come after them
            if scheduler.inbox:
                scheduler._drain(joined)
            for job in (*jobs, *joined):
                position = job.position
                if position is None:  # cancelled a moment ago
                    continue
                self.look_at(job)
                lane = position.lane
                if position.context is None or (
                    position.first is None and not (lane.occupied and lane.first is position)
                ):
                    position.context = copy_context()  # one for each lane, as they run side by side
                scheduler.ready(job)
                if lane.trip is not None and not job.on_loop:
                    _give(lane.trip, job, position)
        finally:
            scheduler.moving = False
        if not self._pumping:
            self._started = 0  # a turn of its own
        self.pump()

    # -- the end ---------------------------------------------------------------------------------------------

    def _loop_ends(self) -> None:
        self.stop("the event loop ended: dropped")

    def stop(self, why: str) -> list[Lane]:
        """Drop what waits, cancel what runs, and say so; returns the lanes whose task was cancelled."""
        scheduler = self.scheduler
        scheduler.drain()
        facts = _log.facts_of(scheduler.waiting)
        left = self._in_move(lambda: drop_all(scheduler))
        _log.not_run(why, left, facts)
        cancelled = []
        for lane in list(scheduler.occupied):
            job = lane.running
            if lane.trip is None:
                lane.stopping = True
                cancelled.append(lane)
                if not self.backend.ending:
                    cast(Handle, lane.handle).cancel()
            elif job is not None:
                _log.runs_on(job)
        self.pump()
        return cancelled

    def drop_closed_heads(self) -> None:
        """While closing: what a lane that was paused keeps is dropped, at once."""
        scheduler = self.scheduler
        if scheduler.status is CLOSING and not all(lane.is_open for lane in scheduler.all_lanes()):
            facts = _log.facts_of(scheduler.waiting)
            dropped = self._in_move(lambda: drop_closed_heads(scheduler))
            _log.not_run("shutdown: a paused or stopped lane dropped", dropped, facts)


def _give(trip: Trip, job: Job[Any], position: Position) -> None:
    """Give the thread one more sync job, if it comes right after the last one that it was given."""
    before, earlier = job.previous, position.previous
    while before is None and earlier is not None:
        if earlier.held:
            return
        before, earlier = earlier.last, earlier.previous
    is_open = not (trip.stop or trip.alone) and len(trip.jobs) < BATCH
    if before is trip.last and is_open and job.options.timeout is None:
        trip.last, trip.reached = job, position.number
        trip.jobs.append(job)


def _is_stoppable(job: Job[Any]) -> bool:
    """Whether a cancel can end the running job: not what runs in a thread."""
    task: Any = job.task
    return isinstance(task, str) or overrides_call(task) or getattr(task, "is_async", True)


def _call_sync(job: Job[Any]) -> Any:
    set_library(None)
    current.set(job)
    task: Any = job.task
    if job.special is None:
        return task.func(*task.args, **task.kwargs)
    return drive(call(task, run_here, job.special.around))
