"""Frozen pictures of an executor at one moment."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from fifo_background._lane import Lane
from fifo_background._line import Line

__all__ = ("ExecutorStatistics", "LaneStatistics", "WaitsFor", "snapshot")


class WaitsFor(Enum):
    """What keeps the head of a lane from starting."""

    NOTHING = "nothing"
    """There is no head, or it starts in the loop's next turn."""
    RUNNING = "running"
    """The task before it runs."""
    HELD = "held"
    """The request at the head has its place, and has not responded; `LaneStatistics.held_by` names it."""
    SLOT = "slot"
    """As many lanes run as may (`max_lanes_running`)."""
    PAUSED = "paused"
    FAILED_HEAD = "failed head"
    """The lane has stopped (`after_failure="stop"`)."""


@dataclass(frozen=True)
class LaneStatistics:
    """One lane. Times are in seconds."""

    key: Hashable
    running: str | None
    """The name of the running task."""
    running_for: float | None
    waiting: int
    """How many tasks were added and have not been started."""
    head: str | None
    """The name of the task that is next; of a stopped lane, the failed one."""
    head_age: float | None
    """How long ago the head took its place."""
    waits_for: WaitsFor
    held_by: str | None
    """The request that holds the head."""


@dataclass(frozen=True)
class ExecutorStatistics:
    """One executor; `lanes` has the lanes that are not idle."""

    lanes: Mapping[Hashable, LaneStatistics]
    running: int
    """How many lanes have a running task."""
    waiting: int
    unfinished: int
    """How many tasks are owed an end."""
    state: str
    """"open", "closing" or "closed"."""


def snapshot(line: Line) -> ExecutorStatistics:
    """The line as it is; under its lock."""
    now = line.clock()
    lanes = {key: _of_lane(line, lane, now) for key, lane in line.lanes.items() if not lane.idle}
    return ExecutorStatistics(
        lanes=MappingProxyType(lanes),
        running=sum(lane.running is not None for lane in lanes.values()),
        waiting=line.waiting,
        unfinished=line.unfinished,
        state=line.state.value,
    )


def _of_lane(line: Line, lane: Lane, now: float) -> LaneStatistics:
    runner = lane.runner
    place = lane.failed or lane.head()
    job = lane.peek()
    held = place is not None and lane.failed is None and next(place.queued, None) is None
    return LaneStatistics(
        key=lane.key,
        running=None if runner is None else runner.job.name,
        running_for=None if runner is None else now - runner.since,
        waiting=lane.waiting,
        head=None if job is None else job.name,
        head_age=None if place is None else now - place.taken,
        waits_for=_waits_for(line, lane, held),
        held_by=str(place.owner) if held and place is not None and place.owner is not None else None,
    )


def _waits_for(line: Line, lane: Lane, held: bool) -> WaitsFor:
    if lane.runner is not None:
        return WaitsFor.RUNNING
    if lane.failed is not None:
        return WaitsFor.FAILED_HEAD
    if lane.paused:
        return WaitsFor.PAUSED
    if held:
        return WaitsFor.HELD
    return WaitsFor.SLOT if lane.queued and line.slots <= 0 else WaitsFor.NOTHING
