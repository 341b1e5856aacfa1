"""Time from the end of a response to the start of its task, when nothing else happens.

The clock is read when the last message has been sent, and in the task.

    python benchmarks/latency.py [--quick] [--json FILE]
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

import anyio
from common import Report, interleave, loops, options
from per_task import receive
from starlette.background import BackgroundTasks as StarletteTasks
from starlette.responses import Response

from fifo_background import BackgroundTasks, OrderedBackgroundMiddleware


class Clock:
    """Notes when a response was sent and its task was started."""

    sent = 0.0
    started = 0.0

    async def send(self, message: Any) -> None:
        self.sent = time.perf_counter()

    async def async_task(self) -> None:
        self.started = time.perf_counter()

    def sync_task(self) -> None:
        self.started = time.perf_counter()


async def measure(app: Any, clock: Clock, requests: int, into: list[float]) -> float:
    for _ in range(requests):
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
        await app(scope, receive, clock.send)
        into.append((clock.started - clock.sent) * 1e6)
        await anyio.sleep(0)
    return 0.0


async def compare(kind: str, repetitions: int, requests: int) -> dict[str, list[float]]:
    clock = Clock()
    task = clock.sync_task if kind == "sync" else clock.async_task

    def app_of(make: Any) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            tasks = make()
            tasks.add_task(task)
            await Response(b"", background=tasks)(scope, receive, send)

        return app

    apps = {
        "Starlette": app_of(StarletteTasks),
        "ours": OrderedBackgroundMiddleware(app_of(BackgroundTasks)),
    }
    seen: dict[str, list[float]] = {name: [] for name in apps}
    await interleave(
        {name: partial(measure, app, clock, requests, seen[name]) for name, app in apps.items()}, repetitions
    )
    return seen


def main() -> None:
    chosen = options(__doc__)
    repetitions, requests = (3, 100) if chosen.quick else (11, 500)
    columns = {"loop": "8", "task": "6", "side": "10", "p50 us": ".1f", "p99 us": ".1f"}
    report = Report("From the end of the response to the start of the task, idle", columns, chosen.json)
    for loop, run in loops().items():
        for kind in ("sync", "async"):
            for side, times in run(compare, kind, repetitions, requests).items():
                cuts = statistics.quantiles(times, n=100)
                report.add(
                    **{"loop": loop, "task": kind, "side": side, "p50 us": cuts[49], "p99 us": cuts[98]}
                )
    report.save()


if __name__ == "__main__":
    main()
