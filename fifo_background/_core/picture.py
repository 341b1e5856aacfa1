"""Makes the picture of a job: one that waits or runs, or one that has ended."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator
from datetime import datetime, timezone
from itertools import islice
from typing import TYPE_CHECKING, Any

from fifo_background._core.history import NOTHING_MORE, Record, error_of
from fifo_background._core.job import Job
from fifo_background._core.job_record import Blocker, JobRecord, LaneName
from fifo_background._core.lane import Lane, plain_key
from fifo_background._core.plain import LONGEST_TEXT
from fifo_background._core.position import IN_QUEUE, Owner, Position
from fifo_background._core.special import Progress
from fifo_background._core.state import FAILED, PENDING, QUEUED, JobState

if TYPE_CHECKING:
    from fifo_background._core.scheduler import Scheduler

__all__ = ("of_job", "of_jobs", "of_record", "waiting_in")

# How far into a queue is looked to count the jobs ahead of one.
MOST_AHEAD = 1000


def of_record(scheduler: Scheduler, record: Record) -> JobRecord:
    """The picture of a job that has ended."""
    more = record.more or NOTHING_MORE
    return _picture(
        scheduler,
        number=record.number,
        name=record.name,
        key=record.key,
        state=record.state,
        behind=record.behind,
        times=(record.added, record.started, record.ended),
        progress=more.progress,
        request=record.request,
        retry_of=more.retry_of,
        result=more.result,
        result_omitted=more.omitted,
        error=more.error,
    )


def of_job(scheduler: Scheduler, job: Job[Any]) -> JobRecord:
    """The picture of a job of this executor."""
    return of_jobs(scheduler, (job,))[0]


def of_jobs(scheduler: Scheduler, jobs: Collection[Job[Any]]) -> list[JobRecord]:
    """The pictures of several jobs at one moment: each of their lanes is looked through once."""
    ahead = _ahead_of(jobs)
    return [_of_job(scheduler, job, ahead.get(job)) for job in jobs]


def _of_job(scheduler: Scheduler, job: Job[Any], ahead: int | None) -> JobRecord:
    position = job._position  # before the record: that is there when this is None
    if position is None and job._record is not None:
        return of_record(scheduler, job._record)
    scheduler.names.of_job(job)
    special, owner = job._special, None if position is None else position.owner
    own = job._own_state  # read once: another thread may move it on
    ended = None
    if own is not None and own.ended:
        ended = job._ended
        if ended is None and position is not None:  # just now: the loop has not heard of it
            ended = scheduler.clock()
    return _picture(
        scheduler,
        number=job._number,
        name=job.name,
        key=getattr(job, "_key", None) if position is None else position.lane.key,
        state=own or (QUEUED if job._queued else PENDING),
        behind=scheduler.history.behind,
        times=(job._added, None if own is None else job._started, ended),
        progress=None if special is None else special.progress,
        request=None if owner is None else owner.label,
        retry_of=None if special is None else special.retry_of,
        ahead=None if own is not None else ahead,
        blocked_by=None if position is None or own is not None else blocker_of(scheduler, job, position),
        error=None if own is not FAILED else error_of(job._outcome.error),
    )


def _picture(
    scheduler: Scheduler,
    *,
    number: int,
    name: str,
    key: Hashable,
    state: JobState,
    behind: float,
    times: tuple[float, float | None, float | None],
    progress: Progress | None,
    request: str | None,
    retry_of: int | None,
    ahead: int | None = None,
    blocked_by: Blocker | None = None,
    result: Any = None,
    result_omitted: str | None = None,
    error: tuple[str, str] | None = None,
) -> JobRecord:
    added, started, ended = times
    until = scheduler.clock() if ended is None else ended
    ran = None if started is None or (ended is None and state.ended) else until - started
    names = scheduler.names
    return JobRecord(
        id=names.id_of(number),
        number=number,
        name=name[:LONGEST_TEXT],
        lane=plain_key(key),
        lane_name=LaneName(*names.of_lane(key)),
        state=state,
        added_at=datetime.fromtimestamp(behind + added, timezone.utc),
        started_at=None if started is None else datetime.fromtimestamp(behind + started, timezone.utc),
        ended_at=None if ended is None else datetime.fromtimestamp(behind + ended, timezone.utc),
        waited=None if started is None and ended is None and state.ended else (started or until) - added,
        ran=ran,
        ahead=None if ahead is None else min(ahead, MOST_AHEAD),
        ahead_more=ahead is not None and ahead > MOST_AHEAD,
        blocked_by=blocked_by,
        progress=progress,
        attempts=0 if started is None else 1,
        request=None if request is None else request[:LONGEST_TEXT],
        retry_of=None if retry_of is None else names.id_of(retry_of),
        result=result,
        result_omitted=result_omitted,
        error=error,
    )


def waiting_in(lane: Lane) -> Iterator[Job[Any]]:
    """What waits in a lane, in order; from any thread, as it changes nothing."""
    position = lane.first
    while position is not None:
        job = position.first
        while job is not None:
            if job._own_state is None:
                yield job
            job = job._next
        for added in tuple(position.added):
            if added._own_state is None and not added._queued and added._position is position:
                yield added
        position = position._next


def _ahead_of(jobs: Iterable[Job[Any]]) -> dict[Job[Any], int]:
    """How many jobs run or stand before each of those that wait; more than `MOST_AHEAD` if far behind."""
    by_lane: dict[Lane, set[Job[Any]]] = {}
    for job in jobs:
        position = job._position
        if position is not None and position.state is IN_QUEUE and job._own_state is None:
            by_lane.setdefault(position.lane, set()).add(job)
    ahead: dict[Job[Any], int] = {}
    for lane, sought in by_lane.items():
        place = 0 if lane.running is None and lane.stopped is None else 1
        for job in islice(waiting_in(lane), MOST_AHEAD + 1):
            if job in sought:
                ahead[job] = place
                sought.remove(job)
                if not sought:
                    break
            place += 1
        ahead.update(dict.fromkeys(sought, place))
    return ahead


def _name_of(owner: Owner) -> str:
    return str(owner)[:LONGEST_TEXT]


def blocker_of(scheduler: Scheduler, job: Job[Any], position: Position) -> Blocker | None:
    """What keeps a job that waits from starting, or None if it starts in the loop's next turn."""
    now, lane, owner = scheduler.clock(), position.lane, position.owner
    if position.state is not IN_QUEUE:
        return None if owner is None else Blocker("request", None, _name_of(owner), now - job._added)
    running, stopped = lane.running, lane.stopped
    if running is not None and running is not job:  # it may start just now
        started = now if running._started is None else running._started
        return Blocker("job", scheduler.names.of_job(running), running.name, now - started)
    if stopped is not None:
        failed = stopped.added[0]
        ended = now if failed._record is None else failed._record.ended
        return Blocker("failed", scheduler.names.of_job(failed), failed.name, now - ended)
    if lane.paused:
        return Blocker("paused", None, None, now - lane.paused_at)
    head = lane.first
    if head is not None and head.first is None and head.owner is not None:
        return Blocker("request", None, _name_of(head.owner), now - head.taken)
    if scheduler.slots.free <= 0 and not lane.occupied:
        return Blocker("slot", None, None, now - job._added)
    return None
