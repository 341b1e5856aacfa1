"""What moves leave to be done after them, outside of the scheduler: timers to set, and what is to be said."""

from __future__ import annotations

from typing import Any, NamedTuple

from starlette.background import BackgroundTask

from fifo_background._core.history import Returned
from fifo_background._core.job import Job
from fifo_background._core.lane import Lane
from fifo_background._core.position import Position

__all__ = ("Effect", "Failed", "Held", "Lost", "Unrun")


class Lost(NamedTuple):
    """A position was lost, with these jobs."""

    position: Position
    jobs: list[Job[Any]]


class Held(NamedTuple):
    """The head of a lane keeps ready jobs waiting: look again after `delay` seconds."""

    lane: Lane
    delay: float


class Failed(NamedTuple):
    """A job has failed, and skipped others or stopped its lane. `handed_over`: a wait raises it."""

    job: Job[Any]
    position: Position
    skipped: list[Job[Any]]
    tasks: dict[Job[Any], BackgroundTask | None]  # of those that it may have skipped
    stopped: bool
    handed_over: bool


class Unrun(NamedTuple):
    """A job has ended without running these parts of it."""

    job: Job[Any]
    position: Position
    parts: list[Job[Any]]


Effect = Lost | Held | Failed | Returned | Unrun
