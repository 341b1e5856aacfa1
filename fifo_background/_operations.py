"""What users and the end do to lanes: skip, retry, clear, close. All under the line's lock."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fifo_background._job import DROPPED, SKIPPED, Job, JobState
from fifo_background._lane import Lane
from fifo_background._line import CLOSED, CLOSING, Line
from fifo_background._room import Wanted
from fifo_background.exceptions import ExecutorClosed

__all__ = ("clear_lane", "close", "drop_all", "retry_head", "skip_head")


def skip_head(line: Line, lane: Lane) -> Job[Any] | None:
    job = lane.peek()
    if lane.failed is not None:
        lane.failed = None
        line.wants_turn(lane)
    elif job is not None:
        line.end_waiting(job, SKIPPED)
    return job


def retry_head(line: Line, lane: Lane) -> Job[Any] | None:
    """Put the failed task of a stopped lane in line again, as its head; None if it has not stopped."""
    place = lane.failed
    if place is None:
        return None
    failed = place.added.pop()
    lane.failed = None
    job: Job[Any] = Job(failed.task, failed.executor, failed.options)
    job.around = failed.around
    line.count_in(job, place)
    line.waiting += 1
    lane.put_first(place, line.clock())
    line.queue(place, [job])
    return job


def clear_lane(line: Line, lane: Lane, state: JobState) -> list[Job[Any]]:
    """End all jobs that wait in a lane; it goes on if it had stopped."""
    lane.failed = None
    jobs = [job for place in lane.places for job in place.waiting]
    for job in jobs:
        line.end_waiting(job, state)
    line.wants_turn(lane)
    return jobs


def close(line: Line) -> list[Job[Any]]:
    """Take no new work; returns what is dropped for it.

    These are the jobs that nobody has awaited, and those behind a paused or stopped head.
    """
    line.state = CLOSING
    dropped: list[Job[Any]] = []
    for lane in list(line.lanes.values()):
        if lane.open:
            unclaimed = [job for place in lane.places for job in place.added if job.batch is None]
            for job in unclaimed:
                line.end_waiting(job, DROPPED)
            dropped += unclaimed
        else:
            lane.paused = False
            dropped += clear_lane(line, lane, DROPPED)
        for place in lane.places:
            place.arriving = False
        _refuse(line, lane.wanted or ())
        line.wants_turn(lane)
    _refuse(line, line.room.wanted)
    return dropped


def _refuse(line: Line, wanted: Iterable[Wanted]) -> None:
    for one in wanted:
        one.error = ExecutorClosed(one.job.name)
        line.woken.append(one.waiter)


def drop_all(line: Line) -> list[Job[Any]]:
    """The end: drop what is ready to run; returns it."""
    line.state = CLOSED
    left = [job for lane in line.lanes.values() for place in lane.places for job in place.queued]
    for job in left:
        line.end_waiting(job, DROPPED)
    return left
