"""Websockets: their tasks are queued when the connection has ended."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.to_thread
from anyio import wait_all_tasks_blocked
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from fifo_background import (
    BackgroundTask,
    BackgroundTasks,
    OrderedBackgroundMiddleware,
)
from tests.support.asgi import Exchange, get
from tests.support.log import Log


async def test_websocket(events: list[Any]) -> None:
    """A websocket holds no position: its tasks are queued when the connection has ended."""

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        tasks = BackgroundTasks()
        tasks.add_task(events.append, "ws 1")
        other = BackgroundTasks()
        other.add_task(events.append, "ws 2")
        tasks.add_task(events.append, "ws 3")
        await websocket.receive_text()

    async def handler(request: Request) -> Response:
        return Response(background=BackgroundTask(events.append, "http"))

    app = Starlette(
        routes=[WebSocketRoute("/ws", endpoint), Route("/handler", handler)],
        middleware=[Middleware(OrderedBackgroundMiddleware)],
    )

    class Socket(Exchange):
        async def receive(self) -> dict[str, Any]:
            if not self._asked:
                self._asked = True
                return {"type": "websocket.connect"}
            await self.disconnected.wait()
            return {"type": "websocket.disconnect", "code": 1000}

    async with anyio.create_task_group() as group:
        socket = Socket(app, "/ws", type="websocket", subprotocols=[])
        group.start_soon(socket.run)
        await wait_all_tasks_blocked()
        await get(app, "/handler")
        assert events == ["http"]
        socket.disconnected.set()
        await socket.ended.wait()
    assert events == ["http", "ws 1", "ws 2", "ws 3"]
    assert type(socket.error).__name__ == "WebSocketDisconnect"


async def test_websocket_without_tasks() -> None:
    """A websocket that ends with a disconnect and has no tasks ends as it would without the middleware."""

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive_text()

    class Socket(Exchange):
        async def receive(self) -> dict[str, Any]:
            self._asked, asked = True, self._asked
            return {"type": "websocket.disconnect", "code": 1000} if asked else {"type": "websocket.connect"}

    app = Starlette(
        routes=[WebSocketRoute("/ws", endpoint)], middleware=[Middleware(OrderedBackgroundMiddleware)]
    )
    socket = await Socket(app, "/ws", type="websocket", subprotocols=[]).run()
    assert type(socket.error).__name__ == "WebSocketDisconnect"


async def test_websocket_that_awaits_its_tasks(events: list[Any]) -> None:
    """Tasks that a websocket endpoint awaits itself run once, when its connection has ended."""

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        tasks, rest = BackgroundTasks(), BackgroundTasks()
        tasks.add_task(events.append, "awaited")
        rest.add_task(events.append, "rest")
        await tasks()
        events.append("end")

    class Socket(Exchange):
        async def receive(self) -> dict[str, Any]:
            return {"type": "websocket.connect"}

    app = Starlette(
        routes=[WebSocketRoute("/ws", endpoint)], middleware=[Middleware(OrderedBackgroundMiddleware)]
    )
    socket = await Socket(app, "/ws", type="websocket", subprotocols=[]).run()
    assert socket.error is None
    assert sorted(events[1:]) == ["awaited", "rest"]
    assert events[0] == "end"


async def test_websocket_that_fails(events: list[Any], log: Log) -> None:
    """The tasks of a websocket endpoint that raises are dropped, as those of a handler that does."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        BackgroundTasks().add_task(events.append, 1)
        raise ZeroDivisionError

    exchange = await get(OrderedBackgroundMiddleware(app), type="websocket")
    assert isinstance(exchange.error, ZeroDivisionError)
    assert events == []
    assert len(log) == 1


async def test_websocket_task_extends_its_list(events: list[Any]) -> None:
    """A running task of a websocket may also extend its own list."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tasks = BackgroundTasks()

        def grows() -> None:
            tasks.add_task(events.append, "more")

        tasks.add_task(grows)

    exchange = await get(OrderedBackgroundMiddleware(app), type="websocket")
    assert exchange.error is None
    assert events == ["more"]
