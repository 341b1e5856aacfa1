"""The errors of this engine that a user can meet."""

from __future__ import annotations

from fifo_background.exceptions import OrderedBackgroundError, Refused

__all__ = ("SchemaError", "StoreError", "TaskFailed", "UnreachableError", "WorkerLost")


class StoreError(Refused, RuntimeError):
    """The tasks of a request could not be stored; its client gets 503, if its response has not begun.

    `retry_after` (seconds) is the `Retry-After` header of the 503.
    """


class UnreachableError(OrderedBackgroundError, ConnectionError):
    """PostgreSQL has not answered a question in time. `retry_after` (seconds): when to ask again."""

    retry_after: int = 1


class SchemaError(OrderedBackgroundError, RuntimeError):
    """The tables in the database are not those that this version needs."""


class TaskFailed(OrderedBackgroundError, RuntimeError):
    """A task failed in a worker. `type` and `text` are what its error was and said."""

    def __init__(self, name: str, type: str, text: str) -> None:
        super().__init__(f"{name} failed with {type}: {text}")
        self.name: str = name
        self.type: str = type
        self.text: str = text

    def __reduce__(self) -> tuple[object, ...]:
        return TaskFailed, (self.name, self.type, self.text)


class WorkerLost(OrderedBackgroundError, RuntimeError):
    """This worker's heartbeats did not reach the database in time: others have taken its jobs."""
