"""Runs the sync jobs of a lane: one trip to a worker thread runs a whole batch.

The loop gives the thread jobs (`fill`, `give`) that nothing stands between; the thread takes one after the
other, and decides nothing: whatever comes between them ends the trip.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from fifo_background import _log
from fifo_background._core.job import Job
from fifo_background._core.lane import Lane, Trip
from fifo_background._core.position import Position
from fifo_background._core.state import FAILED, RUNNING, SUCCEEDED
from fifo_background._run.backends.api import Handle
from fifo_background._run.backends.sniffio import set_library
from fifo_background._run.backends.threads import Threads
from fifo_background._run.call import call, drive, run_here
from fifo_background._run.current import current

if TYPE_CHECKING:
    from fifo_background._run.runner import Runner

__all__ = ("BATCH", "ThreadRuns", "give")

T = TypeVar("T")

# How many jobs a thread has in hand at most, without asking the loop.
BATCH = 4096

# How many ends the loop need not hear of: they keep what the jobs have returned.
UNHEARD = 32


class ThreadRuns:
    """The trips of one runner's lanes to worker threads."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._threads = Threads()

    async def call(self, function: Callable[[], T]) -> T:
        """Call one function in a thread."""
        return await self._threads.run(function, self._runner.backend, Trip())

    def fill(self, lane: Lane, trip: Trip) -> None:
        """Give the thread the sync jobs that are next in the lane, as far as nothing is between them."""
        scheduler, jobs, last = self._runner.scheduler, trip.jobs, trip.last
        position = lane.first if last is None else last._position
        job = None if position is None else position.first if last is None else last._next
        most = BATCH if not scheduler.turns.due or scheduler.slots.free > 0 else 1
        while position is not None and len(jobs) < most:
            if job is None:
                if position.held:
                    return
                position = position._next
                job = None if position is None else position.first
                continue
            timed = job._options.timeout is not None
            if job._on_loop or (timed and jobs):
                return
            trip.last, trip.reached = job, position.number
            jobs.append(job)
            if timed:
                trip.alone = True
                return
            job = job._next

    async def run(self, lane: Lane, trip: Trip) -> None:
        """What the loop's task of an occupied lane does while a thread runs the lane's jobs."""
        runner = self._runner
        first = trip.jobs[0] if trip.jobs else None
        timeout = None if first is None else first._options.timeout
        watch = None if first is None or timeout is None else self.watch(first, timeout)
        try:
            await self._threads.run(partial(self._work, trip, lane), runner.backend, trip)
        except Exception as error:  # no thread can be started: the job fails with that error
            self.fail(trip, error)
        finally:
            if watch is not None:
                watch.cancel()
            runner.scheduler.drain()
            runner.scheduler.turns.leave(lane)
            runner.pump()

    def fail(self, trip: Trip, error: BaseException) -> None:
        """The trip cannot be made: its first job fails."""
        if trip.jobs and (job := trip.jobs.popleft())._claim():
            scheduler = self._runner.scheduler
            job._end(FAILED, scheduler.failure(error))
            scheduler.inbox.append(job)

    def _work(self, trip: Trip, lane: Lane) -> None:
        """In a thread: run the jobs that the loop gives.

        Nothing is waited for: `jobs.popleft` and the claim are atomic, an end is left in the inbox.
        """
        scheduler, jobs = self._runner.scheduler, trip.jobs
        is_ending = self._runner.backend.is_ending_seen_from_thread
        waiting, inbox, clock = scheduler.waiting, scheduler.inbox, scheduler.clock
        here: Position | None = None
        now = clock()
        while jobs:
            job = jobs.popleft()
            position = job._position
            if position is None:  # cancelled
                continue
            if trip.stop or (
                # a job was added to the position that ran, and comes before this one; or others have a turn
                here is not None
                and (
                    (position is not here and here.has_added)
                    or lane.lent
                    or (scheduler.turns.due and scheduler.slots.free <= 0)
                )
            ):
                return
            here = position
            trip.job = job  # before the claim: at no moment it is neither waiting nor running
            try:
                waiting.remove(job)
            except KeyError:
                continue
            job._started = now
            job._own_state = RUNNING
            if job._counted_in is not None:
                scheduler.capacity.discard(job)
                inbox.append(lane)  # there is capacity
                if scheduler.capacity.sought:
                    self._runner.pump_soon()
            try:
                outcome = position.context.copy().run(_call_sync, job)  # type: ignore[union-attr]
            except BaseException as error:
                now = job._ended = clock()
                job._end(FAILED, scheduler.failure(error))
                trip.stop = True  # the loop decides what a failure means for the jobs behind it
            else:
                now = job._ended = clock()
                job._end(SUCCEEDED, outcome)
                outcome = None
            inbox.append(job)
            trip.job = None  # after that: at no moment it is in neither
            if trip.stop or job._waiters is not None or len(inbox) > UNHEARD:
                self._runner.pump_soon()
            if is_ending is not None and is_ending():
                trip.stop = True

    def watch(self, job: Job[Any], timeout: float) -> Handle:
        """A sync task cannot be stopped: name it when its time is over."""
        runner, scheduler = self._runner, self._runner.scheduler
        position = job._outermost._position  # None if it was cancelled just now, or that has ended
        owner, lane = (None, None) if position is None else (position.owner, position.lane)

        def ring() -> None:
            # its thread may start it, or end it, at any moment
            started, now = job._started, scheduler.clock()
            if job.done():
                return
            ran = 0.0 if started is None else now - started
            if ran >= timeout:
                behind = sum(
                    1 for one in list(scheduler.waiting) if one._position and one._position.lane is lane
                )
                _log.overdue(job, owner, ran, timeout, behind)
            else:  # its thread was late
                runner.backend.later(timeout - ran, ring)

        return runner.backend.later(timeout, ring)


def give(trip: Trip, job: Job[Any], position: Position) -> None:
    """Give the thread one more sync job, if it comes right after the last one that it was given."""
    before, earlier = job._previous, position._previous
    while before is None and earlier is not None:
        if earlier.held:
            return
        before, earlier = earlier.last, earlier._previous
    is_open = not (trip.stop or trip.alone) and len(trip.jobs) < BATCH
    if before is trip.last and is_open and job._options.timeout is None:
        trip.last = job
        trip.reached = position.number
        trip.jobs.append(job)


def _call_sync(job: Job[Any]) -> Any:
    set_library(None)
    current.set(job)
    task: Any = job._task
    if job._special is None:
        return task.func(*task.args, **task.kwargs)
    return drive(call(task, run_here, job._special.around))
