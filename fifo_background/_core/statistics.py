"""Frozen snapshots of an executor at one moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from fifo_background._core.job import Job
from fifo_background._core.lane import Lane, plain_key
from fifo_background._core.plain import text_of
from fifo_background._core.position import Position
from fifo_background._core.scheduler import Scheduler

__all__ = ("NOTHING_YET", "BlockedBy", "ExecutorStatistics", "LaneStatistics", "snapshot")


class BlockedBy(Enum):
    """Why the head of a lane does not start."""

    NOTHING = "nothing"
    """There is no head, or it starts in the loop's next turn."""
    RUNNING = "running"
    """The task before it runs."""
    HELD = "held"
    """The request at the head has its position and has not responded; `LaneStatistics.held_by` names it."""
    SLOT = "slot"
    """`max_lanes_running` lanes run."""
    PAUSED = "paused"
    FAILED_HEAD = "failed head"
    """The lane has stopped (`lane_after_failure="stop"`)."""


@dataclass(frozen=True)
class LaneStatistics:
    """One lane. Times are in seconds."""

    key: Hashable
    running: str | None
    """The name of the running task."""
    running_for: float | None
    running_waits_for: tuple[str, ...]
    """The names of the tasks whose end the running task waits for."""
    waiting: int
    """How many tasks were added and have not started."""
    head: str | None
    """The name of the task that is next; of a stopped lane, the failed one."""
    head_age: float | None
    """How long ago the head took its position."""
    blocked_by: BlockedBy
    held_by: str | None
    """The request that holds the head."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON: the key as text, None for the default lane."""
        return {
            **vars(self),
            "key": None if self.key is None else text_of(self.key),
            "running_waits_for": list(self.running_waits_for),
            "blocked_by": self.blocked_by.value,
        }


@dataclass(frozen=True)
class ExecutorStatistics:
    """One executor; `lanes` has the lanes that are not idle."""

    lanes: Mapping[Hashable, LaneStatistics]
    running: int
    """How many lanes have a running task."""
    waiting: int
    """How many tasks were added and have not started."""
    unfinished: int
    """How many tasks wait or run."""
    state: str
    """"open", "closing" or "closed"."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON; `lanes` is a list."""
        return {**vars(self), "lanes": [lane.to_dict() for lane in self.lanes.values()]}


NOTHING_YET = ExecutorStatistics({}, 0, 0, 0, "open")


def snapshot(scheduler: Scheduler, waits: Mapping[Any, Any]) -> ExecutorStatistics:
    """The executor as it is. `waits` has the jobs that running jobs wait for."""
    now = scheduler.clock()
    waiting = [job for job in list(scheduler.waiting) if job._own_state is None]
    in_lanes = Counter(job._position.lane for job in waiting if job._position is not None)
    lanes = [lane for lane in scheduler.lanes.all() if not lane.idle or in_lanes[lane]]
    pictures = {plain_key(lane.key): _of(scheduler, lane, now, in_lanes[lane], waits) for lane in lanes}
    running = sum(picture.running is not None for picture in pictures.values())
    return ExecutorStatistics(
        lanes=pictures,
        running=running,
        waiting=len(waiting),
        unfinished=len(waiting) + running,
        state=scheduler.status.value,
    )


def _of(
    scheduler: Scheduler, lane: Lane, now: float, waiting: int, waits: Mapping[Any, Any]
) -> LaneStatistics:
    position = lane.stopped or lane.head()
    job, running = lane.peek(), lane.running
    held = lane.stopped is None and position is not None and all(one._own_state for one in position)
    owner = position.owner if held and position is not None else None
    return LaneStatistics(
        key=plain_key(lane.key),
        running=None if running is None else running.name,
        running_for=None if running is None or running._started is None else now - running._started,
        running_waits_for=tuple(_name(job) for job in waits.get(running, ())),
        waiting=waiting,
        head=None if job is None else job.name,
        head_age=None if position is None else now - position.taken,
        blocked_by=_blocked_by(scheduler, lane, running, position, held),
        held_by=None if owner is None else str(owner),
    )


def _name(job: Job[Any]) -> str:
    return job.name


def _blocked_by(
    scheduler: Scheduler, lane: Lane, running: Job[Any] | None, position: Position | None, held: bool
) -> BlockedBy:
    if running is not None:
        return BlockedBy.RUNNING
    if lane.stopped is not None:
        return BlockedBy.FAILED_HEAD
    if lane.paused:
        return BlockedBy.PAUSED
    if position is not None and held:
        return BlockedBy.HELD
    return BlockedBy.SLOT if lane.queued and scheduler.slots.free <= 0 else BlockedBy.NOTHING
