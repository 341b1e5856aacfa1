"""The request that is handled, or the job that runs, in the current context."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

__all__ = ("Party", "current", "current_party")

# A `TrackedRequest`, a `Job`, or None.
Party = Any

current: ContextVar[Party] = ContextVar("fifo_background", default=None)
current_party = current.get  # bound once: looked up for every request
