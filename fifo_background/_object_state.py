"""The states of a tasks object, with the one table of what follows what."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

__all__ = ("AWAITED", "COLLECTING", "INLINE", "PART", "STATES", "State")


class State(Enum):
    """Where an object is; written by itself alone.

    COLLECTING: what is added waits for the object to be awaited. AWAITED: it was handed over; what is added
    runs with it. PART: it is a task of another object, or was given to `add_task`, and runs inside that.
    INLINE: a running task awaits it, and runs its list.
    """

    COLLECTING = "collecting"
    AWAITED = "awaited"
    PART = "part"
    INLINE = "inline"

    if not TYPE_CHECKING:
        __hash__ = object.__hash__  # the members are single objects; Enum's own is slow


COLLECTING, AWAITED, PART, INLINE = State

STATES: dict[State, frozenset[State]] = {
    COLLECTING: frozenset({AWAITED, PART, INLINE}),
    AWAITED: frozenset({COLLECTING, AWAITED, PART, INLINE}),
    PART: frozenset({AWAITED, PART, INLINE}),
    INLINE: frozenset({COLLECTING, AWAITED, PART, INLINE}),
}
