"""Pictures of lanes: past, now and next."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from fifo_background._core.history import Record
from fifo_background._core.job import Job
from fifo_background._core.job_record import JobRecord, LaneName, rounded
from fifo_background._core.lane import Lane, plain_key
from fifo_background._core.picture import of_job, waiting_in
from fifo_background._core.state import FAILED, JobState

if TYPE_CHECKING:
    from fifo_background._core.scheduler import Scheduler

__all__ = ("LaneList", "LaneRecord", "Recent", "Run", "age_of_head", "of_lane", "urgency")

# Ended jobs that a lane's picture shows, and runs of waiting ones; how far into the queue is looked for them.
_RECENT, _RUNS, _FAR = 21, 3, 1000


@dataclass(frozen=True, slots=True)
class Run:
    """Waiting jobs of one function that stand one behind the other; they are counted from 1."""

    first: int
    last: int
    name: str


class Recent(NamedTuple):
    """How one job of a lane has ended."""

    state: JobState
    ran: float | None
    """Seconds from its start to its end; None if it has not started."""


@dataclass(frozen=True, slots=True)
class LaneRecord:
    """One lane at one moment."""

    key: Hashable
    lane_name: LaneName
    state: str
    """"stopped", "held", "paused", "busy" or "idle"."""
    running: JobRecord | None
    head: JobRecord | None
    """The job that is next; of a stopped lane, the failed one."""
    head_for: float | None
    """Seconds since the head was added."""
    held_by: str | None
    """The request whose position keeps the head from starting."""
    waiting: int
    """How many jobs wait in its queue; above 1,000 only those that are ready count."""
    next: tuple[Run, ...]
    """The first of those that stand behind the running job or the head."""
    more: int
    """How many stand behind these."""
    recent: tuple[Recent, ...]
    ended: int
    """How many of the jobs in the history were in this lane."""
    failed: int
    waited: tuple[float, float] | None
    """Median and 95th percentile of the seconds that the recent jobs waited."""
    ran: tuple[float, float] | None

    def to_dict(self, *, results: bool = False, errors: bool = False) -> dict[str, Any]:
        """As JSON; see `JobRecord.to_dict`."""
        return {
            **self.lane_name.to_dict(),
            "state": self.state,
            "running": None if self.running is None else self.running.to_dict(results=results, errors=errors),
            "head": None if self.head is None else self.head.to_dict(results=results, errors=errors),
            "head_for": None if self.head_for is None else round(self.head_for, 3),
            "held_by": self.held_by,
            "waiting": self.waiting,
            "next": [{"from": run.first, "to": run.last, "function": run.name} for run in self.next],
            "more": self.more,
            "recent": [{"state": one.state.value, "ran": rounded(one.ran)} for one in self.recent],
            "ended": self.ended,
            "failed": self.failed,
            "waited": _percentiles_dict(self.waited),
            "ran": _percentiles_dict(self.ran),
        }


@dataclass(frozen=True, slots=True)
class LaneList:
    """Lanes, those first that need a person most."""

    items: tuple[LaneRecord, ...]
    total: int
    """How many there are."""
    oldest: LaneRecord | None
    """The lane whose head waits for the longest time."""


def _ran(record: Record) -> float | None:
    return None if record.started is None else record.ended - record.started


def _percentiles_dict(values: tuple[float, float] | None) -> dict[str, float] | None:
    return None if values is None else {"p50": round(values[0], 3), "p95": round(values[1], 3)}


def _percentiles(values: list[float]) -> tuple[float, float] | None:
    if not values:
        return None
    values.sort()
    return values[len(values) // 2], values[min(len(values) - 1, len(values) * 95 // 100)]


def _is_held(lane: Lane) -> bool:
    head = lane.first
    return not lane.occupied and head is not None and head.first is None and (head.arriving or head.has_added)


def state_of(lane: Lane) -> str:
    if lane.stopped is not None:
        return "stopped"
    if lane.paused:
        return "paused"
    if lane.running is not None:
        return "busy"
    if _is_held(lane):
        return "held"
    return "busy" if lane.queued else "idle"


_ORDER = {"stopped": 0, "held": 1, "paused": 2, "busy": 3, "idle": 4}


def urgency(lane: Lane) -> tuple[int, float, int]:
    """Lanes with smaller ones need a person more: by state, then the age of the head, then the length."""
    head = lane.first
    return _ORDER[state_of(lane)], head.taken if head is not None else 0.0, -lane.queued


def age_of_head(lane: Lane, now: float) -> float | None:
    """For how long the lane's head has had its position; from any thread, as it changes nothing."""
    head = lane.head()  # not the first: that may be the position of the job that runs
    return None if head is None else now - head.taken


def of_lane(scheduler: Scheduler, key: Hashable, lane: Lane | None, records: Sequence[Record]) -> LaneRecord:
    """The picture of a lane; `records` has the ended jobs of it. None is a lane that is not there anymore."""
    ran = [one.ended - one.started for one in records if one.started is not None]
    waited = [one.started - one.added for one in records if one.started is not None]
    running = head = None
    runs: tuple[Run, ...] = ()
    more = waiting = 0
    state = "idle"
    held_by = None
    if lane is not None:
        running, head, state = lane.running, lane.peek(), state_of(lane)
        first = lane.first
        held_by = str(first.owner) if state == "held" and first is not None else None
        queue = list(islice(waiting_in(lane), _FAR))
        waiting = len(queue) if len(queue) < _FAR else max(_FAR, lane.queued)
        behind = queue[1:] if running is None and lane.stopped is None else queue  # the head is shown alone
        runs = _runs(behind)
        more = waiting - (len(queue) - len(behind)) - (runs[-1].last if runs else 0)
    return LaneRecord(
        key=plain_key(key),
        lane_name=LaneName(*scheduler.names.of_lane(key)),
        state=state,
        running=None if running is None else of_job(scheduler, running),
        head=None if head is None else of_job(scheduler, head),
        head_for=None if head is None else scheduler.clock() - head._added,
        held_by=held_by,
        waiting=waiting,
        next=runs,
        more=more,
        recent=tuple(Recent(one.state, _ran(one)) for one in records[-_RECENT:]),
        ended=len(records),
        failed=sum(one.state is FAILED for one in records),
        waited=_percentiles(waited),
        ran=_percentiles(ran),
    )


def _runs(jobs: list[Job[Any]]) -> tuple[Run, ...]:
    """The first runs of jobs with one name."""
    runs: list[Run] = []
    first = 1
    for name, same in islice(groupby(jobs, attrgetter("name")), _RUNS):
        after = first + sum(1 for _ in same)
        runs.append(Run(first, after - 1, name))
        first = after
    return tuple(runs)
