"""Bytes per waiting task, as the queue grows: submitted tasks, requests that wait for theirs, lanes of their
own; and bytes per job that has ended, which the history keeps.

Measured with tracemalloc, in a loop of its own each; the arguments of the tasks are the same small numbers.

    python benchmarks/memory.py [--quick] [--json FILE]
"""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

from common import Report, options
from per_task import app_of, receive, send
from starlette.background import BackgroundTasks as StarletteTasks

from fifo_background import BackgroundTasks, OrderedBackgroundMiddleware, SerialExecutor


async def submitted(tasks: int) -> float:
    """Bytes per task that was submitted."""
    executor = SerialExecutor(drain_timeout=0)
    executor.lane(None).pause()
    return await grown(tasks, lambda n: executor.submit_nowait(print, n % 100))


async def kept(tasks: int) -> float:
    """Bytes per job that has ended and that the history keeps."""
    executor = SerialExecutor(history=tasks + 1, drain_timeout=0)
    return await grown(tasks, lambda n: executor.submit_nowait(nothing, n % 100), executor.join)


async def nothing(n: int) -> None:
    pass


async def in_lanes(tasks: int) -> float:
    """Bytes per task that is alone in its lane; all slots are taken."""
    executor = SerialExecutor(max_lanes_running=1, drain_timeout=0)
    never = asyncio.Event()
    executor.lane("busy").submit_nowait(never.wait)
    await asyncio.sleep(0)
    return await grown(tasks, lambda n: executor.lane(n).submit_nowait(print, n % 100))


async def attached(tasks: int) -> float:
    """Bytes per request that waits for its task: request, response and asyncio task included."""
    app = OrderedBackgroundMiddleware(app_of(BackgroundTasks, asyncio.Event().wait), drain_timeout=0)
    return await grown(tasks, lambda n: request(app))


async def starlette(tasks: int) -> float:
    """The same with Starlette's, whose tasks all run."""
    return await grown(tasks, lambda n: request(app_of(StarletteTasks, asyncio.Event().wait)))


requests: set[asyncio.Task[None]] = set()


def request(app: Any) -> None:
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    requests.add(asyncio.ensure_future(app(scope, receive, send)))


async def grown(
    tasks: int, add: Callable[[int], Any], finish: Callable[[], Awaitable[Any]] | None = None
) -> float:
    add(0)
    await asyncio.sleep(0)
    gc.collect()
    tracemalloc.start()
    for n in range(tasks):
        add(n)
        if n % 1000 == 0:
            await asyncio.sleep(0)
    for _ in range(3):
        await asyncio.sleep(0)
    if finish is not None:
        await finish()
    gc.collect()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    for task in requests:
        task.cancel()
    requests.clear()
    return size / tasks


def main() -> None:
    chosen = options(__doc__)
    sizes = (1, 1_000, 10_000) if chosen.quick else (1, 1_000, 100_000)
    columns = {"what": "30", "tasks": "9", "bytes per task": ".0f", "goal": ""}
    report = Report("Memory per task", columns, chosen.json)
    what: dict[str, Callable[[int], Awaitable[float]]] = {
        "submitted": submitted,
        "submitted, a lane each": in_lanes,
        "ended, kept by the history": kept,
        "requests, ours": attached,
        "requests, Starlette": starlette,
    }
    import logging

    logging.getLogger("fifo_background").setLevel(logging.CRITICAL)  # it names what the loop's end drops
    for name, function in what.items():
        for size in sizes:
            goal = 1024 if name == "submitted" and size > 1 else None
            report.add(
                **{"what": name, "tasks": size, "goal": goal},
                **{"bytes per task": asyncio.run(function(size))},
            )
    report.save()


if __name__ == "__main__":
    main()
