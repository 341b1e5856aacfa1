"""Who is next: the line of one lane. Pure data: no await, no clock, no lock, no event loop.

The order is that of the places, each linked to the one behind it, and appended once, at one named moment
(`Lane.append`); in a place, that of its jobs, linked alike. What is given up stays where it is and is dropped
when it reaches the head: no operation grows with the length of the line.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Coroutine, Hashable, Iterator
from contextvars import Context
from enum import Enum
from typing import TYPE_CHECKING, Any

from fifo_background._job import QUEUED, Job

if TYPE_CHECKING:
    from fifo_background._loop import Handle
    from fifo_background._request import TrackedRequest
    from fifo_background._room import Wanted

__all__ = ("NOTHING", "OUTSIDE", "IN_LINE", "GONE", "Lane", "Place", "PlaceState", "Runner")


# What a place without jobs has for a list, so that 100,000 waiting places need no lists for nothing. It is
# replaced, and never changed.
NOTHING: list[Job[Any]] = []


class PlaceState(Enum):
    """Where a place is. A place that was lost, or not taken yet, is `OUTSIDE`."""

    OUTSIDE = "outside"
    IN_LINE = "in line"
    GONE = "gone"


OUTSIDE, IN_LINE, GONE = PlaceState


class Place:
    """The place of one request, or of one submitted task, in one lane."""

    __slots__ = (
        "added",
        "arriving",
        "behind",
        "context",
        "first",
        "key",
        "lane",
        "last",
        "number",
        "owner",
        "state",
        "taken",
    )

    def __init__(self, key: Hashable, owner: TrackedRequest | None) -> None:
        self.key: Hashable = key
        self.owner: TrackedRequest | None = owner
        self.lane: Lane | None = None
        self.state: PlaceState = OUTSIDE
        self.number: int = 0  # a place with a higher one was taken later
        self.taken: float = 0.0  # when, in the loop's seconds; `hold` counts from here
        self.context: Context | None = None
        self.behind: Place | None = None  # the next one in line
        self.arriving: bool = False  # held by a request that may still add tasks (order="arrived")
        # added, but not ready to run: they hold the place
        self.added: list[Job[Any]] = NOTHING
        # ready to run, and not started
        self.first: Job[Any] | None = None
        self.last: Job[Any] | None = None

    def append(self, job: Job[Any]) -> None:
        """The job, which is ready to run, is behind those that are."""
        if self.last is None:
            self.first = job
        else:
            self.last.behind = job
        self.last = job

    @property
    def held(self) -> bool:
        """Whether it may keep back what is behind it."""
        return self.arriving or bool(self.added)

    def release(self, jobs: list[Job[Any]]) -> None:
        """These jobs do not hold the place any more."""
        if self.added == jobs:
            self.added = NOTHING
        elif self.added:
            released = set(jobs)
            self.added = [job for job in self.added if job not in released]

    def hold_together(self, jobs: list[Job[Any]]) -> None:
        """Jobs of one awaited object stand in the order of its list, as one block if that was changed."""
        awaited = set(jobs)
        if [job for job in self.added if job in awaited] != jobs:
            self.added = [job for job in self.added if job not in awaited] + jobs

    def pop(self) -> None:
        """The first job leaves."""
        job: Job[Any] = self.first  # type: ignore[assignment]
        self.first = job.behind
        if job.behind is None:
            self.last = None
        else:
            job.behind = None  # whoever keeps the handle of a job keeps no other one by it

    @property
    def queued(self) -> Iterator[Job[Any]]:
        """What is ready to run, in order."""
        job = self.first
        while job is not None:
            behind = job.behind
            if job.state is QUEUED:
                yield job
            job = behind

    def peek(self) -> Job[Any] | None:
        """The first of what has not been started."""
        return next(self.queued, None) or next(iter(self.added), None)

    @property
    def waiting(self) -> list[Job[Any]]:
        """What has not been started, in order."""
        return [*self.queued, *self.added]

    @property
    def skip_rest(self) -> bool:
        """Whether a failed job skips those behind it in the place."""
        return self.owner is not None and self.owner.settings.on_error == "skip_rest"


class Runner:
    """Runs a lane's jobs: the consecutive async ones of `place`; without, all consecutive sync ones.

    It is made with its first job, and has left when `lane` is None.
    """

    __slots__ = ("cancelled", "handle", "job", "lane", "lent", "place", "run", "since", "stopped", "watch")

    def __init__(self, lane: Lane, place: Place | None, job: Job[Any]) -> None:
        self.lane: Lane | None = lane
        self.place: Place | None = place
        self.job: Job[Any] = job  # the latest that it has started
        self.since: float = 0.0  # when it was started, in the loop's seconds
        self.run: Coroutine[Any, Any, None] | None = None  # what its task runs
        self.handle: Handle | None = None
        self.watch: Handle | None = None  # rings when a job that cannot be stopped should have ended
        self.stopped: bool = False  # it starts no other job: somebody has cancelled it
        self.cancelled: bool = False  # that was the executor
        self.lent: int = 0  # how often its job waits for another lane: its slot is free for others


class Lane:
    """One line: a task in it starts only after the task before it has ended."""

    __slots__ = (
        "failed",
        "first",
        "in_turn",
        "key",
        "last",
        "latest",
        "number",
        "outside",
        "paused",
        "queued",
        "rings",
        "runner",
        "timer",
        "waiting",
        "wanted",
    )

    def __init__(self, key: Hashable) -> None:
        self.key: Hashable = key
        self.first: Place | None = None
        self.last: Place | None = None
        self.number: int = 0  # of the latest place
        self.queued: int = 0  # how many jobs, in all places of the line, are ready to run
        self.waiting: int = 0  # these, and those that are added and not ready
        self.runner: Runner | None = None  # who runs the lane's jobs now
        self.in_turn: bool = False  # it waits, with other lanes, for being looked at
        self.timer: Handle | None = None  # rings when the head's `hold` is over,
        self.rings: float = 0.0  # which is then, in the loop's seconds
        self.outside: set[Place] | None = None  # places that are not in line, and wait for a response
        self.paused: bool = False
        self.failed: Place | None = None  # stopped; the place holds the failed job, for a retry
        self.latest: dict[Any, Job[Any]] | None = None  # of each function, with keep="latest"
        self.wanted: deque[Wanted] | None = None  # wait for room in this lane

    def append(self, place: Place, now: float) -> None:
        """The named moment: `place` is behind everything that is in line."""
        place.state = IN_LINE
        place.taken = now
        place.number = self.number = self.number + 1
        if self.last is None:
            self.first = place
        else:
            self.last.behind = place
        self.last = place
        if self.outside:
            self.outside.discard(place)

    def keep_outside(self, place: Place) -> None:
        """A place that is not in line has jobs."""
        if self.outside is None:
            self.outside = set()
        self.outside.add(place)

    def openings(self) -> Iterator[Job[Any]]:
        """Jobs one of which is the next to start, as far as can be told: who is first may not respond."""
        if self.runner is not None:
            yield from (part for part in self.runner.job.parts if part.waits_inside(self.runner.job))
        first = next((job for place in self.places if (job := place.peek()) is not None), None)
        if first is not None:
            yield first
        for place in self.outside or ():
            yield from place.added[:1]

    def put_first(self, place: Place, now: float) -> None:
        """Before everything in line: for a retry, which keeps the order that there was."""
        place.state = IN_LINE
        place.taken = now
        place.behind = self.first
        self.first = place
        if self.last is None:
            self.last = place

    def _pop(self, place: Place) -> None:
        """The first place, which this is, leaves the line."""
        self.first = place.behind
        if self.first is None:
            self.last = None
        else:
            place.behind = None

    @property
    def places(self) -> Iterator[Place]:
        """What is in line, in order."""
        place = self.first
        while place is not None:
            yield place
            place = place.behind

    def next_job(self) -> Job[Any] | None:
        """The first job of the head, if that is ready; what was given up or is done leaves the line here."""
        while (place := self.first) is not None:
            while (job := place.first) is not None:
                if job.state is QUEUED:
                    return job
                place.pop()
            if place.added or place.arriving:
                return None
            self._pop(place)
            place.state = GONE
            place.context = place.owner = None
        return None

    def head(self) -> Place | None:
        """The place whose turn it is, if any. Only looks: what runs now may still add to its place."""
        return next((place for place in self.places if place.peek() is not None or place.arriving), None)

    def peek(self) -> Job[Any] | None:
        """The failed job of a stopped lane, else the one that is next."""
        place = self.failed or self.head()
        return None if place is None else place.peek()

    def lose(self, place: Place) -> None:
        """The head, which this is and holds back what is ready behind it, leaves and keeps its tasks."""
        self._pop(place)
        place.state = OUTSIDE
        if place.added:
            self.keep_outside(place)

    @property
    def open(self) -> bool:
        """Whether its tasks may start."""
        return not self.paused and self.failed is None

    @property
    def idle(self) -> bool:
        """Whether there is nothing to remember about it."""
        return not (self.first or self.waiting or self.runner or self.in_turn) and self.open
