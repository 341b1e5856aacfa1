"""What few jobs have: parts, a span, a report of their progress, callbacks."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from fifo_background._core.job import Job

__all__ = ("Callback", "Progress", "Special")


class Progress(NamedTuple):
    """How far a task is, as it has reported it (`report`)."""

    done: float
    total: float | None = None
    note: str | None = None


class Special:
    """What few jobs have."""

    __slots__ = ("around", "ended_with_outer", "function", "outer", "parts", "progress", "retry_of")

    def __init__(self) -> None:
        self.around: Any = None  # what FastAPI opens a span with
        self.function: object = None  # stands for the function, with keep="latest"
        self.parts: list[Job[Any]] | None = None  # of the object that is this job's task
        self.outer: Job[Any] | None = None  # the job that this one is a part of
        self.ended_with_outer: bool = False  # without having run
        self.progress: Progress | None = None  # as the task has reported it
        self.retry_of: int | None = None  # the number of the failed job that it runs again

    def take_parts(self) -> list[Job[Any]]:
        """The parts that have not run, claimed: the job has ended."""
        parts, self.parts = self.parts or [], None
        return [part for part in parts if part._claim()]


class Callback:
    """A function that is called when a job has ended."""

    __slots__ = ("context", "function", "job")

    def __init__(self, job: Job[Any], function: Callable[[Job[Any]], object], context: Context) -> None:
        self.job: Job[Any] = job
        self.function: Callable[[Job[Any]], object] = function
        self.context: Context = context

    def __call__(self) -> None:
        self.context.run(self.function, self.job)
