"""The status page at scale, under uvicorn: run one part after the other, and read what it prints.

    python tests/servers/at_scale.py streams  # 1,000 event clients, of which 100 never read; 20,000 tasks
    python tests/servers/at_scale.py stop     # SIGTERM while 50 clients read
    python tests/servers/at_scale.py lanes    # 10,000 lanes and 100,000 waiting tasks, looked at
    python tests/servers/at_scale.py large    # 2,000 tasks that each return 10 MB
    python tests/servers/at_scale.py page     # 10,000 jobs in a real browser (needs playwright and Chromium)

Turns of the event loop are measured in the time that their thread has worked: what else the machine does
hardly counts. Tasks of the page are measured so, too, and on the wall clock, as the browser tells its long
ones. Memory is the process's.
"""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio._backends._asyncio  # noqa: F401  # anyio would do it in the first turn that needs it
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from fifo_background import OrderedBackgroundMiddleware, executor_of
from fifo_background.status import StatusApp

STREAM_SECONDS = float(os.environ.get("STREAM_SECONDS", "8"))


# -- the app -------------------------------------------------------------------------------------------------


class Turns(asyncio.SelectorEventLoop):
    """An event loop that knows its longest turn, without and with the work of Python's garbage collector."""

    longest = longest_with = collecting = began_to_collect = 0.0

    def _run_once(self) -> None:
        began, collected = time.thread_time(), self.collecting
        super()._run_once()  # type: ignore[misc]
        took = time.thread_time() - began
        self.longest_with = max(self.longest_with, took)
        self.longest = max(self.longest, took - (self.collecting - collected))

    def collects(self, phase: str, info: Any) -> None:
        if phase == "start":
            self.began_to_collect = time.thread_time()
        else:
            self.collecting += time.thread_time() - self.began_to_collect


class Counted:
    """The status, and how many streams are open."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.open = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        is_stream = scope["path"].endswith("/events")
        self.open += is_stream
        try:
            await self.app(scope, receive, send)
        finally:
            self.open -= is_stream


ran: list[int] = []
status = Counted(StatusApp(stream_seconds=STREAM_SECONDS, show_results=True))


async def note(number: int) -> None:
    ran.append(number)


async def large(number: int) -> str:
    ran.append(number)
    return "x" * 10_000_000 + str(number)


async def add(request: Request) -> Response:
    """Adds tasks, each in one of so many lanes, which may be paused before."""
    query, executor = request.query_params, executor_of(request)
    first, lanes = int(query["first"]), int(query.get("lanes", "1"))
    for number in range(first, first + int(query["count"])):
        lane = executor.lane(f"lane {number % lanes}") if lanes > 1 else executor.lane(None)
        if "pause" in query and number < lanes:
            lane.pause()
        lane.submit_nowait(large if "large" in query else note, number)
    return Response()


async def facts(request: Request) -> Response:
    """What has happened since the last time."""
    loop: Any = asyncio.get_running_loop()
    longest, longest_with = loop.longest, loop.longest_with
    loop.longest = loop.longest_with = 0.0
    memory = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    history: Any = executor_of(request)._runner.scheduler.history
    return JSONResponse(
        {
            "ran": len(ran),
            "in order": ran == sorted(ran),
            "memory, MB": round(memory / 1e6, 1),
            "longest turn, ms": round(longest * 1e3, 1),
            "with the collector": round(longest_with * 1e3, 1),
            "open streams": status.open,
            "bytes of results": history._bytes,
        }
    )


app = Starlette(
    routes=[Route("/add", add, methods=["POST"]), Route("/facts", facts), Mount("/tasks", status)],
    middleware=[
        Middleware(
            OrderedBackgroundMiddleware, results="RESULTS" in os.environ, history=1000, drain_timeout=0
        )
    ],
)


# -- its clients ---------------------------------------------------------------------------------------------


class Server:
    def __init__(self, port: int, process: Any) -> None:
        self.port = port
        self.process = process

    def ask(self, method: str, path: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request(method, path)
        body = connection.getresponse().read()
        connection.close()
        return json.loads(body) if body else None

    def facts(self) -> Any:
        return self.ask("GET", "/facts")


@contextmanager
def serving(**environment: str) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    command = [sys.executable, __file__, "serve", str(port)]
    process = subprocess.Popen(command, env={**os.environ, **environment})
    server = Server(port, process)
    try:
        while True:
            try:
                server.facts()
                break
            except OSError:
                time.sleep(0.1)
        yield server
    finally:
        process.kill()
        process.wait()


def serve(port: int) -> None:
    import uvicorn

    server = uvicorn.Server(uvicorn.Config("at_scale:app", port=port, log_level="error", backlog=4096))
    loop = Turns()
    gc.callbacks.append(loop.collects)
    asyncio.set_event_loop(loop)
    loop.run_until_complete(server.serve())


async def watch(port: int, reads: bool, seconds: float) -> None:
    """Follows events, and comes back when a stream ends."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
        writer.write(b"GET /tasks/events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        if not reads:
            await asyncio.sleep(until - time.monotonic())
        while reads and await reader.read(65536):
            pass
        writer.close()


def streams() -> None:
    seconds = 60.0
    with serving(STREAM_SECONDS=str(seconds)) as server:

        async def crowd() -> None:
            clients = [
                asyncio.ensure_future(watch(server.port, number % 10 != 0, seconds - 5))
                for number in range(1000)
            ]
            began = time.monotonic()
            for part in range(20):
                await asyncio.to_thread(server.ask, "POST", f"/add?first={part * 1000}&count=1000")
                await asyncio.sleep(2.5)
                if part % 4 == 3:
                    found = await asyncio.to_thread(server.facts)
                    print(f"{time.monotonic() - began:.0f} s", found, flush=True)
            while (await asyncio.to_thread(server.facts))["open streams"]:
                assert time.monotonic() < began + 3 * seconds, "streams do not end"
                await asyncio.sleep(0.5)
            print(f"all streams have ended {time.monotonic() - began:.1f} s after the first began")
            await asyncio.wait(clients, timeout=10)

        asyncio.run(crowd())
        print(server.facts())


def stop() -> None:
    with serving() as server:

        async def crowd() -> None:
            clients = [asyncio.ensure_future(watch(server.port, True, 1)) for _ in range(50)]
            await asyncio.sleep(2)
            server.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            await asyncio.to_thread(server.process.wait)
            seconds = time.monotonic() - began
            print(f"ended {seconds:.1f} s after SIGTERM, with {STREAM_SECONDS:g} s for a stream")
            await asyncio.wait(clients)

        asyncio.run(crowd())


def lanes() -> None:
    with serving() as server:
        for first in range(0, 100_000, 2000):
            server.ask("POST", f"/add?first={first}&count=2000&lanes=10000&pause=1")
        time.sleep(1)
        print("100,000 tasks added:", server.facts())

        async def looks() -> None:
            follower = asyncio.ensure_future(watch(server.port, True, 1))
            for number in range(10):
                await asyncio.to_thread(server.ask, "POST", f"/add?first={200_000 + number}&count=1")
                await asyncio.to_thread(server.ask, "GET", "/tasks/jobs?limit=200")
                await asyncio.sleep(0.5)
            print("events and lists:", await asyncio.to_thread(server.facts))
            await asyncio.to_thread(server.ask, "GET", "/tasks/lanes?limit=200")
            await asyncio.to_thread(server.ask, "GET", "/tasks/jobs?limit=200&q=lane%209")
            print("lanes and a search:", await asyncio.to_thread(server.facts))
            await asyncio.wait([follower])

        asyncio.run(looks())


def large_results() -> None:
    for environment in ({}, {"RESULTS": "1"}):
        with serving(**environment) as server:
            print("before:", server.facts())
            server.ask("POST", "/add?first=0&count=2000&large=1")
            while (found := server.facts())["ran"] < 2000:
                time.sleep(0.5)
            print("after, with results:" if environment else "after:", found)


def tasks_of(trace: bytes) -> list[float]:
    """For how many milliseconds the page's thread has worked on each of its tasks, the longest first."""
    events = json.loads(trace)["traceEvents"]
    named = [one for one in events if one["name"] == "thread_name"]
    pages = {(one["pid"], one["tid"]) for one in named if one["args"]["name"] == "CrRendererMain"}
    tasks = [one for one in events if one["name"] == "ThreadControllerImpl::RunTask"]
    worked = [one["tdur"] / 1000 for one in tasks if (one["pid"], one["tid"]) in pages and "tdur" in one]
    return sorted(worked, reverse=True)


def load_all(shown: Any, port: int) -> None:
    """Open the page and scroll down until it has loaded all 10,000 jobs."""
    from playwright.sync_api import expect

    shown.goto(f"http://127.0.0.1:{port}/tasks/")
    expect(shown.locator("#linkWord")).to_have_text("Live", timeout=60_000)
    most = 0
    for _ in range(600):
        shown.evaluate("document.querySelector('#scroller').scrollTop += 36 * 190")
        shown.wait_for_timeout(50)
        most = max(most, shown.locator("#rows > tr").count())
        if shown.locator("#table").get_attribute("aria-rowcount") == "10001":
            break
    rows = shown.locator("#table").get_attribute("aria-rowcount")
    print("rows of the table:", rows, "in the document:", most)


def page() -> None:
    import shutil

    from playwright.sync_api import sync_playwright

    with serving() as server, sync_playwright() as playwright:
        for first in range(0, 10_000, 2000):
            server.ask("POST", f"/add?first={first}&count=2000&lanes=10&pause=1")
        path = os.environ.get("CHROMIUM") or shutil.which("chromium")
        for traced in (False, True):
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
            shown = browser.new_page()
            shown.add_init_script(
                "window.tasks = []; new PerformanceObserver((list) => tasks.push(...list.getEntries()"
                ".map((one) => Math.round(one.duration)))).observe({entryTypes: ['longtask']});"
            )
            if traced:
                browser.start_tracing(page=shown, categories=["toplevel"])
            load_all(shown, server.port)
            if traced:
                worked = tasks_of(browser.stop_tracing())
                print(f"tasks: {len(worked)}, the longest of them worked for (ms):", *map(round, worked[:5]))
            else:
                print("long tasks, over 50 ms on the wall clock (ms):", *shown.evaluate("tasks"))
            browser.close()


PARTS = {"streams": streams, "stop": stop, "lanes": lanes, "large": large_results, "page": page}

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    sys.path.insert(0, str(Path(__file__).parent))
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        PARTS[sys.argv[1]]()
