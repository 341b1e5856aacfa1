"""Every error of this package that a user can meet. Each subclasses the builtin people already catch."""

from __future__ import annotations

__all__ = ("ExecutorClosed", "JobDropped", "JobNotEnded", "OrderedBackgroundError")


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
    """A job ended without a result: it was dropped, skipped or cancelled."""

    def __init__(self, what: str, state: str) -> None:
        super().__init__(f"{what} has no result: it was {state}")
