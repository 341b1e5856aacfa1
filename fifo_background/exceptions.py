"""Every error of this package that a user can meet. Each subclasses the builtin people already catch."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable

__all__ = (
    "ExecutorClosed",
    "JobDropped",
    "JobNotEnded",
    "LaneStopped",
    "OrderedBackgroundError",
    "QueueFull",
    "WouldDeadlock",
)


class OrderedBackgroundError(Exception):
    """The base of every error that this package defines."""


class ExecutorClosed(OrderedBackgroundError, RuntimeError):
    """The executor has been closed (its app shuts down) and takes no new work."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} was refused: the executor is closed, its app is shutting down. "
            "Add tasks before lifespan.shutdown, or run the function directly."
        )


class JobNotEnded(OrderedBackgroundError, RuntimeError):
    """The result of a job was asked for before the job ended."""

    def __init__(self, what: str, state: str) -> None:
        super().__init__(f"{what} has not ended, it is {state}: `await job.wait()` first")


class JobDropped(OrderedBackgroundError, RuntimeError):
    """A job ended without a result: it was dropped, skipped, superseded or cancelled."""

    def __init__(self, what: str, state: str) -> None:
        super().__init__(f"{what} has no result: it was {state}")


class QueueFull(OrderedBackgroundError, asyncio.QueueFull):
    """`max_pending` tasks wait already. `retry_after` (seconds) is what a 503 tells the client."""

    retry_after: int = 1

    def __init__(self, what: str, waiting: int) -> None:
        super().__init__(
            f"{what} was refused: {waiting} tasks wait already (max_pending). Try later, or use "
            "`await executor.submit(...)`, which waits for room"
        )


class LaneStopped(OrderedBackgroundError, RuntimeError):
    """A request waited for its tasks in a lane that a failed task has stopped (`after_failure="stop"`).

    The tasks stay in line.
    """

    def __init__(self, key: Hashable, failed: str) -> None:
        super().__init__(
            f"{lane_name(key)} has stopped, because {failed} failed. The tasks stay in line until "
            "`executor.lane(key)` is told `retry_head()`, `skip_head()` or `clear()`"
        )


class WouldDeadlock(OrderedBackgroundError, RuntimeError):
    """A task or request waits for what cannot happen before it ends, or gives up its place."""

    def __init__(self, who: str, what: str) -> None:
        super().__init__(
            f"{who} would wait for ever: {what}. Wait after it has ended, or leave out the waiting"
        )


def lane_name(key: Hashable) -> str:
    """How logs and errors call a lane."""
    return "the line" if key is None else f"lane {key!r}"
