"""An app that shows its tasks, in each face, and a client of it on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Mount

from fifo_background import OrderedBackgroundMiddleware, SerialExecutor
from fifo_background.status import StatusApp
from tests.support.asgi import Exchange

HAS_FASTAPI = find_spec("fastapi") is not None
FACES = ["app", *(["router"] if HAS_FASTAPI else [])]
LOCAL = "127.0.0.1"
HOST = {"host": "localhost:8000"}


def status_at(face: str, path: str, **settings: Any) -> Any:
    """An app with the status at `path`, without the middleware."""
    if face == "app":
        return Starlette(routes=[Mount(path, StatusApp(**settings), name="tasks")])
    from fastapi import FastAPI

    from fifo_background.status import router

    app = FastAPI()
    app.include_router(router(prefix=path, **settings))
    return app


class Answer:
    """A response that has ended."""

    def __init__(self, exchange: Exchange) -> None:
        start, *rest = exchange.messages
        self.status: int = start["status"]
        self.headers = {name.decode().lower(): value.decode() for name, value in start["headers"]}
        self.body = b"".join(message.get("body", b"") for message in rest)

    def json(self) -> Any:
        return json.loads(self.body)

    def problem(self) -> tuple[int, str]:
        """The status and the detail of a problem, which is well formed, and has every header."""
        assert self.headers["content-type"] == "application/problem+json"
        assert self.headers["x-content-type-options"] == "nosniff"
        problem = self.json()
        assert problem["type"] == "about:blank"
        assert problem["status"] == self.status
        assert problem["title"]
        return self.status, problem["detail"]


class Asks(Exchange):
    """A request with a body."""

    body = b""

    async def receive(self) -> dict[str, Any]:
        message = await super().receive()
        return {**message, "body": self.body} if message["type"] == "http.request" else message


class Site:
    """The app in its middleware, and a client of its status."""

    def __init__(
        self, face: str = "app", middleware: Mapping[str, Any] | None = None, **settings: Any
    ) -> None:
        self.face = face
        self.app = OrderedBackgroundMiddleware(status_at(face, "/tasks", **settings), **(middleware or {}))

    @property
    def executor(self) -> SerialExecutor:
        return self.app.executor

    def exchange(
        self,
        path: str,
        method: str = "GET",
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        client: str | None = LOCAL,
        **scope: Any,
    ) -> Asks:
        path, _, query = path.partition("?")
        given = [(name.encode(), value.encode()) for name, value in {**HOST, **(headers or {})}.items()]
        asks = Asks(
            self.app,
            "/tasks" + path,
            method=method,
            query_string=query.encode(),
            headers=given,
            client=client and (client, 5),
            **scope,
        )
        asks.body = body
        return asks

    async def ask(self, path: str, method: str = "GET", **more: Any) -> Answer:
        exchange = await self.exchange(path, method, **more).run()
        assert exchange.error is None
        return Answer(exchange)

    async def get(self, path: str, **more: Any) -> Answer:
        return await self.ask(path, **more)

    async def post(self, path: str, **more: Any) -> Answer:
        return await self.ask(path, "POST", **more)


def events_of(exchange: Exchange) -> list[tuple[str, str, Any]]:
    """The events that a stream has sent so far: name, id, data."""
    text = b"".join(message.get("body", b"") for message in exchange.messages[1:]).decode()
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if "data" in fields:
            found.append((fields["event"], fields.get("id", ""), json.loads(fields["data"])))
    return found
