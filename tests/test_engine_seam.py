"""What the middleware and the tasks object do with an engine, whatever it is: here one that keeps a list."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
import starlette.background
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Scope, Send

from fifo_background import BackgroundTasks, OrderedBackgroundMiddleware
from fifo_background._engine import EngineRequest
from fifo_background._entries import Entry
from fifo_background._run.backends.api import running_loop
from fifo_background._settings import Settings
from tests.support.asgi import Lifespan, get


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


def app_with(engine: ListEngine, handler: Any) -> Starlette:
    app = Starlette(routes=[Route("/", handler)])
    app.add_middleware(OrderedBackgroundMiddleware, engine=engine)
    return app


async def adds(request: Request) -> Response:
    """A handler that adds one task, and stores it."""
    tasks = BackgroundTasks()
    assert tasks.add_task(print, 1) == "handle"
    await tasks.store("a connection")
    return Response(background=tasks)


async def test_a_request() -> None:
    """What is added goes to the engine; the object that is awaited, too."""
    engine = ListEngine()
    assert (await get(app_with(engine, adds))).status == 200
    assert engine.events == ["note", ("add", (1,)), ("store", "a connection"), "run", ("end", None)]


async def test_two_middlewares() -> None:
    """Of two middlewares with an engine the outer one keeps the tasks."""
    outer, inner = ListEngine(), ListEngine()
    app = OrderedBackgroundMiddleware(app_with(inner, adds), engine=outer)
    assert (await get(app)).status == 200
    assert ("add", (1,)) in outer.events
    assert inner.events == []


async def test_replaced_add_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where somebody has replaced `add_task` of Starlette's class, what he adds goes to the engine."""
    theirs = starlette.background.BackgroundTasks
    original = theirs.add_task

    def traced(self: Any, func: Any, *args: Any, **kwargs: Any) -> None:
        original(self, func, *args, **kwargs)

    monkeypatch.setattr(theirs, "add_task", traced)
    engine = ListEngine()
    assert (await get(app_with(engine, adds))).status == 200
    assert ("add", (1,)) in engine.events


async def test_another_event_loop(events: list[Any]) -> None:
    """An object that is awaited in another event loop runs there: the engine is of the request's loop."""

    async def handler(request: Request) -> Response:
        def elsewhere() -> None:
            tasks = BackgroundTasks()
            tasks.tasks.append(BackgroundTask(events.append, 1))
            anyio.run(tasks)

        await anyio.to_thread.run_sync(elsewhere)
        return Response()

    engine = ListEngine()
    assert (await get(app_with(engine, handler))).status == 200
    assert events == [1]
    assert "run" not in engine.events


async def test_a_lifespan() -> None:
    """An engine is opened with the lifespan, and closed with it."""
    engine = ListEngine()
    lifespan = Lifespan(app_with(engine, adds))
    lifespan.shutdown.set()
    await lifespan.run()
    assert lifespan.sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert engine.events == ["open", "close"]


async def test_a_lifespan_that_is_cancelled() -> None:
    """It is closed where the lifespan ends without a shutdown."""
    engine = ListEngine()
    lifespan = Lifespan(app_with(engine, adds))
    async with anyio.create_task_group() as group:
        group.start_soon(lifespan.run)
        while not lifespan.sent:
            await anyio.sleep(0)
        lifespan.scope.cancel()
    assert engine.events == ["open", "close"]


async def test_an_engine_that_cannot_open() -> None:
    """The startup fails, so that a server does not take the app for one without a lifespan."""
    engine = ListEngine(ValueError("no tables"))
    lifespan = Lifespan(app_with(engine, adds))
    await lifespan.run()
    assert lifespan.sent == ["lifespan.startup.failed", "ValueError('no tables')"]
    assert engine.events == ["open"]
