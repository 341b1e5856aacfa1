"""The app of the fault tests: every start, step and end of a task is a line of an append-only log.

FAULTS_DSN says where PostgreSQL is, FAULTS_LOG the file, FAULTS_ENGINE and FAULTS_SETTINGS (JSON) what the
engine and the middleware are given. `python faults_app.py` is a worker alone: until SIGTERM.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import os
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.types import Scope

from fifo_background import BackgroundTasks, OrderedBackgroundMiddleware, executor_of
from fifo_background.engines.postgres import PostgresEngine, Retry, StoreError, _worker
from fifo_background.engines.postgres._lease import Watchdog

STEP = 0.05

_log = os.open(os.environ.get("FAULTS_LOG", os.devnull), os.O_WRONLY | os.O_APPEND | os.O_CREAT)


class Run:
    """One run of a task; each line is one write, whoever else writes.

    `seconds`: for how long; where they are negative, only if it is the first run.
    """

    def __init__(self, name: str, lane: str, seconds: float = 0.0) -> None:
        self.facts = f"{name} {lane} {secrets.token_hex(4)} {os.getpid()}"
        self.seconds = seconds
        if seconds < 0:
            self.seconds = 0.0 if f"start {name} " in Path(os.environ["FAULTS_LOG"]).read_text() else -seconds
        self.says("start")

    def steps(self) -> Iterator[float]:
        """For how long to wait each time."""
        until = time.monotonic() + self.seconds
        while (left := until - time.monotonic()) > 0:
            yield min(left, STEP)
            self.says("step")

    def says(self, what: str) -> None:
        os.write(_log, f"{what} {self.facts} {time.monotonic():.6f}\n".encode())


# -- tasks -------------------------------------------------------------------------------------------------


async def waits(name: str, lane: str, seconds: float = 0.0) -> str:
    run = Run(name, lane, seconds)
    try:
        for step in run.steps():
            await asyncio.sleep(step)
    except asyncio.CancelledError:
        run.says("cut")
        raise
    run.says("end")
    return name


def sleeps(name: str, lane: str, seconds: float = 0.0) -> str:
    run = Run(name, lane, seconds)
    for step in run.steps():
        time.sleep(step)
    run.says("end")
    return name


async def fails(name: str, lane: str, seconds: float = 0.0) -> None:
    run = Run(name, lane)
    await asyncio.sleep(seconds)
    run.says("fail")
    raise ValueError(name)


async def kills(name: str, lane: str, seconds: float = 0.0) -> None:
    Run(name, lane)
    os.kill(os.getpid(), signal.SIGKILL)


async def blocks(name: str, lane: str, seconds: float = 0.0) -> None:
    """The event loop, for as long as it takes."""
    sleeps(name, lane, seconds)


def holds_gil(name: str, lane: str, seconds: float = 0.0) -> None:
    """In C, so that no other thread runs."""
    run = Run(name, lane)
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))
    run.says("end")


KINDS = {one.__name__: one for one in (waits, sleeps, fails, kills, blocks, holds_gil)}

# -- the app -----------------------------------------------------------------------------------------------


def lane_key(scope: Scope) -> Any:
    return scope["path_params"].get("lane")


def make_app(dsn: str, engine: dict[str, Any], settings: dict[str, Any]) -> FastAPI:
    app = FastAPI()
    app.add_middleware(
        OrderedBackgroundMiddleware,
        engine=PostgresEngine(dsn, packages=["faults_app"], **engine),
        lane_key=lane_key,
        **settings,
    )
    app.include_router(router)
    return app


router = APIRouter()


def _add(tasks: BackgroundTasks, lane: str, name: str, kinds: str, seconds: float) -> dict[str, Any]:
    ids = [
        tasks.add_task(KINDS[kind], f"{name}.{place}", lane, seconds).id
        for place, kind in enumerate(kinds.split(","))
    ]
    return {"ids": ids, "pid": os.getpid()}


@router.post("/add/{lane}/{name}")
async def add(tasks: BackgroundTasks, lane: str, name: str, kinds: str, seconds: float = 0) -> dict[str, Any]:
    return _add(tasks, lane, name, kinds, seconds)


@router.post("/def/{lane}/{name}")
def add_in_a_thread(
    tasks: BackgroundTasks, lane: str, name: str, kinds: str, seconds: float = 0
) -> dict[str, Any]:
    return _add(tasks, lane, name, kinds, seconds)


@router.post("/retry/{lane}/{name}")
async def submit(
    request: Request, lane: str, name: str, kinds: str, seconds: float = 0, wait: float = 0.1
) -> Any:
    """One task, which is run three times where it fails."""
    executor: Any = executor_of(request)
    submits = executor.lane(lane).options(retry=Retry(3, wait))
    try:
        job = await submits.submit(KINDS[kinds], f"{name}.0", lane, seconds)
    except StoreError:
        return JSONResponse({}, 503)
    return {"ids": [job.id]}


if "FAULTS_DSN" in os.environ:
    logging.basicConfig(level=logging.INFO, format=f"{os.getpid()} %(asctime)s %(message)s")

if os.environ.get("FAULTS_WATCHDOG") == "no":  # as elsewhere than on Linux
    Watchdog.make = classmethod(lambda cls: None)  # type: ignore[method-assign, assignment]

_worker._UNASKED = float(os.environ.get("FAULTS_UNASKED", "10"))

app = make_app(
    os.environ.get("FAULTS_DSN", ""),
    json.loads(os.environ.get("FAULTS_ENGINE", "{}")),
    json.loads(os.environ.get("FAULTS_SETTINGS", "{}")),
)


async def work() -> None:
    """The lifespan of the app, without a server."""
    incoming: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    outgoing: asyncio.Queue[Any] = asyncio.Queue()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    lifespan = asyncio.ensure_future(app(scope, incoming.get, outgoing.put))
    for kind in ("startup", "shutdown"):
        await incoming.put({"type": f"lifespan.{kind}"})
        message = await outgoing.get()
        assert message["type"] == f"lifespan.{kind}.complete", message
        if kind == "startup":
            await stop.wait()
    await lifespan


if __name__ == "__main__":
    import faults_app  # under the name by which its functions are found

    asyncio.run(faults_app.work())
