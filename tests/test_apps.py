"""Apps around the middleware: lifespans, mounted apps, other apps in the same process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from starlette.applications import Starlette
from starlette.background import BackgroundTasks as StarletteTasks
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from fifo_background import (
    BackgroundTasks,
    ExecutorClosed,
    Job,
    JobState,
    OrderedBackgroundMiddleware,
    SerialExecutor,
    executor_of,
)
from tests.support.apps import Work
from tests.support.asgi import Exchange, get
from tests.support.log import Log
from tests.support.loops import run


def endpoint_of(tasks_class: Any, events: list[Any]) -> Any:
    def endpoint(request: Request) -> Response:
        tasks = tasks_class()
        tasks.add_task(events.append, request.query_params["n"])
        return Response(background=tasks)

    return endpoint


@pytest.mark.parametrize("with_lifespan", [True, False])
@pytest.mark.parametrize("started", [True, False])
def test_lifespans(with_lifespan: bool, started: bool, events: list[Any]) -> None:
    """With `lifespan=` or without, started or not (no lifespan at all), tasks run, and the end drains."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        executor_of(app).submit_nowait(events.append, "startup")
        yield
        events.append("shutdown")
        with pytest.raises(ExecutorClosed):
            executor_of(app).submit_nowait(events.append, "too late")

    app = Starlette(
        routes=[Route("/", endpoint_of(BackgroundTasks, events))],
        lifespan=lifespan if with_lifespan else None,
    )
    app.add_middleware(OrderedBackgroundMiddleware)
    client = TestClient(app)
    if started:
        with client:
            client.get("/?n=1")
            client.get("/?n=2")
    else:
        client.get("/?n=1")
        client.get("/?n=2")
    expected = ["1", "2"]
    assert events == (["startup", *expected, "shutdown"] if started and with_lifespan else expected)


def test_mounted_app(events: list[Any]) -> None:
    """A mounted app's middleware never sees a lifespan: its tasks run nevertheless, and nothing hangs."""
    inner = Starlette(routes=[Route("/", endpoint_of(BackgroundTasks, events))])
    inner.add_middleware(OrderedBackgroundMiddleware)
    outer = Starlette(routes=[Mount("/inner", app=inner)])
    with TestClient(outer) as client:
        for n in range(3):
            client.get(f"/inner/?n={n}")
    assert events == ["0", "1", "2"]


def test_two_apps(events: list[Any]) -> None:
    """Two apps in one event loop have an executor each, and a plain app beside them has none."""
    ours = Starlette(routes=[Route("/", endpoint_of(BackgroundTasks, events))])
    ours.add_middleware(OrderedBackgroundMiddleware)
    ours_too = Starlette(routes=[Route("/", endpoint_of(BackgroundTasks, events))])
    ours_too.add_middleware(OrderedBackgroundMiddleware)
    plain = Starlette(routes=[Route("/", endpoint_of(StarletteTasks, events))])
    both = Starlette(routes=[Mount("/a", app=ours), Mount("/b", app=ours_too), Mount("/c", app=plain)])
    with TestClient(both) as client:
        for path in ("/a/?n=a", "/b/?n=b", "/c/?n=c"):
            client.get(path)
    assert events == ["a", "b", "c"]

    async def compare() -> None:
        assert executor_of(ours) is executor_of(ours)
        assert executor_of(ours) is not executor_of(ours_too)
        with pytest.raises(LookupError):
            executor_of(plain)

    run("asyncio", compare)


async def test_executor_of_an_ended_request() -> None:
    """A task finds the executor by its request when that has ended, also in a mounted app."""
    found: list[Any] = []
    ended = anyio.Event()

    async def look(request: Request) -> None:
        await ended.wait()
        found.append(executor_of(request))

    async def endpoint(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(look, request)
        return Response(background=tasks)

    app = Starlette(routes=[Mount("/inner", app=Starlette(routes=[Route("/", endpoint)]))])
    app.add_middleware(OrderedBackgroundMiddleware, wait=False)
    with pytest.raises(LookupError, match="has not been started yet"):
        executor_of(app)
    exchange = await Exchange(app, "/inner/").run()
    assert exchange.error is None
    ended.set()
    await executor_of(app).join()
    assert found == [executor_of(app)]
    outside_of_ours = HTTPConnection({"type": "http", "app": app})
    assert executor_of(outside_of_ours) is executor_of(app)


async def test_executor_of_a_connection_that_is_kept() -> None:
    """The scope of a request that has ended still finds the executor."""
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        assert executor_of(HTTPConnection(scope)) is middleware.executor

    middleware = OrderedBackgroundMiddleware(app)
    await get(middleware)
    assert executor_of(HTTPConnection(scopes[0])) is middleware.executor


# -- lifespans without a clean end ---------------------------------------------------------------------------


class Life:
    """Calls the lifespan of an app: the messages that it is given, and those that it sends."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.sent: list[str] = []
        self.shutdown = anyio.Event()
        self.scope = anyio.CancelScope()
        self.ended = anyio.Event()
        self._asked = False

    async def receive(self) -> Any:
        if not self._asked:
            self._asked = True
            return {"type": "lifespan.startup"}
        await self.shutdown.wait()
        return {"type": "lifespan.shutdown"}

    async def send(self, message: Any) -> None:
        self.sent.append(message["type"])

    async def run(self) -> None:
        with self.scope:
            try:
                await self.app({"type": "lifespan"}, self.receive, self.send)
            except ValueError as error:
                self.sent.append(repr(error))
        self.ended.set()


async def test_closed_by_hand_before_the_lifespan(events: list[Any]) -> None:
    """An executor that was closed while there was no lifespan is over: the next lifespan gets a fresh one."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await middleware.executor.submit_nowait(events.append, 1)
        await send({"type": "lifespan.startup.complete"})
        await receive()

    middleware = OrderedBackgroundMiddleware(app)
    closed = middleware.executor
    await closed.aclose()
    with pytest.raises(ExecutorClosed):
        middleware.executor.submit_nowait(events.append, 0)
    life = Life(middleware)
    life.shutdown.set()
    with anyio.fail_after(5):
        await life.run()
    assert (life.sent, events) == (["lifespan.startup.complete"], [1])
    assert middleware.executor is not closed


@pytest.mark.parametrize("how", ["startup fails", "cancelled", "returns"])
async def test_lifespan_without_a_shutdown(how: str, events: list[Any], log: Log) -> None:
    """A lifespan that ends without a shutdown ends the executor: what is left is named, and keeps nobody."""
    work = Work(events)
    executors: list[SerialExecutor] = []
    jobs: list[Job[Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        executors.append(middleware.executor)
        if len(executors) == 1:
            jobs.extend(middleware.executor.submit_nowait(call, n) for n, call in enumerate(calls))
            while not events:
                await anyio.sleep(0)
            if how == "startup fails":
                await send({"type": "lifespan.startup.failed"})
                raise ValueError("no database")
            if how == "returns":
                await send({"type": "lifespan.startup.complete"})
                return
        await receive()

    calls = [work.gated, work.quick]
    middleware = OrderedBackgroundMiddleware(app)
    first, second = Life(middleware), Life(middleware)
    async with anyio.create_task_group() as group:
        group.start_soon(first.run)
        if how == "cancelled":
            while not events:
                await anyio.sleep(0)
            first.scope.cancel()
        await first.ended.wait()
        group.start_soon(second.run)
        await wait_all_tasks_blocked()
        assert executors[1] is not executors[0]
        assert await executors[1].submit_nowait(work.quick, 2) == 2
        second.shutdown.set()
    assert (
        first.sent
        == {
            "startup fails": ["lifespan.startup.failed", "ValueError('no database')"],
            "cancelled": [],
            "returns": ["lifespan.startup.complete"],
        }[how]
    )
    assert [job.state for job in jobs] == [JobState.CANCELLED, JobState.DROPPED]
    assert events == ["start 0", 2]
    assert log == [
        "WARNING the lifespan ended before its shutdown: dropped 1 task: Work.quick 2-… in the default lane",
        "WARNING Work.gated 1-… in the default lane was cancelled",
    ]
