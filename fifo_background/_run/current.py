"""The request that is handled, or the job that runs, in the current context."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, Protocol

from fifo_background._core.job import Job
from fifo_background._core.lane import Lane
from fifo_background._core.position import Owner, Position

__all__ = ("Party", "Waiting", "alive", "current", "current_party")

# A request, a `Job`, or None.
Party = Any

current: ContextVar[Party] = ContextVar("fifo_background", default=None)
current_party = current.get  # bound once: looked up for every request


def alive(party: Party) -> Party:
    """The task or request itself, or what made it if it has ended: an ended one is not kept alive."""
    while party is not None:
        if isinstance(party, Job):
            return party if party._position is not None else None
        if not party.has_ended:
            return party
        party = party.made_by
    return None


class Waiting(Owner, Protocol):
    """What the waits at an executor need of a request that waits there."""

    runner: Any
    awaits: Sequence[Job[Any]]
    """Its own jobs that it waits for."""
    made_by: Party
    """The task or request that made this one, in this process."""

    @property
    def has_unfinished(self) -> bool:
        """Whether a task of it has not ended."""
        ...

    def held_position(self, lane: Lane) -> Position | None:
        """The position that it holds in a lane."""
        ...
