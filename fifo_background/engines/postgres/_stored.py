"""A call as it is stored, and as a worker reads it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, field
from importlib.util import find_spec
from time import monotonic
from typing import Any

from fifo_background._settings import Retry
from fifo_background.engines.postgres._codec import Codec
from fifo_background.engines.postgres._functions import Functions

__all__ = (
    "Carried",
    "Claim",
    "Claimed",
    "Fate",
    "NewTask",
    "Running",
    "clean",
    "lock_of",
    "new_id",
    "running",
)

_HAS_TRACING = find_spec("opentelemetry") is not None


def new_id() -> str:
    """An id that nobody can guess."""
    return secrets.token_hex(16)


def clean(text: str) -> str:
    """Text that PostgreSQL takes."""
    return text.replace("\0", "�").encode("utf-8", "replace").decode()


def lock_of(queue: str, lane: str) -> str:
    """How procrastinate knows a lane: locks of all queues are in one table. `lane`: the key as text."""
    return f"{queue}/{lane}"


class Fate:
    """What becomes of a task that is not stored yet. Its request and its handle know it."""

    __slots__ = ("is_cancelled", "is_open")

    def __init__(self) -> None:
        self.is_open: bool = True  # until it is handed to the database
        self.is_cancelled: bool = False

    def cancel(self) -> bool:
        """Whether it was in time: then it is not stored."""
        self.is_cancelled = self.is_cancelled or self.is_open
        return self.is_cancelled


@dataclass(slots=True)
class NewTask:
    """A call that was added and is to be stored."""

    fate: Fate
    id: str
    name: str
    lane: str
    function: str
    arguments: str
    options: dict[str, Any]
    carried: dict[str, Any] | None

    def row(self, place: int) -> dict[str, Any]:
        return {
            "id": self.id,
            "place": place,
            "function": self.function,
            "arguments": self.arguments,
            "options": self.options,
            "carried": self.carried,
        }


class Carried:
    """What of a request's context goes with its tasks: the trace, and the variables that the app names."""

    def __init__(self, codec: Codec, variables: Mapping[str, ContextVar[Any]]) -> None:
        self._codec = codec
        self._variables = dict(variables)

    def take(self) -> dict[str, Any] | None:
        """Of the current context, in terms of JSON. Raises TypeError for a value that cannot be stored."""
        taken: dict[str, Any] = {}
        for name, variable in self._variables.items():
            value = variable.get(taken)
            if value is not taken:
                try:
                    taken[name] = self._codec.write(value)
                except TypeError as error:
                    raise TypeError(f"the context variable {name!r} cannot be stored: {error}") from None
        carried: dict[str, Any] = {"variables": taken} if taken else {}
        if _HAS_TRACING:
            from opentelemetry import propagate

            trace: dict[str, str] = {}
            propagate.inject(trace)
            if trace:
                carried["trace"] = trace
        return carried or None

    def context(self, carried: Mapping[str, Any] | None, task: Running) -> Context:
        """A context in which a task finds itself, and what was taken."""
        context = copy_context()
        context.run(_running.set, task)
        context.run(self._set, carried or {})
        return context

    def _set(self, carried: Mapping[str, Any]) -> None:
        for name, text in carried.get("variables", {}).items():
            if name in self._variables:
                self._variables[name].set(self._codec.read(text))
        if _HAS_TRACING and carried.get("trace"):
            from opentelemetry import context, propagate

            context.attach(propagate.extract(carried["trace"]))


class Running:
    """The stored task in whose context something runs, in this process."""

    __slots__ = ("_changed", "id", "is_running", "lane", "name", "queue", "waits")

    def __init__(self, queue: str, lane: str, id: str, name: str, changed: Callable[[], object]) -> None:
        self.queue: str = queue
        self.lane: str = lane  # the key as text
        self.id: str = id
        self.name: str = name
        self.is_running: bool = True  # what it has left behind is not it
        self.waits: int = 0  # for tasks of other lanes; it lends its slot meanwhile
        self._changed = changed

    def begin_wait(self) -> None:
        self.waits += 1
        self._changed()

    def end_wait(self) -> None:
        self.waits -= 1


_running: ContextVar[Running | None] = ContextVar("fifo_background_stored", default=None)


def running(queue: str) -> Running | None:
    """The task of that queue that runs in the current context."""
    found = _running.get()
    return found if found is not None and found.is_running and found.queue == queue else None


@dataclass(frozen=True, slots=True)
class Claimed:
    """One task of a job that a worker has."""

    id: str
    function: str
    arguments: str
    options: dict[str, Any]
    lane: str
    request: str | None
    carried: dict[str, Any] | None
    attempts: int
    age: float
    """Seconds from its adding to its fetching."""

    @property
    def name(self) -> str:
        return self.function.partition(":")[2]

    @property
    def retry(self) -> Retry | None:
        given = self.options.get("retry")
        return None if given is None else Retry(**given)

    def call(
        self, functions: Functions, codec: Codec
    ) -> tuple[Callable[..., Any], list[Any], dict[str, Any]]:
        """The function and its arguments. Raises what reading them raises: `NotAllowedError` and others."""
        function = functions.function(self.function)
        args, kwargs = codec.read_arguments(self.arguments)
        return function, args, kwargs


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that a worker has: what one request has added to one lane."""

    job: int
    attempts: int
    lock: str
    tasks: tuple[Claimed, ...]
    fetched_at: float = field(default_factory=monotonic)

    @property
    def key(self) -> tuple[int, int]:
        """Tells it from the same job as it is fetched again."""
        return self.job, self.attempts

    @classmethod
    def of(cls, fetched: Mapping[str, Any]) -> Claim:
        tasks = (dict(one) for one in fetched["tasks"])
        return cls(
            fetched["job"],
            fetched["attempts"],
            fetched["lock"],
            tuple(
                Claimed(**{**one, "attempts": one["attempts"] + (place > 0)})
                for place, one in enumerate(tasks)
            ),
        )
