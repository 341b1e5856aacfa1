"""The app that the benchmarks of whole requests serve, and a uvicorn process that serves it.

`uvicorn served:plain` has FastAPI's own BackgroundTasks, `uvicorn served:ordered` ours: the import and
the one line of middleware are all that differs. `served:empty` is `plain` behind a middleware that does
nothing, `uvicorn --factory served:floor` has the code of `floor.py`.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import fastapi
import fastapi.dependencies.utils
from floor import Floor

import fifo_background

FACTORIES = ("floor", "postgres")


async def async_task() -> None: ...


def sync_task() -> None: ...


def make_app(tasks_class: Any) -> fastapi.FastAPI:
    app = fastapi.FastAPI(openapi_url=None)
    if tasks_class is fifo_background.BackgroundTasks:
        app.add_middleware(fifo_background.OrderedBackgroundMiddleware)

    @app.get("/async")
    async def with_async(tasks: tasks_class) -> int:  # type: ignore[valid-type]
        tasks.add_task(async_task)
        return 1

    @app.get("/sync")
    async def with_sync(tasks: tasks_class) -> int:  # type: ignore[valid-type]
        tasks.add_task(sync_task)
        return 1

    @app.get("/without")
    async def without() -> int:
        return 1

    @app.get("/def")
    def in_a_thread() -> int:
        return 1

    @app.get("/sleep/{milliseconds}")
    async def sleep(tasks: tasks_class, milliseconds: int) -> int:  # type: ignore[valid-type]
        tasks.add_task(time.sleep, milliseconds / 1000)
        return 1

    return app


plain = make_app(fastapi.BackgroundTasks)
ordered = make_app(fifo_background.BackgroundTasks)


def postgres() -> fastapi.FastAPI:
    """`ordered` with an engine: `--factory`, and SERVED_DSN says where PostgreSQL is."""
    from fifo_background.engines.postgres import PostgresEngine

    app = make_app(fifo_background.BackgroundTasks)
    (middleware,) = app.user_middleware
    middleware.kwargs["engine"] = PostgresEngine(os.environ["SERVED_DSN"], packages=["served"])
    return app


class Empty:
    """A middleware that does nothing: what any costs."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


empty = make_app(fastapi.BackgroundTasks)
empty.add_middleware(Empty)


def floor() -> Any:
    """An app for `/sync` and `/async` alone, in a process of its own."""
    bare = Floor()
    fastapi.dependencies.utils.BackgroundTasks = bare.tasks_class  # type: ignore[misc]
    return bare.middleware(make_app(fastapi.BackgroundTasks))


@contextlib.contextmanager
def server(name: str) -> Iterator[str]:
    """The URL of `served:<name>` in a process of its own, on uvloop and httptools."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", f"served:{name}", "--port", str(port)]
    command += ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "error"]
    command += ["--timeout-graceful-shutdown", "1", *(["--factory"] if name in FACTORIES else [])]
    process = subprocess.Popen(command, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            with contextlib.suppress(OSError):
                urlopen(f"{url}/without").read()
                break
            time.sleep(0.05)
        else:
            raise RuntimeError(f"uvicorn did not start: {' '.join(command)}")
        yield url
    finally:
        process.kill()
        process.wait()


def ask(url: str, times: int) -> list[socket.socket]:
    """Send that many requests at once, each in a connection of its own, and wait for no answer."""
    host, port, path = re.fullmatch(r"http://(.*):(\d+)(/.*)", url).groups()  # type: ignore[union-attr]
    connections = []
    for _ in range(times):
        connection = socket.create_connection((host, int(port)))
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        connections.append(connection)
    return connections


LUA = """
done = function(summary, latency, requests)
  io.write(string.format('{"requests": %d, "duration": %d, "p50": %d, "p99": %d, "errors": %d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.status
    + summary.errors.timeout))
end
"""


def wrk(url: str, connections: int, seconds: int) -> dict[str, float]:
    """What wrk saw: requests per second, p50 and p99 in milliseconds, and errors."""
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed: `apt install wrk`")
    script = Path(__file__).parent / ".wrk.lua"
    script.write_text(LUA)
    try:
        done = subprocess.run(
            ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script), url],
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        script.unlink()
    seen = json.loads(done.stdout.splitlines()[-1])
    return {
        "rate": seen["requests"] / seen["duration"] * 1e6,
        "p50": seen["p50"] / 1000,
        "p99": seen["p99"] / 1000,
        "errors": seen["errors"],
    }
