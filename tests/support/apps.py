"""Apps and tasks that many tests use."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fifo_background import (
    BackgroundTask,
    BackgroundTasks,
    Job,
    JobState,
    OrderedBackgroundMiddleware,
    SerialExecutor,
)
from fifo_background._core.invariants import check
from tests.support.asgi import Client, Exchange

user: ContextVar[str] = ContextVar("user", default="nobody")

Handler = Callable[[Request], Awaitable[Response]]


def make_app(*handlers: Handler, inside: list[Any] | None = None, **settings: Any) -> Starlette:
    """An app with one route per handler, named like it, and the middleware outside of `inside`."""
    return Starlette(
        routes=[Route(f"/{handler.__name__}", handler) for handler in handlers],
        middleware=[Middleware(OrderedBackgroundMiddleware, **settings), *(inside or [])],
    )


def app_of(handle: Callable[[str, Callable[[], Awaitable[None]]], Awaitable[None]], **settings: Any) -> Any:
    """An ASGI app in the middleware; `handle(path, respond)` is its handler."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def respond() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        await handle(scope["path"], respond)

    return OrderedBackgroundMiddleware(app, **settings)


class Handlers:
    """Handlers that add tasks. Some of them wait for an event before they respond."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.second: Callable[[Any], Any] | None = work.sync
        self.jobs: dict[str, Job[Any]] = {}
        self.respond = {name: anyio.Event() for name in ("a", "b", "c")}

    async def slow(self, request: Request) -> Response:
        """Adds tasks named by the query, and responds when it may."""
        name = request.query_params["n"]
        tasks = BackgroundTasks()
        tasks.add_task(self.work.quick, f"{name}0")
        await self.respond[name].wait()
        if self.second is not None:
            self.jobs[name] = tasks.add_task(self.second, f"{name}1")
        return Response(name, background=tasks)

    async def gated(self, request: Request) -> Response:
        return Response(background=BackgroundTask(self.work.gated, int(request.query_params["n"])))


async def start(client: Client, path: str, n: object) -> Exchange:
    return await client.start(path, query_string=f"n={n}".encode())


class Work:
    """Tasks that record their start and end, and end when their gate is opened."""

    def __init__(self, events: list[Any]) -> None:
        self.events = events
        self.gates: dict[int, anyio.Event] = {}
        self.thread_gates: dict[int, threading.Event] = {}

    def gate(self, n: int) -> anyio.Event:
        return self.gates.setdefault(n, anyio.Event())

    async def gated(self, n: int) -> int:
        self.events.append(f"start {n}")
        await self.gate(n).wait()
        self.events.append(f"end {n}")
        return n

    async def quick(self, n: int) -> int:
        self.events.append(n)
        return n

    def sync(self, n: int) -> int:
        self.events.append(n)
        return n

    def thread_gate(self, n: int) -> threading.Event:
        return self.thread_gates.setdefault(n, threading.Event())

    def thread_gated(self, n: int) -> int:
        self.events.append(f"start {n}")
        assert self.thread_gate(n).wait(10)
        self.events.append(f"end {n}")
        return n


async def until(holds: Callable[[], object]) -> None:
    """Wait for what another thread does."""
    while not holds():
        await anyio.sleep(0.001)


def check_idle(executor: SerialExecutor) -> None:
    """Nothing waits, runs or is held, and the scheduler's invariants hold."""
    statistics = executor.statistics()
    assert (statistics.waiting, statistics.running, statistics.unfinished) == (0, 0, 0)
    # a thread that has told its last outcome may still be on its way out of its lane
    assert all((lane.head, lane.held_by) == (None, None) for lane in statistics.lanes.values())
    check(executor._runner.scheduler)


class Buffers:
    """Holds back the last body message until the inner app has returned, as old BaseHTTPMiddleware does."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        held: list[Any] = []

        async def hold(message: Any) -> None:
            held.append(message)

        await self.app(scope, receive, hold)
        for message in held:
            await send(message)


class ClaimedMeanwhile(set[Job[Any]]):
    """In place of a job's `claims`: whoever claims it next finds that a thread has cancelled it just now."""

    def remove(self, job: Job[Any]) -> None:
        super().remove(job)
        job._end(JobState.CANCELLED)
        super().remove(job)  # KeyError
