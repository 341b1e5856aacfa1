"""What the middleware and the tasks object need of an engine, which keeps tasks outside of this process.

Without one, `TrackedRequest` and the executor in memory are what `EngineRequest` and `Engine` are here.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Protocol

from starlette.background import BackgroundTask
from starlette.types import Message, Scope, Send

from fifo_background._entries import Entry
from fifo_background._settings import Settings

__all__ = ("Engine", "EngineRequest")


class EngineRequest:
    """A request whose tasks an engine keeps."""

    scope: Scope
    settings: Settings
    """Of the middleware."""

    @property
    def has_ended(self) -> bool:
        """Whether nothing can be added to it anymore."""
        raise NotImplementedError

    @property
    def is_here(self) -> bool:
        """Whether the running event loop, if there is one, is that of the request."""
        raise NotImplementedError

    def add(self, task: BackgroundTask, entry: Entry | None) -> Any:
        """`add_task`, from any thread: a handle to the task, which is stored later.

        Raises TypeError for what the engine cannot carry, RuntimeError after the end.
        """
        raise NotImplementedError

    def note(self, made: Any) -> None:
        """A background object was made in the request: its tasks are stored with the others."""
        raise NotImplementedError

    def send(self, message: Message) -> Awaitable[None]:
        """The ASGI `send` of the request: stores what was added before the response begins."""
        raise NotImplementedError

    async def run(self, tasks: Any) -> None:
        """`await tasks()`. Raises RuntimeError after the end."""
        raise NotImplementedError

    async def store(self, tasks: Any, connection: Any) -> None:
        """Store what was added to this object now, in the transaction of that connection if there is one."""
        raise NotImplementedError

    async def end(self, error: BaseException | None) -> None:
        """The app has returned, or raised."""
        raise NotImplementedError

    @property
    def executor(self) -> Any:
        """What `executor_of` returns for it."""
        raise NotImplementedError

    @property
    def unanswered(self) -> bool:
        """Whether an HTTP response can still be begun."""
        raise NotImplementedError


class Engine(Protocol):
    """Keeps the tasks of one app, and runs them."""

    def bind(self, settings: Settings, given: frozenset[str]) -> Settings:
        """The settings of the app that uses it. Raises ValueError for a given one that does not apply."""
        ...

    def request(self, scope: Scope, send: Send) -> EngineRequest: ...

    @property
    def executor(self) -> Any:
        """What `executor_of` returns: in the running event loop, or in a thread where there is only one.

        An engine gives it a type of its own; `executor_of` has that of the executor in memory.
        """
        ...

    async def open(self) -> None:
        """A lifespan begins, in the running event loop."""
        ...

    async def close(self) -> None:
        """It is told to shut down."""
        ...
