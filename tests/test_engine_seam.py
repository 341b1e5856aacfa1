"""What the middleware and the tasks object do with an engine, whatever it is: here one that keeps a list."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
import starlette.background
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from fifo_background import BackgroundTask, BackgroundTasks, OrderedBackgroundMiddleware, SerialExecutor
from tests.support.apps import app_of, check_idle
from tests.support.asgi import Lifespan, get
from tests.support.engine import ListEngine
from tests.support.log import Log


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


async def adds_here(request: Request) -> Response:
    """A handler that adds one task, with or without an engine."""
    return Response(background=BackgroundTask(request.scope["ran"].append, 1))


@pytest.mark.parametrize("inner", ["engine", "memory"])
@pytest.mark.parametrize("outer", ["engine", "memory"])
async def test_two_middlewares(outer: str, inner: str, log: Log) -> None:
    """Of two middlewares, with an engine or without, the outer one has the tasks; one warning says so."""
    ran: list[int] = []
    engines = {"outer": ListEngine(), "inner": ListEngine()}
    app: Any = Starlette(routes=[Route("/", adds_here)])
    for name, kind in (("inner", inner), ("outer", outer)):
        app = OrderedBackgroundMiddleware(app, engine=engines[name] if kind == "engine" else None)
    for _ in range(2):
        assert (await get(app, ran=ran)).status == 200
    assert engines["inner"].events == []
    assert (ran, engines["outer"].events.count(("add", (1,)))) == (
        ([], 2) if outer == "engine" else ([1, 1], 0)
    )
    assert sum("passes two OrderedBackgroundMiddleware" in text for text in log) == 1


async def test_handler_passes_its_request_on() -> None:
    """A handler calls its app again, with its own scope: the engine has one request."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/":
            await middleware({**scope, "path": "/other"}, receive, send)
        else:
            await Response(background=BackgroundTask(print, 1))(scope, receive, send)

    engine = ListEngine()
    middleware = OrderedBackgroundMiddleware(app, engine=engine)
    assert (await get(middleware)).status == 200
    assert engine.events == [("add", (1,)), "note", "run", ("end", None)]


async def test_executor_in_a_request() -> None:
    """What is in memory works in a request whose tasks an engine keeps."""
    seen: list[Any] = []

    async def handler(request: Request) -> Response:
        async with SerialExecutor() as executor:
            job = executor.submit_nowait(seen.append, 1)
            await job
            await (await executor.submit(seen.append, 2)).wait()
            await executor.join()
        return Response()

    exchange = await get(app_with(ListEngine(), handler))
    assert (exchange.status, exchange.error, seen) == (200, None, [1, 2])


@pytest.mark.virtual_clock
async def test_request_by_an_app_with_an_engine(events: list[Any]) -> None:
    """A request that holds a position is found through an app whose tasks an engine keeps."""

    async def handle(path: str, respond: Callable[[], Awaitable[None]]) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, path)
        if path == "/outer":
            with anyio.fail_after(4):  # less than `hold_timeout`
                assert (await get(between)).status == 200
        await respond()
        await tasks()

    async def asks(request: Request) -> Response:
        assert (await get(memory, "/inner")).error is None
        return Response()

    memory, between = app_of(handle), app_with(ListEngine(), asks)
    assert (await get(memory, "/outer")).error is None
    await memory.executor.join()
    assert events == ["/outer", "/inner"]
    assert (await get(between)).status == 200
    assert events == ["/outer", "/inner", "/inner"], "nothing holds it, so it waits for its task"
    check_idle(memory.executor)


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
