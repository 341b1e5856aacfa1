"""The lanes take turns: which of them run, which is next, and which of its jobs. The only way to start a job.

Invariants (`invariants.py`): a lane in which something may start is in `due`, unless it is in `occupied`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from fifo_background._core.effects import Held, Lost
from fifo_background._core.job import Job
from fifo_background._core.lane import Lane
from fifo_background._core.state import RUNNING

if TYPE_CHECKING:
    from fifo_background._core.scheduler import Scheduler

__all__ = ("Turns",)


class Turns:
    """The turns of the lanes of one executor."""

    def __init__(self, scheduler: Scheduler, hold_timeout: float) -> None:
        self.due: deque[Lane] = deque()  # lanes in which something may start, in turn
        self.occupied: set[Lane] = set()  # lanes that run
        self._scheduler = scheduler
        self._hold = hold_timeout

    def wants_turn(self, lane: Lane) -> None:
        """Something in the lane may have become able to start."""
        if not lane.occupied and not lane.in_turn:
            lane.in_turn = True
            self.due.append(lane)

    def start_next(self) -> Lane | None:
        """A move: occupy the next lane that can run, and start its first job unless it is sync.

        None if no lane can run.
        """
        scheduler, due = self._scheduler, self.due
        slots, lane = scheduler.slots, scheduler.lanes.default
        scheduler.moving = True
        try:
            while due and slots.free > 0:
                lane = due[0]
                lane.in_turn = False
                due.popleft()
                if lane.occupied:
                    continue
                while (job := self._first_ready(lane)) is not None:
                    if not job._on_loop or self.start(lane, job):
                        if lane.timer is not None:
                            lane.cancel_timer()
                        lane.occupied = True
                        self.occupied.add(lane)
                        slots.free -= 1
                        return lane
        except BaseException:
            self.undo_start(lane)
            raise
        finally:
            scheduler.moving = False
        return None

    def undo_start(self, lane: Lane) -> None:
        """A KeyboardInterrupt came while a lane was being started, and nothing runs: its job waits again."""
        scheduler, job = self._scheduler, lane.job
        if lane.handle is not None:  # it has run before
            return
        lane.job = lane.trip = None
        if job is not None and not job.done():
            job._own_state = None
            scheduler.waiting.add(job)
            if not job._queued:
                scheduler.inbox.appendleft(job)
        lane.occupied = False
        self.occupied.discard(lane)
        scheduler.slots.count()
        self.wants_turn(lane)

    def _first_ready(self, lane: Lane) -> Job[Any] | None:
        """The first job of a lane that nothing runs in, if it may start now."""
        scheduler = self._scheduler
        while lane.stopped is None and not lane.paused and (position := lane.first) is not None:
            job = position.first
            if job is not None:
                if job._own_state is None:
                    return job
                scheduler.unchain(job, position)  # claimed by others
            elif not position.held:
                lane.drop(position, scheduler.gone)
            elif not lane.queued:
                return None
            else:
                now, end = scheduler.clock(), position.taken + self._hold
                if now < end:
                    if lane.timer is None or end < lane.rings:
                        scheduler.effects.append(Held(lane, end - now))
                    return None
                if lane.key is not None:
                    scheduler.capacity.begin_counting(lane)
                lane.lose(position)
                scheduler.effects.append(Lost(position, position.pending))
        if lane.idle:
            self._retire(lane)
        return None

    def start(self, lane: Lane, job: Job[Any]) -> bool:
        """Start the first job of the lane on the loop. False if somebody has claimed it."""
        scheduler = self._scheduler
        position: Any = job._position  # it is the first there
        lane.job = job  # before the claim: at no moment it is neither waiting nor running
        try:
            scheduler.waiting.remove(job)
        except KeyError:
            lane.job = None
            scheduler.unchain(job, position)
            return False
        job._own_state = RUNNING
        job._started = scheduler.clock()
        after = position.first = job._next
        if after is None:
            position.last = None
        else:
            after._previous = job._next = None
        job._queued = False
        lane.queued -= 1
        scheduler.queued -= 1
        if lane.latest is not None or job._counted_in is not None:
            scheduler.left_waiting(job, lane)
        return True

    def leave_lane(self, lane: Lane) -> None:
        """What occupied the lane runs no more jobs of it."""
        scheduler = self._scheduler
        lane.job = lane.trip = lane.handle = None
        lane.occupied = lane.stopping = False
        self.occupied.discard(lane)
        if lane.lent:
            lane.lent = 0
        else:
            scheduler.slots.give_back()
        while (position := lane.first) is not None and position.first is None:
            if (position.added or position.arriving) and position.held:
                break
            lane.drop(position, scheduler.gone)
        if position is not None:
            self.wants_turn(lane)
        elif lane.key is not None and lane.idle:
            self._retire(lane)
        if scheduler.joiners:
            scheduler.wake_joiners()

    def leave(self, lane: Lane) -> None:
        """A move: see `leave_lane`."""
        self._scheduler.moving = True
        try:
            self.leave_lane(lane)
        except BaseException:  # a KeyboardInterrupt
            self._scheduler.slots.count()
            raise
        finally:
            self._scheduler.moving = False

    def _retire(self, lane: Lane) -> None:
        """Of a key whose lane is idle nothing is left behind."""
        lane.cancel_timer()
        if lane.key is not None:
            self._scheduler.lanes.retire(lane)
            self._scheduler.gone.append(lane)
