"""The app of `test_end.py`: tasks that wait to be let go, and every event on standard output.

END_APP says which app, END_SETTINGS (JSON) the settings of our middleware, END_GO a file: a task whose kind
ends in "gate" waits until that file exists. `POST /add?task=sync_0&task=async_gate_1` adds tasks; the kind is
in the name. Lines that begin with "@ " are events, lines that begin with "LOG " are records of the logger
`fifo_background`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
from fastapi import FastAPI, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fifo_background import BackgroundTasks, ExecutorClosed, OrderedBackgroundMiddleware, executor_of

KIND = os.environ.get("END_APP", "lifespan")
SETTINGS: dict[str, Any] = json.loads(os.environ.get("END_SETTINGS", "{}"))
GO = Path(os.environ["END_GO"])

handler = logging.StreamHandler()
handler.setFormatter(logging.Formatter("LOG %(message)s"))
logging.getLogger("fifo_background").addHandler(handler)


def event(text: str) -> None:
    os.write(1, f"@ {text}\n".encode())  # one write: whole lines, whoever else writes


# -- tasks -------------------------------------------------------------------------------------------


@contextmanager
def events_of(name: str) -> Iterator[None]:
    event(f"started {name}")
    try:
        yield
    except BaseException as error:
        event(f"{'failed' if isinstance(error, Exception) else 'cancelled'} {name}")
        raise
    event(f"ended {name}")


async def gate() -> None:
    while not GO.exists():
        await anyio.sleep(0.02)


def sync_gate() -> None:
    give_up = time.monotonic() + 60
    while not GO.exists() and time.monotonic() < give_up:
        time.sleep(0.02)


def nothing() -> None:
    event("ran what had to be refused")


async def ignore_cancel() -> None:
    """Wait to be let go, whoever cancels; asyncio only."""
    while not GO.exists():
        try:
            await anyio.sleep(0.02)
        except asyncio.CancelledError:
            event("ignored a cancel")


async def clean_up_slowly() -> None:
    try:
        await gate()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.3)


def make_task(name: str, tasks: BackgroundTasks | None = None) -> Callable[[], Any]:
    """`async` and `sync` tasks take a moment, `_gate`s wait to be let go, `_adds` try to add tasks.

    `async_stubborn` ignores its cancel, and `async_tidy` has something to clean up.
    """
    wait = {"gate": gate, "stubborn": ignore_cancel, "tidy": clean_up_slowly}.get(name.split("_")[1])

    def add() -> None:
        ways: dict[str, Callable[..., Any]] = {"submit_nowait": executor_of(app).submit_nowait}
        if tasks is not None:
            ways["add_task"] = tasks.add_task
        for way, call in ways.items():
            try:
                call(nothing)
            except ExecutorClosed:
                event(f"{way} refused in {name}")
            else:
                event(f"{way} accepted in {name}")

    async def async_task() -> None:
        with events_of(name):
            await (anyio.sleep(0.05) if wait is None else wait())
            if "adds" in name:
                add()

    def sync_task() -> None:
        with events_of(name):
            sync_gate() if "gate" in name else time.sleep(0.05)
            if "adds" in name:
                add()

    task = async_task if name.startswith("async") else sync_task
    task.__qualname__ = name
    return task


# -- apps --------------------------------------------------------------------------------------------


class Outermost:
    """Tells when the app is asked to shut down; END_APP=refuses knows no lifespan."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return
        if KIND == "refuses":
            raise RuntimeError("no lifespan")

        async def receive_and_tell() -> Message:
            message: Message = await receive()
            event(message["type"])
            return message

        await self.app(scope, receive_and_tell, send)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    if "fails" in KIND:
        if KIND == "fails":
            executor_of(app).submit_nowait(make_task("async_gate_0"))
            executor_of(app).submit_nowait(make_task("sync_1"))
            await anyio.sleep(0.1)  # the first one starts
        raise RuntimeError("no startup")
    yield
    event("own shutdown code")


async def identify() -> int:
    return os.getpid()


async def add(request: Request, background_tasks: BackgroundTasks) -> None:
    for name in request.query_params.getlist("task"):
        background_tasks.add_task(make_task(name, background_tasks))


async def hold(request: Request, background_tasks: BackgroundTasks) -> None:
    """Take a place, and do not respond, not even when cancelled."""
    await add(request, background_tasks)
    event("held")
    await ignore_cancel()


app = FastAPI() if KIND == "plain" else FastAPI(lifespan=lifespan)
ours = FastAPI() if KIND == "mounted" else app  # the app that has our middleware
if not KIND.startswith("bare"):
    ours.add_middleware(OrderedBackgroundMiddleware, **SETTINGS)
ours.get("/")(identify)
ours.post("/add")(add)
ours.post("/hold")(hold)
if KIND == "mounted":
    app.mount("/", ours)
app.add_middleware(Outermost)
