"""What users and the end do to lanes: pause, skip, retry, clear, close. On the loop, each one a move."""

from __future__ import annotations

from typing import Any

from fifo_background._core.job import Job
from fifo_background._core.lane import Lane
from fifo_background._core.position import Position
from fifo_background._core.scheduler import Scheduler
from fifo_background._core.state import CLOSED, CLOSING, DROPPED, SKIPPED, JobState

__all__ = (
    "clear_lane",
    "close",
    "drop_all",
    "drop_closed_heads",
    "pause",
    "resume",
    "retry_head",
    "skip_head",
)


def pause(scheduler: Scheduler, lane: Lane) -> None:
    lane.pause(scheduler.clock())


def resume(scheduler: Scheduler, lane: Lane) -> None:
    lane.resume()
    scheduler.turns.wants_turn(lane)


def skip_head(scheduler: Scheduler, lane: Lane, named: Job[Any] | None = None) -> Job[Any] | None:
    """Skip what is next, or `named`; None if nothing is next, or not that."""
    if lane.stopped is not None:
        (failed,) = lane.stopped.added
        if named is not None and named is not failed:
            return None
        forget_failed(scheduler, lane)
        return failed
    # one that a thread has started a moment ago is skipped no more: look again
    while (
        (job := lane.peek()) is not None and named in (None, job) and not scheduler.end_waiting(job, SKIPPED)
    ):
        pass
    return job if named in (None, job) else None


def go_on(scheduler: Scheduler, lane: Lane) -> Position | None:
    """A stopped lane goes on. Returns what a retry needs."""
    stopped = lane.go_on()
    if stopped is not None:
        scheduler.gone.append(stopped)
        scheduler.turns.wants_turn(lane)
    return stopped


def retry_head(scheduler: Scheduler, lane: Lane) -> Job[Any] | None:
    """Queue the failed task of a stopped lane again, as its head; None if it has not stopped."""
    position = go_on(scheduler, lane)
    if position is None:
        return None
    (failed,) = position.added
    position.added = []
    failure = failed._outcome
    job: Job[Any] = Job(failure.task, failed._runner, failed._options, scheduler.waiting)
    failure.task = None
    job._on_loop, job._position, job._name = failed._on_loop, position, failed._name
    special = job._make_special()
    special.retry_of = failed._number
    if failed._special is not None:
        special.around, special.function = failed._special.around, failed._special.function
    scheduler.accept(job, lane, scheduler.clock(), refuse=False)
    lane.put_first(position)
    scheduler.ready(job)
    return job


def clear_lane(scheduler: Scheduler, lane: Lane, state: JobState) -> list[Job[Any]]:
    """End all jobs that wait in a lane; it goes on if it had stopped."""
    forget_failed(scheduler, lane)
    jobs = [job for job in list(lane.waiting) if scheduler.end_waiting(job, state)]
    scheduler.turns.wants_turn(lane)
    return jobs


def forget_failed(scheduler: Scheduler, lane: Lane) -> None:
    """A stopped lane goes on without its failed job."""
    stopped = go_on(scheduler, lane)
    if stopped is not None:
        failure = stopped.added[0]._outcome
        scheduler.gone.append(failure.task)
        failure.task = None


def close(scheduler: Scheduler) -> list[Job[Any]]:
    """Take no new work; returns what is dropped for it.

    These are the jobs that nobody has awaited, and those behind a paused or stopped head.
    """
    scheduler.status = CLOSING
    dropped: list[Job[Any]] = []
    for lane in scheduler.lanes.all():
        for position in lane:
            position.arriving = False
            dropped += _drop_unawaited(scheduler, position.pending)
        dropped += drop_closed_head(scheduler, lane)
        scheduler.woken += scheduler.capacity.refuse(lane)
        scheduler.turns.wants_turn(lane)
    dropped += _drop_unawaited(scheduler, [job for job in list(scheduler.waiting) if not job._queued])
    scheduler.woken += scheduler.capacity.refuse(None)
    return dropped


def _drop_unawaited(scheduler: Scheduler, jobs: list[Job[Any]]) -> list[Job[Any]]:
    return [job for job in jobs if job._attached is None and scheduler.end_waiting(job, DROPPED)]


def drop_closed_head(scheduler: Scheduler, lane: Lane) -> list[Job[Any]]:
    """While the executor closes, nobody resumes a paused or stopped lane: what waits in it is dropped."""
    if lane.is_open:
        return []
    lane.resume()
    return clear_lane(scheduler, lane, DROPPED)


def drop_closed_heads(scheduler: Scheduler) -> list[Job[Any]]:
    return [job for lane in scheduler.lanes.all() for job in drop_closed_head(scheduler, lane)]


def drop_all(scheduler: Scheduler) -> list[Job[Any]]:
    """The end: drop everything that waits, in whatever lane or request; returns it."""
    scheduler.status = CLOSED  # before the look at what was submitted: a thread looks at it after that
    scheduler._drain()
    left = [job for lane in scheduler.lanes.all() for job in list(lane.waiting)]
    left += [job for job in list(scheduler.waiting) if not job._queued]
    for lane in scheduler.lanes.all():
        lane.resume()
        forget_failed(scheduler, lane)
        if lane.trip is not None:
            lane.trip.stop = True
        scheduler.woken += scheduler.capacity.refuse(lane)
    scheduler.woken += scheduler.capacity.refuse(None)
    return [job for job in left if scheduler.end_waiting(job, DROPPED)]
