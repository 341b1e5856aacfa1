"""`order="arrived"`: the order of requests, whatever their handlers do."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio import wait_all_tasks_blocked
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from fifo_background import BackgroundTask, BackgroundTasks, OrderedBackgroundMiddleware, executor_of
from tests.support.apps import check_idle, make_app
from tests.support.asgi import Client, get
from tests.support.log import Log


def everything(scope: Any) -> bool:
    return True


class Late:
    """A handler that adds its tasks when the gate of its query is opened."""

    def __init__(self, events: list[Any]) -> None:
        self.events = events
        self.gates = {name: anyio.Event() for name in "abc"}

    async def note(self, what: object) -> None:
        self.events.append(what)

    async def late(self, request: Request) -> Response:
        name = request.url.query
        await self.gates[name].wait()
        tasks = BackgroundTasks()
        if name != "c":
            tasks.add_task(self.note, name)
            tasks.add_task(self.note, name)
        return Response(background=tasks)


async def test_order_of_requests(events: list[Any]) -> None:
    """A request takes its position when it reaches the middleware: handlers that wait cannot reorder it."""
    late = Late(events)
    app = make_app(late.late, order="arrived", may_add_tasks=everything)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        for name in "abc":
            await client.start("/late", query_string=name.encode())
        for name in "cb":
            late.gates[name].set()
            await wait_all_tasks_blocked()
        assert events == []
        late.gates["a"].set()
    assert events == ["a", "a", "b", "b"]


async def test_without_tasks(events: list[Any]) -> None:
    """A request that ends without tasks, or raises, gives its position up at once."""
    late = Late(events)

    async def fails(request: Request) -> Response:
        await late.gates["b"].wait()
        raise ValueError

    app = make_app(late.late, fails, order="arrived", may_add_tasks=everything)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        await client.start("/late", query_string=b"c")
        await client.start("/fails")
        executor_of(app).submit_nowait(late.note, 1)
        await wait_all_tasks_blocked()
        assert events == []
        statistics = executor_of(app).statistics().lanes[None]
        assert (statistics.held_by, statistics.head) == ("GET /late", None)
        late.gates["c"].set()
        await wait_all_tasks_blocked()
        assert events == []
        late.gates["b"].set()
        await wait_all_tasks_blocked()
        assert events == [1]
    check_idle(executor_of(app))


async def test_only_those_that_may_add(events: list[Any]) -> None:
    """`may_add_tasks` tells which requests hold a position on arrival; others take theirs as in "added"."""
    late = Late(events)
    app = make_app(late.late, order="arrived", may_add_tasks=lambda scope: scope["query_string"] == b"a")
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        for name in "ba":
            await client.start("/late", query_string=name.encode())
        for name in "ba":
            late.gates[name].set()
            await wait_all_tasks_blocked()
    assert events == ["a", "a", "b", "b"]


@pytest.mark.virtual_clock
async def test_hold(events: list[Any], log: Log) -> None:
    """An arrived request that stalls loses its position after `hold_timeout` seconds, and is queued anew."""
    late = Late(events)
    app = make_app(late.late, order="arrived", may_add_tasks=everything, hold_timeout=5)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        for name in "ab":
            await client.start("/late", query_string=name.encode())
        late.gates["b"].set()
        await anyio.sleep(4.9)
        assert events == []
        await anyio.sleep(0.2)
        assert events == ["b", "b"]
        late.gates["a"].set()
    assert events == ["b", "b", "a", "a"]
    (record,) = log
    assert record.startswith("WARNING GET /late lost its position")


async def test_its_lane(events: list[Any]) -> None:
    """An arrived request holds its position in the lane that the middleware's `lane_key` names."""
    late = Late(events)
    app = make_app(
        late.late,
        order="arrived",
        may_add_tasks=everything,
        lane_key=lambda scope: scope["query_string"] == b"a",
    )
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        for name in "ab":
            await client.start("/late", query_string=name.encode())
        late.gates["b"].set()
        await wait_all_tasks_blocked()
        assert events == ["b", "b"]
        late.gates["a"].set()
    assert events == ["b", "b", "a", "a"]


async def test_arriving_after_the_end(events: list[Any]) -> None:
    """A request that arrives after the executor was closed holds nothing, and is answered."""
    app = make_app(Late(events).late, order="arrived", may_add_tasks=everything)
    await get(app, "/nothing")
    executor = executor_of(app)
    await executor.aclose()
    assert (await get(app, "/nothing")).status == 404
    assert not executor._runner.scheduler.lanes.default.first
    check_idle(executor)


async def test_websockets_hold_no_position(events: list[Any]) -> None:
    """A websocket holds no position with "arrived" either; its tasks are queued when it has ended."""

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        BackgroundTasks().add_task(events.append, "websocket")
        executor = executor_of(websocket)
        await executor.submit_nowait(events.append, "meanwhile")

    app = Starlette(
        routes=[WebSocketRoute("/", endpoint)],
        middleware=[Middleware(OrderedBackgroundMiddleware, order="arrived", may_add_tasks=everything)],
    )

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None: ...

    scope = {"type": "websocket", "path": "/", "headers": [], "query_string": b"", "subprotocols": []}
    await app(scope, receive, send)
    assert events == ["meanwhile", "websocket"]


def test_may_add_tasks_without_arrived() -> None:
    """`may_add_tasks` with another order is refused, and so is a value that is not a function."""
    refused = "may_add_tasks= is only for order=\"arrived\", and the order is 'added'"
    with pytest.raises(ValueError, match=refused):
        OrderedBackgroundMiddleware(Starlette(), may_add_tasks=everything)
    for name in ("may_add_tasks", "lane_key"):
        with pytest.raises(TypeError, match=f"{name}=1: give a function of the ASGI scope"):
            OrderedBackgroundMiddleware(Starlette(), order="arrived", **{name: 1})  # type: ignore[arg-type]


async def test_nothing_asks_for_tasks(events: list[Any], log: Log) -> None:
    """Where no FastAPI route asks for tasks, "arrived" warns once, and the tasks run."""

    async def handler(request: Request) -> Response:
        return Response(background=BackgroundTask(events.append, 1))

    app = make_app(handler, order="arrived")
    for _ in range(2):
        assert (await get(app, "/handler")).error is None
    assert events == [1, 1]
    assert (
        len([line for line in log if line.startswith('WARNING order="arrived": no FastAPI route asks')]) == 1
    )
