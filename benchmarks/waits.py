"""What a wait costs while other requests are in flight: submit to another lane, and wait for the result.

`await executor.lane(...).submit_nowait(func)` inside a task, with 50 and with 800 requests that have added a
task and do not respond. In process, on asyncio.

    python benchmarks/waits.py [--quick] [--json FILE]
"""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

from common import Report, options
from per_task import receive, send

from fifo_background import BackgroundTasks, OrderedBackgroundMiddleware


async def nothing() -> None: ...


async def measure(in_flight: int, times: int) -> float:
    """Microseconds for each submit and wait, inside a running task."""
    respond = asyncio.Event()
    arrived = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal arrived
        tasks = BackgroundTasks()
        tasks.add_task(nothing)
        arrived += 1
        await respond.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        await tasks()

    ordered = OrderedBackgroundMiddleware(app, hold_timeout=3600.0)
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    requests = [asyncio.ensure_future(ordered(dict(scope), receive, send)) for _ in range(in_flight)]
    while arrived < in_flight:
        await asyncio.sleep(0)
    lane = ordered.executor.lane("other")

    async def waits() -> float:
        begin = time.perf_counter()
        for _ in range(times):
            await lane.submit_nowait(nothing)
        return (time.perf_counter() - begin) / times * 1e6

    took: float = await ordered.executor.lane("waits").submit_nowait(waits)
    respond.set()
    await asyncio.gather(*requests)
    return took


async def compare(repetitions: int, times: int) -> dict[int, list[float]]:
    seen: dict[int, list[float]] = {50: [], 800: []}
    for n in range(repetitions):
        for in_flight in seen if n % 2 else reversed(seen):
            seen[in_flight].append(await measure(in_flight, times))
    return seen


def main() -> None:
    chosen = options(__doc__)
    report = Report(
        "Microseconds to submit and wait", {"in flight": "9", "us": ".1f", "of 50's": ".2f"}, chosen.json
    )
    seen = asyncio.run(compare(3 if chosen.quick else 9, 300 if chosen.quick else 1000))
    for in_flight, took in seen.items():
        growth = statistics.median(a / b for a, b in zip(took, seen[50], strict=True))
        report.add(**{"in flight": in_flight, "us": statistics.median(took), "of 50's": growth})
    report.save()


if __name__ == "__main__":
    main()
