"""Every error of this package that a user can meet. Each subclasses the builtin people already catch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = (
    "ExecutorClosed",
    "JobNoResult",
    "JobNotEnded",
    "LaneStopped",
    "OrderedBackgroundError",
    "QueueFull",
    "Refused",
    "WouldDeadlock",
    "counted",
    "lane_name",
    "safe_repr",
)

# What a task or request writes to run something that it can wait for.
SUBMIT_ELSEWHERE = "`job = executor_of(request).lane(...).submit_nowait(func, ...)` in another lane"
STORE_ELSEWHERE = "`job = await executor_of(request).lane(...).submit(func, ...)` in another lane"


class OrderedBackgroundError(Exception):
    """The base of every error that this package defines."""


class ExecutorClosed(OrderedBackgroundError, RuntimeError):
    """The executor is closed, or its app is shutting down: it takes no new work."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} was refused: the executor is closed, or its app is shutting down. "
            "Add tasks before lifespan.shutdown, or call the function directly."
        )


class JobNotEnded(OrderedBackgroundError, RuntimeError):
    """The result of a job was asked for before the job ended."""

    def __init__(self, what: str, state: str) -> None:
        super().__init__(
            f"{what} has not ended: it is {state}. Await it outside its own request and lane. A handler "
            f"cannot wait for its own tasks, as they run after its response: use {SUBMIT_ELSEWHERE}, then "
            "`await job`"
        )


class JobNoResult(OrderedBackgroundError, RuntimeError):
    """A job ended without a result: it was cancelled, skipped, superseded or dropped."""

    def __init__(self, what: str, state: str) -> None:
        super().__init__(f"{what} has no result: it was {state}")


class Refused(OrderedBackgroundError):
    """A request for which its client gets 503, unless somebody handles it.

    `retry_after` (seconds) is the `Retry-After` header of the 503.
    """

    retry_after: int = 1


class QueueFull(Refused, asyncio.QueueFull):
    """`max_waiting` tasks wait already. `retry_after` (seconds) is the `Retry-After` header of the 503."""

    def __init__(self, what: str, waiting: int, *, submit_waits: bool = True) -> None:
        super().__init__(
            f"{what} was refused: {counted(waiting, 'task waits', 'tasks wait')} already (max_waiting). "
            "Try later"
            + (
                ", or use `await executor.submit(...)`, which waits for capacity (not inside a task)"
                if submit_waits
                else ""
            )
        )


class LaneStopped(OrderedBackgroundError, RuntimeError):
    """A request waited for its tasks in a lane that a failed task has stopped.

    This happens only with `lane_after_failure="stop"` or `after_failure="stop"`. The tasks stay in the queue.
    """

    def __init__(self, key: object, failed: str) -> None:
        super().__init__(
            f"{lane_name(key)} has stopped, because {failed} failed. The tasks stay in the queue until "
            "you call `retry_head()`, `skip_head()` or `clear()` on `executor.lane(key)`"
        )


class WouldDeadlock(OrderedBackgroundError, RuntimeError):
    """A task or request waits for something that cannot happen before it ends."""

    def __init__(self, who: str, what: str, *, instead: str = SUBMIT_ELSEWHERE) -> None:
        super().__init__(
            f"{who} would wait forever: {what}. To run something and wait for it, "
            f"use {instead}, then `await job`"
        )


def lane_name(key: object) -> str:
    """How logs and errors name a lane."""
    return "the default lane" if key is None else f"lane {safe_repr(key)}"


_NAME: Callable[[type], str] = vars(type)["__name__"].__get__  # whatever a metaclass does


def safe_repr(value: object) -> str:
    """`repr`, of an object that may not have one."""
    try:
        return repr(value)
    except Exception:
        return f"<{_NAME(type(value))}>"


def counted(number: int, one: str, many: str) -> str:
    """A number with what it counts: "1 task waits", "2 tasks wait"."""
    return f"{number} {one if number == 1 else many}"
