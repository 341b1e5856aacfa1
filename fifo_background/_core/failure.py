"""How the function of a job failed."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from starlette.background import BackgroundTask

__all__ = ("Failure",)

# Of a foreign exception no attribute is looked at: it may define, or refuse, any.
_TRACEBACK: Callable[[BaseException], Any] = vars(BaseException)["__traceback__"].__get__


class Failure:
    """How a function failed, and whether anybody has been told."""

    __slots__ = ("error", "number", "reported", "task", "traceback")

    def __init__(self, error: BaseException, number: int) -> None:
        self.error: BaseException = error
        # where the function raised it: each time it is raised again, what earlier raises added is left out
        self.traceback: TracebackType | None = _TRACEBACK(error)
        self.number: int = number  # failures with lower numbers came first
        self.reported: bool = False  # raised to somebody who waited, or logged
        self.task: BackgroundTask | None = None  # for a retry, where the lane has stopped

    def throw(self) -> None:
        """Raise the error, which reports it."""
        self.reported = True
        try:
            raise BaseException.with_traceback(self.error, self.traceback)
        finally:
            del self  # a traceback that holds this frame must not hold the error through it
