"""The invariants of a scheduler between its moves, for tests."""

from __future__ import annotations

from fifo_background._core.position import IN_QUEUE
from fifo_background._core.scheduler import Scheduler

__all__ = ("check",)


def check(scheduler: Scheduler) -> None:
    """Raise AssertionError where an invariant does not hold."""
    lanes = scheduler.lanes.all()
    for lane in lanes:
        chained = [job for position in lane for job in position]
        assert lane.queued == len(chained), (lane.key, lane.queued, chained)
        assert all(job._queued for job in chained)
        assert all(position.state is IN_QUEUE and position.lane is lane for position in lane)
        assert lane.occupied == (lane in scheduler.turns.occupied)
        assert lane.in_turn == (lane in scheduler.turns.due)
        ready = lane.is_open and not lane.occupied and lane.first is not None and lane.first.first
        assert not ready or lane.in_turn, "nobody would start it"
    assert scheduler.queued == sum(lane.queued for lane in lanes)
    occupied = sum(not lane.lent for lane in scheduler.turns.occupied)
    assert scheduler.slots.free <= scheduler.slots.most - occupied
    assert all(job._own_state is None for job in scheduler.waiting)
