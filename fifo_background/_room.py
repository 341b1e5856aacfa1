"""Room: how many jobs may wait, and who waits for there being room. Under the line's lock, as the line is."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from fifo_background._job import CANCELLED, PENDING, QUEUED, Job
from fifo_background._lane import OUTSIDE, Lane, Place
from fifo_background._loop import Waiter
from fifo_background._waits import Party, name_of_party
from fifo_background.exceptions import QueueFull, WouldDeadlock

if TYPE_CHECKING:
    from fifo_background._line import Line
    from fifo_background._request import TrackedRequest

__all__ = ("Full", "Room", "Wanted")


class Full(NamedTuple):
    """There was room, and others got it: who still waits for some may have no hope any more."""


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


class Room:
    """What `max_pending`, the executor's and that of single lanes, leaves of a line."""

    def __init__(self, line: Line, limit: int | None) -> None:
        self.limit: int | None = limit  # how many jobs may wait
        self.wanted: deque[Wanted] = deque()  # for one of these, in turn; others wait in their lanes
        self.in_need: set[Wanted] = set()  # of all of them, who hold something back
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
        if self.in_need:
            line.effects.append(Full())

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

    def tell_hopeless(self) -> None:
        """End the waiting of one for whom there is no hope any more."""
        for wanted in self.hopeless(self.in_need):
            wanted.error = no_room(wanted)
            self._line.woken.append(wanted.waiter)
            break  # there may be hope for the others: they are looked at when this one has given up

    def hopeless(self, in_need: set[Wanted]) -> set[Wanted]:
        """Those of them for whom there is no room before one of them ends."""
        # who has been let in, or refused, and has not gone on yet does not wait any more
        stuck = {one for one in in_need if one.error is None and one.job.state is PENDING}
        while stuck:
            parties = {one.party for one in stuck if one.party is not None}
            lanes = {one: self._full_lane(one) for one in stuck}
            hope = {lane: self._may_come(lane, parties) for lane in set(lanes.values())}
            saved = {one for one, lane in lanes.items() if hope[lane]}
            if not saved:
                break
            stuck -= saved
        return stuck

    def _full_lane(self, wanted: Wanted) -> Lane | None:
        """The lane that is full for it; None if it waits for room in the whole line."""
        lane = self._line.lanes.get(wanted.place.key)
        return lane if lane is not None and lane.waiting >= wanted.limit else None

    def _may_come(self, full: Lane | None, parties: set[Party]) -> bool:
        """Whether a job whose start makes room can start before one of these ends."""
        line = self._line
        lanes = list(line.lanes.values()) if full is None else [full]
        for lane in lanes:
            head = lane.peek() if lane.waiting else None
            if head is not None:
                running = None if lane.runner is None else lane.runner.job
                if head.state is QUEUED and running not in parties and not line.waits.has(running):
                    return True  # nothing that waits is before it
                if not any(line.waits.would_deadlock(party, head) for party in parties):
                    return True
        # what waits, and is not in line yet: tasks of requests that have not responded
        known = {job for lane in line.lanes.values() for place in lane.places for job in place.waiting}
        for party in parties:
            known |= {party} if isinstance(party, Job) else _outside(party)
        known |= {part for job in known for part in job.parts}
        known |= {one.job for one in self.wanted}
        places = [job.place for job in known if job.state in (PENDING, QUEUED)]
        waiting = sum(place is not None and place.lane in lanes for place in places)
        return sum(lane.waiting for lane in lanes) > waiting


def _outside(request: TrackedRequest) -> set[Job[Any]]:
    """What the request has added without having a place in line for it."""
    return {job for place in request.places.values() if place.state is OUTSIDE for job in place.added}


def no_room(wanted: Wanted) -> WouldDeadlock:
    return WouldDeadlock(
        name_of_party(wanted.party), f"there is no room for {wanted.job.name} before it ends"
    )
