"""Cost of a request with one task that does next to nothing: Starlette's BackgroundTasks, others, and ours.

Every side is the same ASGI app with Starlette's own `Response`. A round is over when all its requests are
answered and all their tasks have run. "faster" is Starlette's time over the side's.

    python benchmarks/per_task.py [--quick] [--json FILE]
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import sniffio
from common import Report, Side, interleave, loops, options, ratio
from floor import Floor
from starlette.background import BackgroundTasks as StarletteTasks
from starlette.responses import Response

from fifo_background import BackgroundTasks, OrderedBackgroundMiddleware

# "faster" that is aimed at, with 100 requests in flight, for "ours"
GOALS = {
    ("uvloop", "sync"): 3.0,
    ("uvloop", "async"): 0.45,
}


class Countdown:
    """The tasks, which count themselves, and the end of a round."""

    def __init__(self) -> None:
        self.tasks = 0
        self.run: list[None] = []

    def begin(self, tasks: int) -> None:
        self.tasks = tasks
        self.run.clear()
        self.over = anyio.Event()
        if sniffio.current_async_library() == "asyncio":
            self.soon: Any = asyncio.get_running_loop().call_soon_threadsafe
        else:
            import trio

            self.soon = trio.lowlevel.current_trio_token().run_sync_soon

    async def async_task(self) -> None:
        self.run.append(None)
        if len(self.run) == self.tasks:
            self.over.set()

    def sync_task(self) -> None:
        self.run.append(None)  # Starlette's run side by side: this is atomic
        if len(self.run) == self.tasks:
            self.soon(self.over.set)


async def send(message: Any) -> None: ...


async def receive() -> Any:
    return {"type": "http.request"}


def app_of(make: Callable[[], Any], task: Callable[[], Any]) -> Any:
    """An app whose requests add `task` to what `make()` returns, and answer with it."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tasks = make()
        tasks.add_task(task)
        await Response(b"", background=tasks)(scope, receive, send)

    return app


def ours(task: Any, **settings: Any) -> Any:
    return OrderedBackgroundMiddleware(app_of(BackgroundTasks, task), **settings)


def floor(task: Any) -> Any:
    bare = Floor()
    return bare.middleware(app_of(bare.tasks_class, task))


@contextlib.asynccontextmanager
async def queue_worker(task: Any) -> AsyncIterator[Any]:
    """An asyncio.Queue and one worker."""
    queue: asyncio.Queue[Any] = asyncio.Queue()

    async def work() -> None:
        while True:
            function = await queue.get()
            if asyncio.iscoroutinefunction(function):
                await function()
            else:
                await anyio.to_thread.run_sync(function)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        queue.put_nowait(task)
        await Response(b"")(scope, receive, send)

    worker = asyncio.create_task(work())
    yield app
    worker.cancel()


@contextlib.asynccontextmanager
async def aiojobs_scheduler(task: Any) -> AsyncIterator[Any]:
    """aiojobs with limit=1."""
    import aiojobs

    scheduler = aiojobs.Scheduler(limit=1, pending_limit=0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        is_async = asyncio.iscoroutinefunction(task)
        await scheduler.spawn(task() if is_async else anyio.to_thread.run_sync(task))
        await Response(b"")(scope, receive, send)

    yield app
    await scheduler.close()


@contextlib.asynccontextmanager
async def taskflow(task: Any) -> AsyncIterator[Any]:
    """fastapi-taskflow with one named queue, concurrency=1."""
    import fastapi
    from fastapi_taskflow import QueueConfig, TaskManager

    manager = TaskManager(queues={"default": QueueConfig(concurrency=1)})
    await manager.startup()
    yield app_of(lambda: manager.get_tasks(fastapi.BackgroundTasks()), task)
    await manager.shutdown()


async def one_round(app: Any, countdown: Countdown, in_flight: int, rounds: int) -> float:
    """Microseconds per request, with `in_flight` of them at once."""
    on_asyncio = sniffio.current_async_library() == "asyncio"
    begin = time.perf_counter()
    for _ in range(rounds):
        countdown.begin(in_flight)
        scopes = [
            {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
            for _ in range(in_flight)
        ]
        if on_asyncio:
            await asyncio.gather(*(app(scope, receive, send) for scope in scopes))
        else:
            async with anyio.create_task_group() as group:
                for scope in scopes:
                    group.start_soon(app, scope, receive, send)
        with anyio.fail_after(60):
            await countdown.over.wait()
    return (time.perf_counter() - begin) / (in_flight * rounds) * 1e6


Measured = dict[str, list[float]]


async def compare(kind: str, in_flight: int, repetitions: int, requests: int, others: bool) -> Measured:
    """Microseconds per request, of each side, repetition by repetition."""
    countdown = Countdown()
    task: Any = countdown.sync_task if kind == "sync" else countdown.async_task
    on_asyncio = sniffio.current_async_library() == "asyncio"
    rounds = max(1, requests // in_flight)

    def side(app: Any) -> Side:
        return partial(one_round, app, countdown, in_flight, rounds)

    sides: dict[str, Callable[..., Awaitable[float]]] = {
        "Starlette": side(app_of(StarletteTasks, task)),
        "ours": side(ours(task)),
    }
    if on_asyncio:
        sides["floor"] = side(floor(task))
    async with contextlib.AsyncExitStack() as stack:
        if others:
            sides["ours, detached"] = side(ours(task, wait=False))
            sides["ours, no middleware"] = side(app_of(BackgroundTasks, task))
            for name, package in (
                ("queue worker", queue_worker),
                ("aiojobs", aiojobs_scheduler),
                ("taskflow", taskflow),
            ):
                if on_asyncio:
                    with contextlib.suppress(ImportError):
                        sides[name] = side(await stack.enter_async_context(package(task)))
        return await interleave(sides, repetitions)


def main() -> None:
    chosen = options(__doc__)
    repetitions, requests = (7, 1000) if chosen.quick else (11, 2000)
    columns = {
        "loop": "8",
        "task": "6",
        "in flight": "9",
        "side": "20",
        "us": ".1f",
        "faster": ".2f",
        "goal": "",
    }
    report = Report("Microseconds per request with one task", columns, chosen.json)
    for loop, run in loops().items():
        for kind in ("sync", "async"):
            for in_flight in (100,) if chosen.quick else (1, 100, 1000):
                seen = run(compare, kind, in_flight, repetitions, requests, not chosen.quick)
                for side, times in seen.items():
                    goal = GOALS.get((loop, kind)) if side == "ours" and in_flight == 100 else None
                    faster = ratio(seen["Starlette"], times)
                    report.add(
                        **{"loop": loop, "task": kind, "in flight": in_flight, "side": side},
                        **{"us": statistics.median(times), "faster": faster, "goal": goal},
                    )
    report.save()


if __name__ == "__main__":
    main()
