"""The app of the chaos tests: each request says in its path and query what it does; everything is recorded.

`app` answers `GET /report` itself, outside of every middleware: it waits until all requests and tasks have
ended and returns what was recorded. Settings of our middleware come from the variable CHAOS_SETTINGS (JSON);
CHAOS_EXACT=1 makes the first `add_task` of a request and its stamp one step, so that their order is known
exactly; CHAOS_BARE=1 leaves out the two `BaseHTTPMiddleware`, which hide from the app that a client has left.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import anyio
import starlette.background
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fifo_background import BackgroundTask, BackgroundTasks, OrderedBackgroundMiddleware, executor_of

EXACT = os.environ.get("CHAOS_EXACT") == "1"
BARE = os.environ.get("CHAOS_BARE") == "1"
SETTINGS: dict[str, Any] = json.loads(os.environ.get("CHAOS_SETTINGS", "{}"))

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
adding = threading.Lock()


class TaskError(Exception):
    """What a failing task raises; its message is the task's name."""


class Record(logging.Handler):
    """Everything that happened, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = itertools.count()
        self.mutex = threading.Lock()
        self.open = 0  # requests that have not ended
        self.added: list[tuple[str, str, int, int]] = []  # request, task, clock before and after `add_task`
        self.refused: list[tuple[str, str, str]] = []  # request, task, error
        self.responses: list[str] = []  # requests, in the order in which their responses ended
        self.unsendable: set[str] = set()  # requests whose server refused a message
        self.now: list[str] = []  # tasks that run
        self.runs: list[str] = []  # tasks, in the order in which they started
        self.ends: list[tuple[str, str]] = []  # task, "ok" or the error's type
        self.overlaps: list[list[str]] = []
        self.early: list[str] = []  # tasks that started before their response had ended
        self.strangers: list[tuple[str, str | None]] = []  # task, and the other request whose context it saw
        self.log: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self.log.append(
            {
                "level": record.levelname,
                "message": record.getMessage(),
                "error": None if error is None else getattr(error, "detail", str(error)),
            }
        )

    def responded(self, uid: str) -> None:
        if uid not in self.responses:
            self.responses.append(uid)

    @contextmanager
    def run(self, uid: str, name: str) -> Iterator[None]:
        with self.mutex:
            self.runs.append(name)
            if self.now:
                self.overlaps.append([*self.now, name])
            self.now.append(name)
            if uid not in self.responses and uid not in self.unsendable:
                self.early.append(name)
            if request_id.get() != uid:
                self.strangers.append((name, request_id.get()))
        outcome = "ok"
        try:
            yield
        except BaseException as error:
            outcome = type(error).__name__
            raise
        finally:
            with self.mutex:
                self.now.remove(name)
                self.ends.append((name, outcome))

    def report(self) -> dict[str, Any]:
        shown = (
            "added",
            "refused",
            "responses",
            "now",
            "runs",
            "ends",
            "overlaps",
            "early",
            "strangers",
            "log",
        )
        return {name: getattr(self, name) for name in shown} | {"executor": repr(executor_of(api))}


record = Record()
logging.getLogger("fifo_background").addHandler(record)


# -- tasks -------------------------------------------------------------------------------------------


def make_task(tasks: BackgroundTasks | None, uid: str, name: str, what: str) -> Callable[[], Any]:
    """A function that does `what`: "s" (sync) or "a" (async), its milliseconds, then flags.

    "!" raises, "?" raises an HTTPException, "+" adds a task to its own list.
    """
    seconds = int("".join(filter(str.isdigit, what))) / 1000

    def finish() -> None:
        if "+" in what:
            add(tasks, uid, f"{name}x", "s1" if what[0] == "a" else "a1")
        if "!" in what:
            raise TaskError(name)
        if "?" in what:
            raise HTTPException(409, name)

    async def async_task() -> None:
        with record.run(uid, name):
            await anyio.sleep(seconds)
            finish()

    def sync_task() -> None:
        with record.run(uid, name):
            time.sleep(seconds)
            finish()

    task = async_task if what[0] == "a" else sync_task
    task.__qualname__ = name
    return task


def add(tasks: BackgroundTasks | None, uid: str, name: str, what: str) -> None:
    assert tasks is not None
    function = make_task(tasks, uid, name, what)
    before = next(record.clock)
    try:
        tasks.add_task(function)
    except RuntimeError as error:
        record.refused.append((uid, name, str(error)))
    else:
        record.added.append((uid, name, before, next(record.clock)))


# -- what a request does ------------------------------------------------------------------------------


class Script:
    """The query of a request: waits (ms) before, between and after its tasks, and how it ends."""

    def __init__(self, request: Request) -> None:
        query = request.query_params
        self.uid = request.path_params["uid"]
        self.before, self.between, self.after = (
            int(query[key]) / 1000 for key in ("before", "between", "after")
        )
        self.tasks = [(f"task_{self.uid}_{n}", what) for n, what in enumerate(query["tasks"].split(","))]
        self.ending = query["ending"]

    def end(self, background: BackgroundTasks) -> Response:
        if self.ending == "raise":
            raise ValueError(f"handler {self.uid}")
        if self.ending == "http":
            raise HTTPException(409, f"handler {self.uid}")
        if self.ending == "plain":  # a background of its own, which is not in the line
            return PlainTextResponse("own", background=starlette.background.BackgroundTask(int))
        if self.ending == "own":  # one of ours: it stands in the request's place
            name = f"task_{self.uid}_own"
            now = next(record.clock)
            record.added.append((self.uid, name, now, now))
            function = make_task(None, self.uid, name, "a1")
            return PlainTextResponse("own", background=BackgroundTask(function))
        if self.ending == "stream":
            return StreamingResponse(self.chunks(), media_type="text/plain")
        return PlainTextResponse("x" * 2000)

    async def chunks(self) -> AsyncIterator[str]:
        for _ in range(5):
            yield "x" * 2000
            await anyio.sleep(self.after / 5)


async def add_in_async(script: Script, tasks: BackgroundTasks) -> None:
    await anyio.sleep(script.before)
    for n, (name, what) in enumerate(script.tasks):
        if n:
            await anyio.sleep(script.between)
            add(tasks, script.uid, name, what)
        else:
            while EXACT and not adding.acquire(blocking=False):  # a thread that has it may need the loop
                await anyio.sleep(0)
            try:
                add(tasks, script.uid, name, what)
            finally:
                if EXACT:
                    adding.release()
    await anyio.sleep(script.after)


def add_in_thread(script: Script, tasks: BackgroundTasks) -> None:
    time.sleep(script.before)
    for n, (name, what) in enumerate(script.tasks):
        if n:
            time.sleep(script.between)
        if not n and EXACT:
            with adding:
                add(tasks, script.uid, name, what)
        else:
            add(tasks, script.uid, name, what)
    time.sleep(script.after)


async def async_dependency(request: Request, tasks: BackgroundTasks) -> None:
    await add_in_async(Script(request), tasks)


def thread_dependency(request: Request, tasks: BackgroundTasks) -> None:
    add_in_thread(Script(request), tasks)


async def through(request: Request, call_next: Any) -> Response:
    return await call_next(request)


class SeesEnds:
    """Pure ASGI: records that a response has ended (outside of ours), or its app (`inside` of ours)."""

    def __init__(self, app: ASGIApp, inside: bool) -> None:
        self.app = app
        self.inside = inside

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        uid = scope["path"].rpartition("/")[2]

        async def watched(message: Message) -> None:
            try:
                await send(message)
            except BaseException:
                record.unsendable.add(uid)
                raise
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                record.responded(uid)

        if not self.inside:
            await self.app(scope, receive, watched)
            return
        request_id.set(uid)
        try:
            await self.app(scope, receive, send)
        finally:
            record.responded(uid)


api = FastAPI(openapi_url=None)
if not BARE:
    api.add_middleware(BaseHTTPMiddleware, dispatch=through)
api.add_middleware(SeesEnds, inside=True)
api.add_middleware(OrderedBackgroundMiddleware, **SETTINGS)
api.add_middleware(SeesEnds, inside=False)
if not BARE:
    api.add_middleware(BaseHTTPMiddleware, dispatch=through)


@api.get("/async/{uid}")
async def async_endpoint(request: Request, tasks: BackgroundTasks) -> Response:
    script = Script(request)
    await add_in_async(script, tasks)
    return script.end(tasks)


@api.get("/def/{uid}")
def def_endpoint(request: Request, tasks: BackgroundTasks) -> Response:
    script = Script(request)
    add_in_thread(script, tasks)
    return script.end(tasks)


@api.get("/async-dependency/{uid}", dependencies=[Depends(async_dependency)])
def def_endpoint_with_dependency(request: Request, tasks: BackgroundTasks) -> Response:
    return Script(request).end(tasks)


@api.get("/def-dependency/{uid}", dependencies=[Depends(thread_dependency)])
async def async_endpoint_with_dependency(request: Request, tasks: BackgroundTasks) -> Response:
    return Script(request).end(tasks)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """The app that the servers run."""
    if scope["type"] != "http":
        await api(scope, receive, send)
    elif scope["path"] == "/report":
        while record.open:
            await anyio.sleep(0.01)
        await executor_of(api).join()
        await JSONResponse(record.report())(scope, receive, send)
    else:
        record.open += 1
        try:
            await api(scope, receive, send)
        finally:
            record.open -= 1
