"""An app that another app's handler calls, and one that calls itself: whose tasks are these?"""

from __future__ import annotations

from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio import wait_all_tasks_blocked
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from fifo_background import BackgroundTasks, OrderedBackgroundMiddleware, executor_of
from tests.support.apps import app_of, check_idle, make_app
from tests.support.asgi import get, http_scope
from tests.support.log import Log


@pytest.mark.parametrize("settings", [{}, {"order": "arrived", "may_add_tasks": lambda scope: True}])
async def test_requests_with_a_copy_of_the_scope(
    settings: dict[str, Any], events: list[Any], log: Log
) -> None:
    """A handler that dispatches copies of its scope makes requests, each with tasks of its own."""

    async def work(name: str) -> None:
        if name == "bad":
            raise ValueError(name)
        events.append(name)

    async def single(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(work, request.scope["name"])
        return Response(background=tasks)

    async def batch(request: Request) -> Response:
        async def send(message: Any) -> None: ...

        for name in ("bad", "good"):
            scope = {**request.scope, "path": "/single", "raw_path": b"/single", "name": name}
            try:
                await app(scope, request.receive, send)
            except ValueError:
                events.append("failed")
        return Response("batch")

    app = make_app(single, batch, **settings)
    exchange = await get(app, "/batch")
    await wait_all_tasks_blocked()
    assert (exchange.status, exchange.error) == (200, None)
    if settings:  # the batch holds its position: its inner requests cannot wait for their tasks
        assert events == ["good"]
        assert [record.endswith("work failed (GET /single)") for record in log] == [True]
    else:
        assert events == ["failed", "good"]
        assert log == []


def test_test_client_in_a_handler(events: list[Any]) -> None:
    """The tasks of another app that a `def` handler calls through a test client run in the client's loop."""

    async def inner(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, "inner")
        return Response("inner", background=tasks)

    other = Starlette(routes=[Route("/", inner)])

    async def outer(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, "outer")

        def call() -> None:
            events.append(TestClient(other).get("/").status_code)

        await anyio.to_thread.run_sync(call)
        return Response(background=tasks)

    async def in_a_task(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(lambda: events.append(TestClient(other).get("/").status_code))
        return Response(background=tasks)

    with TestClient(make_app(outer, in_a_task)) as client:
        assert client.get("/outer").status_code == 200
        assert events == ["inner", 200, "outer"]
        events.clear()
        assert client.get("/in_a_task").status_code == 200
    assert events == ["inner", 200]


async def test_await_in_another_loop(events: list[Any]) -> None:
    """Tasks of a request that a thread awaits in a loop of its own run there."""

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()

        def own_loop() -> None:
            tasks.add_task(events.append, "own loop")
            anyio.run(tasks)

        await anyio.to_thread.run_sync(own_loop)
        return Response()

    exchange = await get(make_app(handler), "/handler")
    assert exchange.error is None
    assert events == ["own loop"]


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_app_without_the_middleware(kind: str, events: list[Any], log: Log) -> None:
    """Where FastAPI injects the object, the tasks of an app that a handler calls are its own request's."""
    fastapi = pytest.importorskip("fastapi")
    other = fastapi.FastAPI()

    async def work(n: int) -> None:
        if n == 2:
            raise ValueError(n)
        events.append(n)

    async def endpoint(n: int, tasks: Any) -> None:
        tasks.add_task(work, n)

    endpoint.__annotations__.update(n=int, tasks=BackgroundTasks)
    other.get("/{n}")(endpoint)

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        for n in (1, 2, 3):
            exchange = await get(other, f"/{n}", headers=[(b"n", b"%d" % n)])
            if exchange.error is not None:
                events.append("failed")
        events.append("called")
        tasks = BackgroundTasks()
        tasks.add_task(work, 4)
        if kind == "http":
            await Response(background=tasks)(scope, receive, send)

    app = OrderedBackgroundMiddleware(handler)
    await app({**http_scope("/outer"), "type": kind}, anyio.sleep_forever, _ignore)
    await executor_of(app).join()
    assert events == [1, "failed", 3, "called", 4]
    assert not [record for record in log if "skipped" in record or "/outer" in record]


async def _ignore(message: Any) -> None: ...


@pytest.mark.parametrize("submits", ["the other app's handler", "the handler itself"])
async def test_made_by_a_submitted_task(submits: str, events: list[Any]) -> None:
    """A request that a submitted task makes does not wait behind the request that waits for that task."""

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, path)
        if path == "/outer":
            if submits == "the handler itself":
                await other.executor.submit_nowait(get, app, "/inner")
            else:
                assert (await get(other)).error is None
        await respond()
        await tasks()

    async def handle_other(path: str, respond: Any) -> None:
        await other.executor.submit_nowait(get, app, "/inner")
        await respond()

    app, other = app_of(handle), app_of(handle_other)
    with anyio.fail_after(4):  # less than `hold_timeout`
        assert (await get(app, "/outer")).error is None
        await app.executor.join()
    assert events == ["/outer", "/inner"]
    check_idle(app.executor)
