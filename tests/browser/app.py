"""The app of the browser tests: its tasks go on when a test opens their gate, and its names are hostile."""

from __future__ import annotations

from typing import Any

import anyio
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTasks as PlainTasks
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from fifo_background import BackgroundTasks, OrderedBackgroundMiddleware, report
from fifo_background.status import StatusApp, router

# It would run in an element, an attribute, a script, a comment, or a template.
HOSTILE = "\"'><img src=x onerror=alert(1)><script>alert(2)</script><!--${alert(3)}--><svg/onload=alert(4)>"

HostileError = type(HOSTILE, (Exception,), {})


class Work:
    """Tasks of one app, and the gates that they wait for."""

    def __init__(self) -> None:
        self._gates: dict[str, anyio.Event] = {}

    def gate(self, name: str) -> anyio.Event:
        return self._gates.setdefault(name, anyio.Event())

    async def gated(self, gate: str) -> dict[str, Any]:
        report(5, 10, "rows written")
        await self.gate(gate).wait()
        return {"gate": gate, "rows": [1, 2, 3]}

    async def measures(self, gate: str) -> None:
        report(1234.5678, 1_000_000, "MB")
        await self.gate(gate).wait()

    async def short(self, gate: str) -> None:
        await anyio.sleep(0.01)

    async def stumbles(self, gate: str) -> str:
        if not self.gate(gate).is_set():
            raise ValueError("card declined")
        return "charged"

    async def hostile(self, gate: str) -> str:
        report(1, 2, HOSTILE)
        if gate == "fail":
            raise HostileError(HOSTILE)
        await self.gate(gate).wait()
        return HOSTILE


Work.hostile.__qualname__ = HOSTILE


class Site:
    """The endpoints of one app, which has its status at `/tasks`."""

    def __init__(self, **settings: Any) -> None:
        self.work = Work()
        self.settings = settings

    async def add(self, request: Request) -> Response:
        """Adds tasks, as the path and the query say, and responds when the gate `hold` is open."""
        query, tasks = request.query_params, BackgroundTasks()
        lane = tasks.lane(query.get("lane", "default"), after_failure="stop")
        for _ in range(int(query.get("count", "1"))):
            lane.add_task(getattr(self.work, request.path_params["task"]), query.get("gate", ""))
        if "hold" in query:
            await self.work.gate(query["hold"]).wait()
        return JSONResponse({}, background=tasks)

    async def open(self, request: Request) -> Response:
        self.work.gate(request.path_params["gate"]).set()
        return JSONResponse({}, background=PlainTasks())

    @property
    def routes(self) -> list[Any]:
        methods = ["POST"]
        return [
            Route("/add/{task}", self.add, methods=methods),
            Route("/add/{task}/{rest:path}", self.add, methods=methods),
            Route("/open/{gate}", self.open, methods=methods),
        ]

    def status(self) -> StatusApp:
        return StatusApp(**{"show_results": True, **self.settings})

    @property
    def middleware(self) -> list[Middleware]:
        return [
            Middleware(
                OrderedBackgroundMiddleware,
                wait=False,
                results=True,
                hold_timeout=3600,
                drain_timeout=0,
                history=3000,
            )
        ]

    def app(self) -> Any:
        return Starlette(
            routes=[*self.routes, Mount("/tasks", self.status(), name="tasks")], middleware=self.middleware
        )

    def nested(self) -> Any:
        """The status is in a mount of a mount."""
        inner = Starlette(routes=[Mount("/tasks", self.status())])
        routes = [*self.routes, Mount("/a", Starlette(routes=[Mount("/b", inner)]))]
        return Starlette(routes=routes, middleware=self.middleware)

    def fastapi(self) -> Any:
        """The status is a router."""
        app = FastAPI(routes=self.routes, middleware=self.middleware)
        app.include_router(router(**{"show_results": True, **self.settings, "prefix": "/tasks"}))
        return app

    def app_at_root_path(self) -> Any:
        return AtRootPath(self.app(), stripped=False)

    def fastapi_behind_proxy(self) -> Any:
        return AtRootPath(self.fastapi(), stripped=True)


class AtRootPath:
    """A server at `/api`, which the path has, too, as uvicorn's, or a proxy has taken it off."""

    def __init__(self, app: Any, stripped: bool) -> None:
        self.app = app
        self.stripped = stripped

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            path = scope["path"].removeprefix("/api") if self.stripped else scope["path"]
            scope = {**scope, "path": path, "root_path": "/api"}
        await self.app(scope, receive, send)
