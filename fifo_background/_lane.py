"""Who is next: the line of one lane. Pure data: no await, no clock, no lock, no event loop.

The order is that of `Lane.line`, a place being appended once, at one named moment (`Lane.append`).
Places that are given up stay where they are and are dropped when they reach the head, so that no
operation grows with the length of the line.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from contextvars import Context
from enum import Enum
from typing import TYPE_CHECKING, Any

from fifo_background._job import Job

if TYPE_CHECKING:
    from fifo_background._loop import Handle
    from fifo_background._request import TrackedRequest

__all__ = ("Lane", "Place", "PlaceState", "Runner")


class PlaceState(Enum):
    """Where a place is. A place that was lost, or not taken yet, is `OUTSIDE`."""

    OUTSIDE = "outside"
    IN_LINE = "in line"
    GONE = "gone"


class Place:
    """The place of one request, or of one submitted task, in one lane."""

    __slots__ = ("added", "context", "key", "next", "owner", "queued", "skip_rest", "state", "taken")

    def __init__(self, key: Hashable, owner: TrackedRequest | None, skip_rest: bool = True) -> None:
        self.key: Hashable = key
        self.owner: TrackedRequest | None = owner
        self.skip_rest: bool = skip_rest
        self.state: PlaceState = PlaceState.OUTSIDE
        self.taken: float = 0.0
        self.context: Context | None = None
        # added, but not ready to run: they hold the place (a dict, to take any of them out at once)
        self.added: dict[Job[Any], None] | None = None
        # ready to run, in order; `next` is the index of the first that has not been started
        self.queued: list[Job[Any]] = []
        self.next: int = 0

    def hold(self, job: Job[Any]) -> None:
        """Keep the place for a job that is not ready to run."""
        if self.added is None:
            self.added = {}
        self.added[job] = None

    def release(self, job: Job[Any]) -> None:
        """The job does not hold the place any more, if it did."""
        if self.added is not None:
            self.added.pop(job, None)

    def hold_together(self, jobs: list[Job[Any]]) -> None:
        """Jobs of one awaited object stand in the order of its list, as one block if that was changed."""
        added = self.added or {}
        if [job for job in added if job in set(jobs)] != jobs:
            for job in jobs:
                del added[job]
                added[job] = None

    @property
    def ready(self) -> bool:
        return bool(self.queued)

    @property
    def first(self) -> Job[Any]:
        """The next job to run, if the place is `ready`."""
        return self.queued[self.next]

    def clear(self) -> list[Job[Any]]:
        """Take out, and return, what is ready to run."""
        jobs = self.queued[self.next :]
        self.queued = []
        self.next = 0
        return jobs

    def popped(self) -> None:
        """The first job has been started: the list forgets it."""
        self.next += 1
        if self.next == len(self.queued):
            self.queued = []
            self.next = 0
        elif self.next == 512:  # a long list lets go of what has run
            del self.queued[:512]
            self.next = 0


class Runner:
    """Runs a lane's jobs: the consecutive async ones of `place`; without, all consecutive sync ones."""

    __slots__ = ("handle", "job", "place", "stopped")

    def __init__(self, place: Place | None) -> None:
        self.place: Place | None = place
        self.job: Job[Any] | None = None  # the latest that it has started
        self.handle: Handle | None = None
        self.stopped: bool = False  # its task was cancelled: it starts no other job


class Lane:
    """One line: a task in it starts only after the task before it has ended."""

    __slots__ = ("asked", "key", "line", "queued", "runner", "timer")

    def __init__(self, key: Hashable) -> None:
        self.key: Hashable = key
        self.line: deque[Place] = deque()
        self.queued: int = 0  # how many jobs, in all places of the line, are ready to run
        self.runner: Runner | None = None  # who runs the lane's jobs now
        self.asked: bool = False  # the loop is to look, in its next turn, what can start
        self.timer: Handle | None = None  # rings when the head's `hold` is over

    def append(self, place: Place, now: float) -> None:
        """The named moment: `place` is behind everything that is in line."""
        place.state = PlaceState.IN_LINE
        place.taken = now
        self.line.append(place)

    def head(self) -> Place | None:
        """The place whose turn it is, if any: what was given up or is done leaves the line here."""
        line = self.line
        while line:
            place = line[0]
            if place.queued or place.added:
                return place
            line.popleft()
            place.state = PlaceState.GONE
            place.context = place.owner = None
        return None

    def lose_head(self) -> Place:
        """The head, which holds back what is ready behind it, leaves the line and keeps its tasks."""
        place = self.line.popleft()
        place.state = PlaceState.OUTSIDE
        return place
