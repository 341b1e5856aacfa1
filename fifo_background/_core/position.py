"""A position: where the tasks of one request, or one submitted task, stand in the queue of a lane."""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import Context, copy_context
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from fifo_background._core.chain import Chain
from fifo_background._core.job import Job

if TYPE_CHECKING:
    from fifo_background._core.lane import Lane

__all__ = ("GONE", "IN_QUEUE", "OUTSIDE", "Owner", "Position", "PositionState")


class Owner(Protocol):
    """What a position needs of the request that it belongs to."""

    @property
    def skips_rest(self) -> bool:
        """Whether a failed task skips the tasks after it."""
        ...

    @property
    def has_ended(self) -> bool:
        """Whether nothing can be awaited in it anymore."""
        ...

    @property
    def named(self) -> bool:
        """Whether it is a request that a log record can name."""
        ...

    @property
    def label(self) -> str | None:
        """Its method and path; None where it is no request."""
        ...

    def forget(self, position: Position) -> None:
        """A position has left its queue for good, after the request had ended."""
        ...


class PositionState(Enum):
    """Where a position is. One that was lost, or not taken yet, is OUTSIDE."""

    OUTSIDE = "outside"
    IN_QUEUE = "in queue"
    GONE = "gone"


OUTSIDE, IN_QUEUE, GONE = PositionState

# What a position has until a job is added. It is replaced, and never changed.
NONE_ADDED: list[Job[Any]] = []


class Position(Chain[Job[Any]]):
    """A chain of the jobs that are ready to run. The order between positions is the lane's.

    Written by the event loop, except `added`, which any thread appends to, and fields that are set before the
    position is published.
    """

    __slots__ = (
        "_next",
        "_previous",
        "added",
        "arriving",
        "context",
        "lane",
        "made_by",
        "number",
        "owner",
        "state",
        "taken",
    )

    def __init__(
        self, lane: Lane, owner: Owner | None, added: list[Job[Any]] = NONE_ADDED, made_by: Any = None
    ) -> None:
        self.first: Job[Any] | None = None
        self.last: Job[Any] | None = None
        self.lane: Lane = lane
        self.owner: Owner | None = owner
        self.state: PositionState = OUTSIDE
        self.number: int = 0  # in its lane: positions with higher numbers were taken later
        self.taken: float = 0.0  # when, in the loop's seconds; `hold_timeout` counts from here
        self.context: Context | None = None  # in which its async jobs run
        self.made_by: Any = made_by  # the `Origin` of its jobs: its owner, or what submitted its job
        self.arriving: bool = False  # held by a request that may still add tasks (order="arrived")
        # Added, but not ready: while one of them waits they hold the position. Jobs that are ready, or have
        # ended, leave it when the loop looks (`held`).
        self.added: list[Job[Any]] = added
        self._next: Position | None = None
        self._previous: Position | None = None

    def submit(self, job: Job[Any], now: float) -> None:
        """The one job of a position that no request owns; it is not published yet."""
        self.first = self.last = job
        job._queued = True
        self.taken = now

    def keep_context(self) -> None:
        """Its async jobs run in a copy of the caller's context, unless it has one."""
        if self.context is None:
            self.context = copy_context()

    @property
    def runs(self) -> bool:
        """Whether a job of it runs."""
        running = self.lane.running
        return running is not None and running._position is self

    @property
    def held(self) -> bool:
        """Whether it keeps the positions behind it waiting, although none of its jobs is ready."""
        return self.arriving or (bool(self.added) and self._has_pending())

    def _has_pending(self) -> bool:
        added = self.added
        known = len(added)
        passed = 0
        while passed < known and not self._is_pending(added[passed]):
            passed += 1
        if passed:
            del added[:passed]  # one atomic act; threads only append
        return bool(added)

    @property
    def has_added(self) -> bool:
        """Whether a job was added and is not ready; for a thread, which changes nothing."""
        return any(self._is_pending(job) for job in tuple(self.added))

    @property
    def pending(self) -> list[Job[Any]]:
        """What was added and is not ready, in order."""
        return [job for job in self.added if self._is_pending(job)]

    def _is_pending(self, job: Job[Any]) -> bool:
        return not job._queued and job._own_state is None and job._position is self

    @property
    def waiting(self) -> Iterator[Job[Any]]:
        """What has not been claimed, in order: first what is ready."""
        for job in self:
            if job._own_state is None:
                yield job
        for job in tuple(self.added):  # one by one: most look at the first only
            if self._is_pending(job):
                yield job
