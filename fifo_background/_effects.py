"""What the line leaves to the executor to do or to say, as it does neither itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from fifo_background._job import Job
from fifo_background._lane import Lane, Place, Runner

if TYPE_CHECKING:
    from fifo_background._request import TrackedRequest

__all__ = ("HOPE", "Effect", "Held", "Hope", "Lost", "Overdue", "Unrun")


class Lost(NamedTuple):
    """A place was lost: to be logged."""

    place: Place


class Held(NamedTuple):
    """The head of a lane keeps ready tasks back: look again after `delay` seconds."""

    lane: Lane
    delay: float


class Overdue(NamedTuple):
    """A task that cannot be stopped has been started: to be named if it still runs after its timeout."""

    runner: Runner
    job: Job[Any]


class Unrun(NamedTuple):
    """A job has ended without running these parts of it: to be logged."""

    job: Job[Any]
    parts: list[Job[Any]]
    owner: TrackedRequest | None


class Hope(NamedTuple):
    """There may be no hope any more for somebody who waits for room: look."""


HOPE = Hope()

Effect = Lost | Held | Overdue | Unrun | Hope
