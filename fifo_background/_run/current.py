"""The request that is handled, or the job that runs, in the current context."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, Protocol
from weakref import ref

from fifo_background._core.job import Job
from fifo_background._core.position import Owner, Position

__all__ = ("Origin", "Party", "Waiting", "alive", "current", "current_party", "makers_of", "origin_of")

# A request, a `Job`, or None.
Party = Any

current: ContextVar[Party] = ContextVar("fifo_background", default=None)
current_party = current.get  # bound once: looked up for every request


class Origin(ref[Any]):
    """A task or request that made others, and by `made_by` what made it: keeps none of them alive."""

    made_by: Origin | None = None


def origin_of(party: Party) -> Origin | None:
    """Of what a task or request makes: that itself, or what it came from if it has ended."""
    if not isinstance(party, Job):
        return None if party is None else alive(party.origin)
    position = party._position
    if position is None:
        return alive(party._made_by)
    origin = Origin(party)
    origin.made_by = alive(position.made_by)
    return origin


def alive(origin: Origin | None) -> Origin | None:
    """The nearest one that has not ended: a long chain knows no others."""
    while origin is not None:
        party = origin()
        if party is not None and not (party.done() if isinstance(party, Job) else party.has_ended):
            break
        origin = origin.made_by
    return origin


def makers_of(origin: Origin) -> Iterator[Party]:
    """The tasks and requests that made this one, in this process, and have not ended: the nearest first."""
    maker = alive(origin.made_by)
    while maker is not None:
        yield maker()
        maker = alive(maker.made_by)


class Waiting(Owner, Protocol):
    """What the waits at an executor need of a request that waits there."""

    runner: Any
    awaits: Sequence[Job[Any]]
    """Its own jobs that it waits for."""
    positions: dict[Hashable, Position]
    """By the key of their lane; any thread may add one."""
    origin: Origin
    """Itself, and what made it in this process."""
