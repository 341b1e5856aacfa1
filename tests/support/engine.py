"""An engine that keeps a list of what is asked of it, and runs nothing."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from starlette.background import BackgroundTask
from starlette.types import Message, Scope, Send

from fifo_background._engine import EngineRequest
from fifo_background._entries import Entry
from fifo_background._run.backends.api import running_loop
from fifo_background._settings import Settings


class ListRequest(EngineRequest):
    """A request whose tasks are kept in the list of its engine."""

    def __init__(self, engine: ListEngine, scope: Scope, send: Send) -> None:
        self.scope = scope
        self._engine = engine
        self._send = send
        self._loop = running_loop()

    has_ended = False
    unanswered = False
    executor = "executor"

    @property
    def is_here(self) -> bool:
        try:
            return running_loop() is self._loop
        except RuntimeError:
            return False

    def add(self, task: BackgroundTask, entry: Entry | None) -> str:
        self._engine.events.append(("add", task.args))
        return "handle"

    def note(self, made: Any) -> None:
        self._engine.events.append("note")

    def send(self, message: Message) -> Awaitable[None]:
        return self._send(message)

    async def run(self, tasks: Any) -> None:
        self._engine.events.append("run")

    async def store(self, tasks: Any, connection: Any) -> None:
        self._engine.events.append(("store", connection))

    async def end(self, error: BaseException | None) -> None:
        self._engine.events.append(("end", error))


class ListEngine:
    """Keeps tasks in a list, and runs none."""

    executor = "executor"

    def __init__(self, error: Exception | None = None) -> None:
        self.events: list[Any] = []
        self._error = error

    def bind(self, settings: Settings, given: frozenset[str]) -> Settings:
        return settings

    def request(self, scope: Scope, send: Send) -> ListRequest:
        return ListRequest(self, scope, send)

    async def open(self) -> None:
        self.events.append("open")
        if self._error is not None:
            raise self._error

    async def close(self) -> None:
        self.events.append("close")
