"""A client that speaks ASGI to an app: many requests at once, each of whose messages the test sees."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import anyio.abc
from anyio import wait_all_tasks_blocked

# For a whole test of an app, on a busy machine, in seconds.
_PATIENCE = 30.0

Send = Callable[[Any], Awaitable[None]]


def http_scope(path: str = "/", **more: Any) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "client": ("testclient", 1),
        "server": ("testserver", 80),
        "state": {},
        **more,
    }


class Exchange:
    """One request to `app`: its messages, its error, its end."""

    def __init__(self, app: Any, path: str = "/", **scope: Any) -> None:
        self.app = app
        self.scope = http_scope(path, **scope)
        self.messages: list[dict[str, Any]] = []
        self.error: BaseException | None = None
        self.responded = anyio.Event()
        self.ended = anyio.Event()
        self.disconnected = anyio.Event()
        self.cancel_scope = anyio.CancelScope()
        self._asked = False

    async def receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.messages.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.responded.set()

    async def run(self) -> Exchange:
        with self.cancel_scope:
            try:
                await self.app(self.scope, self.receive, self.send)
            except Exception as error:
                self.error = error
        self.ended.set()
        return self

    @property
    def status(self) -> int | None:
        return next((m["status"] for m in self.messages if m["type"] == "http.response.start"), None)


async def get(app: Any, path: str = "/", **scope: Any) -> Exchange:
    """One request, to its end."""
    return await Exchange(app, path, **scope).run()


class Lifespan:
    """A lifespan of an app, which shuts down when it is told: what it has sent, its error, its end."""

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


class Client:
    """Starts requests one after the other: each is as far as it can get before the next one starts."""

    def __init__(self, app: Any, group: anyio.abc.TaskGroup) -> None:
        self.app = app
        self.group = group

    async def start(self, path: str = "/", **scope: Any) -> Exchange:
        exchange = Exchange(self.app, path, **scope)
        self.group.start_soon(exchange.run)
        await wait_all_tasks_blocked()
        return exchange


@contextlib.asynccontextmanager
async def started(app: Any) -> AsyncIterator[None]:
    """The app between its startup and its shutdown. Raises what its startup raises."""
    has_started, stops = anyio.Event(), anyio.Event()
    errors: list[Exception] = []

    async def receive() -> dict[str, Any]:
        if has_started.is_set():
            await stops.wait()
            return {"type": "lifespan.shutdown"}
        return {"type": "lifespan.startup"}

    async def send(message: dict[str, Any]) -> None:
        has_started.set()

    async def run() -> None:
        try:
            await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
        except Exception as error:
            errors.append(error)
        has_started.set()

    with anyio.fail_after(_PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await has_started.wait()
            try:
                if not errors:
                    yield
            finally:
                stops.set()
    if errors:
        raise errors[0]
