"""The states of a job, with the one table of what follows what; the states of an executor."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

__all__ = (
    "CANCELLED",
    "CLOSED",
    "CLOSING",
    "DROPPED",
    "FAILED",
    "PENDING",
    "QUEUED",
    "RUNNING",
    "SKIPPED",
    "SUCCEEDED",
    "SUPERSEDED",
    "TRANSITIONS",
    "JobState",
    "OPEN",
    "Status",
    "check_transition",
)


class JobState(Enum):
    """Where a job is. `TRANSITIONS` says what can follow."""

    PENDING = "pending"
    """Added, but its request has not responded yet, or has not awaited its tasks yet."""
    QUEUED = "queued"
    """Ready: it runs as soon as everything before it in its lane has ended."""
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """The function raised; `Job.exception()` returns the error."""
    SKIPPED = "skipped"
    """A task before it, of its request and lane, failed (`rest_after_failure="skip"`); or by `skip_head`."""
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    """A newer task of the same function replaced it before it ran (`keep="latest"`)."""
    DROPPED = "dropped"
    """Its request ended without running its tasks, or its executor was closed."""

    if not TYPE_CHECKING:
        __hash__ = object.__hash__  # the members are single objects; Enum's own is slow

    @property
    def ended(self) -> bool:
        """Whether a job in this state does not change anymore."""
        return not TRANSITIONS[self]


# By these names where a state is set for every task: through its class, an Enum's member is slow to reach.
PENDING, QUEUED, RUNNING, SUCCEEDED, FAILED, SKIPPED, CANCELLED, SUPERSEDED, DROPPED = JobState

_NOT_RUN = frozenset({SKIPPED, CANCELLED, SUPERSEDED, DROPPED})

TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    PENDING: frozenset({QUEUED, RUNNING}) | _NOT_RUN,
    QUEUED: frozenset({RUNNING}) | _NOT_RUN,
    RUNNING: frozenset({SUCCEEDED, FAILED, CANCELLED}),
    SUCCEEDED: frozenset(),
    FAILED: frozenset(),
    SKIPPED: frozenset(),
    CANCELLED: frozenset(),
    SUPERSEDED: frozenset(),
    DROPPED: frozenset(),
}


def check_transition(before: JobState, after: JobState) -> None:
    """Raise RuntimeError unless `TRANSITIONS` has it: for tests, which watch every move."""
    if after not in TRANSITIONS[before]:
        raise RuntimeError(f"a job cannot go from {before.value} to {after.value}")


class Status(Enum):
    """Whether an executor takes work."""

    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


OPEN, CLOSING, CLOSED = Status
