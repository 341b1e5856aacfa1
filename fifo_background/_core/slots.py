"""Slots: how many lanes run at once (`max_lanes_running`), and who waits for a slot that it has lent."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from fifo_background._core.job import Job
from fifo_background._core.lane import Lane
from fifo_background._core.state import RUNNING

if TYPE_CHECKING:
    from fifo_background._core.scheduler import Scheduler

__all__ = ("Slots",)


class Slots:
    """The slots of one executor.

    Invariant: `free` is `max_lanes_running` less the occupied lanes, those not counted whose job has lent its
    slot; it may be less than zero, where a cancelled wait goes on in a slot too many.
    """

    def __init__(self, scheduler: Scheduler, most: int) -> None:
        self._scheduler = scheduler
        self.most: int = most
        self.free: int = most  # how many more lanes may run
        self.returning: deque[Any] = deque()  # waiters for a slot that they had lent
        self._on_their_way: int = 0  # slots that were given to such waiters, which have not taken them yet

    def count(self) -> None:
        """Count anew: a KeyboardInterrupt may have come between a lane and its slot."""
        occupied = sum(not lane.lent for lane in self._scheduler.turns.occupied)
        self.free = self.most - occupied - self._on_their_way
        while self.returning and self.free > 0:  # it came before they were given one
            self.free -= 1
            self._give()

    def lend(self, lane: Lane) -> None:
        """The job of the lane waits for another lane: that may run in its slot."""
        lane.lent += 1
        if lane.lent == 1:
            self.give_back()

    def take_back(self, lane: Lane, job: Job[Any], waiter: object) -> bool:
        """The job goes on. False if it has to await `waiter` before, and then call `took_back`."""
        if job._own_state is not RUNNING or not lane.lent:
            return True  # a child of the job outlives it
        if lane.lent > 1 or self.free > 0:
            lane.lent -= 1
            self.free -= not lane.lent
            return True
        self.returning.append(waiter)
        return False

    def took_back(self, lane: Lane, job: Job[Any], waiter: object) -> None:
        """`waiter` was woken with a slot, or its task was cancelled, which goes on in a slot too many."""
        has_slot = waiter not in self.returning
        if has_slot:
            self._on_their_way -= 1
        else:
            self.returning.remove(waiter)
        needs_slot = False
        if job._own_state is RUNNING and lane.lent:
            lane.lent -= 1
            needs_slot = not lane.lent
        if has_slot and not needs_slot:
            self.give_back()
        elif needs_slot and not has_slot:
            self.free -= 1

    def give_back(self) -> None:
        if self.returning and self.free >= 0:
            self._give()
        else:
            self.free += 1

    def _give(self) -> None:
        self._scheduler.woken.append(self.returning.popleft())
        self._on_their_way += 1
