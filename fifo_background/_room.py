"""Room: how many jobs may wait, and who waits for there being room. Under the line's lock, as the line is."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from fifo_background._job import CANCELLED, PENDING, QUEUED, Job
from fifo_background._lane import Lane, Place
from fifo_background._loop import Waiter
from fifo_background._waits import name_of_party
from fifo_background.exceptions import QueueFull, WouldDeadlock

if TYPE_CHECKING:
    from fifo_background._line import Line
    from fifo_background._request import TrackedRequest

__all__ = ("Room", "Wanted")


class Wanted:
    """A `submit` that waits for room."""

    __slots__ = ("error", "job", "limit", "party", "place", "waiter")

    def __init__(
        self, job: Job[Any], place: Place, waiter: Waiter, party: TrackedRequest | Job[Any] | None
    ) -> None:
        self.job: Job[Any] = job
        self.place: Place = place
        # how many may wait in its lane
        self.limit: float = math.inf if job.options.max_pending is None else job.options.max_pending
        self.waiter: Waiter = waiter
        self.party: TrackedRequest | Job[Any] | None = party  # who waits, if others may wait for it
        self.error: Exception | None = None

    @property
    def waits(self) -> bool:
        """Whether it has neither been let in nor refused."""
        return self.error is None and self.job.state is PENDING


class Room:
    """What `max_pending`, the executor's and that of single lanes, leaves of a line."""

    def __init__(self, line: Line, limit: int | None) -> None:
        self.limit: int | None = limit  # how many jobs may wait
        self.wanted: deque[Wanted] = deque()  # for one of these, in turn; others wait in their lanes
        self.in_need: set[Wanted] = set()  # those of all of them, for whom others may wait
        self.sought: int = 0  # how many wait for room in all: while nobody does, nobody need be told
        self._line = line
        self._lanes: list[Lane] = []  # in which somebody may be let in, while that is done

    def check(self, job: Job[Any], place: Place) -> None:
        """Raise `QueueFull` if one more job may not wait; those who wait for room come first."""
        line = self._line
        lane, limit = line.lanes.get(place.key), job.options.max_pending
        if lane is not None and limit is not None and (lane.wanted or lane.waiting >= limit):
            raise QueueFull(job.name, lane.waiting)
        if self.limit is not None and (self.wanted or line.waiting >= self.limit):
            raise QueueFull(job.name, line.waiting)

    def want(self, wanted: Wanted) -> None:
        """There is no room for this job: it is registered and queued when there is, in turn."""
        self.sought += 1
        lane = self._line.lane(wanted.place.key)
        if lane.wanted or lane.waiting >= wanted.limit:
            lane.wanted = lane.wanted or deque()
            lane.wanted.append(wanted)
        else:
            self._line.count_in(wanted.job, wanted.place)
            self.wanted.append(wanted)

    def let_in(self, lane: Lane) -> None:
        """A job of the lane does not wait any more: let in who waited for that, first come, first served."""
        line = self._line
        if not line.is_open:
            return
        self._lanes.append(lane)
        if len(self._lanes) > 1:  # one that was let in replaced another: the loop below goes on with it
            return
        limit = math.inf if self.limit is None else self.limit
        for lane in self._lanes:
            while lane.wanted and lane.waiting < lane.wanted[0].limit:
                wanted = lane.wanted.popleft()
                line.count_in(wanted.job, wanted.place)
                self.wanted.append(wanted)
            while self.wanted and line.waiting < limit:
                wanted = self.wanted.popleft()
                line.waiting += 1
                line.woken.append(wanted.waiter)
                line.queue(wanted.place, [wanted.job])
        self._lanes.clear()

    def withdraw(self, wanted: Wanted) -> None:
        """Nobody waits for room for this job any more: it does not run, unless it runs already."""
        line, job = self._line, wanted.job
        lane = line.lanes.get(wanted.place.key)
        if job.state is QUEUED:
            line.end_waiting(job, CANCELLED)
        elif wanted in self.wanted:
            self.wanted.remove(wanted)
            line.waiting += 1  # it was counted in its lane only
            line.end_waiting(job, CANCELLED)
        elif lane is not None and lane.wanted and wanted in lane.wanted:
            lane.wanted.remove(wanted)
            self.let_in(lane)

    # -- hope -------------------------------------------------------------------------------------------

    def full_lane(self, wanted: Wanted) -> Lane | None:
        """The lane that keeps it out; None if it waits for room in the whole line."""
        lane = self._line.lanes.get(wanted.place.key)
        return lane if lane is not None and (lane.wanted or lane.waiting >= wanted.limit) else None

    def openings(self, wanted: Wanted) -> Iterator[Job[Any]]:
        """Jobs whose start makes room, or brings it nearer: the first of each lane, and those outside."""
        full = self.full_lane(wanted)
        lanes: Iterable[Lane] = self._line.lanes.values()
        # who has room in its lane, this one perhaps, waits for room in the line
        if full is not None and not any(one.place.lane is full for one in self.wanted):
            lanes = (full,)
        for lane in lanes:
            yield from lane.openings()

    def tell_hopeless(self) -> None:
        """End the waiting of one of those for whom there is no room before one of themselves ends."""
        stuck = self._line.waits.stuck(
            {one.party for one in self.in_need if one.waits and one.party is not None}
        )
        for wanted in self.in_need:
            if wanted.waits and wanted.party in stuck:
                wanted.error = no_room(wanted)
                self._line.woken.append(wanted.waiter)
                return  # there may be hope for the others: they are looked at when this one has given up


def no_room(wanted: Wanted) -> WouldDeadlock:
    return WouldDeadlock(
        name_of_party(wanted.party), f"there is no room for {wanted.job.name} before it ends"
    )
