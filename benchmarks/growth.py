"""Time per task as the line and the number of lanes grow: it must not grow with either.

Rounds are interleaved over the sizes; a ratio is against 1,000 tasks of the same kind, the median over
the rounds. Python's garbage collector looks at all objects again and again while they get more; "uncollected"
is the ratio while it is off. "bytes left" is what is left in memory, per task, after all have ended.

    python benchmarks/growth.py [--quick] [--json FILE]
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

from common import Report, options, ratio

from fifo_background import SerialExecutor

LIMIT = 1.5


async def async_task() -> None: ...


def sync_task() -> None: ...


async def one_line(func: Callable[[], Any], tasks: int) -> None:
    async with SerialExecutor(drain_timeout=600) as executor:
        for _ in range(tasks):
            executor.submit_nowait(func)
        await executor.join()


async def many_lanes(func: Callable[[], Any], tasks: int) -> None:
    async with SerialExecutor(drain_timeout=600) as executor:
        for n in range(tasks):
            executor.lane(n).submit_nowait(func)
        await executor.join()


async def time_of(
    shape: Callable[..., Any], func: Callable[[], Any], tasks: int, repeat: int, collects: bool = True
) -> float:
    """Microseconds per task, with the garbage collector on or off."""
    gc.collect()
    if not collects:
        gc.disable()
    try:
        begin = time.perf_counter()
        for _ in range(repeat):
            await shape(func, tasks)
        return (time.perf_counter() - begin) / (tasks * repeat) * 1e6
    finally:
        gc.enable()


async def left_per_task(shape: Callable[..., Any], func: Callable[[], Any], tasks: int) -> float:
    """Bytes."""
    await shape(func, 100)
    gc.collect()
    tracemalloc.start()
    await shape(func, tasks)
    gc.collect()
    left = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return left / tasks


def main() -> None:
    chosen = options(__doc__)
    sizes = (1_000, 10_000) if chosen.quick else (1_000, 10_000, 100_000)
    rounds = 3 if chosen.quick else 11
    columns = {
        "shape": "12",
        "task": "6",
        "tasks": "8",
        "us": ".2f",
        "ratio": ".2f",
        "limit": "",
        "uncollected": ".2f",
        "bytes left": ".2f",
    }
    report = Report("Microseconds per task as the line and the number of lanes grow", columns, chosen.json)
    for shape in (one_line, many_lanes):
        for kind, func in (("async", async_task), ("sync", sync_task)):
            seen: dict[int, list[float]] = {size: [] for size in sizes}
            uncollected: dict[int, list[float]] = {size: [] for size in sizes}
            for _ in range(rounds):
                for size in sizes:
                    repeat = max(1, 10_000 // size)
                    seen[size].append(asyncio.run(time_of(shape, func, size, repeat)))
                    uncollected[size].append(asyncio.run(time_of(shape, func, size, repeat, False)))
            for size in sizes:
                report.add(
                    **{"shape": shape.__name__, "task": kind, "tasks": size, "limit": LIMIT},
                    **{"us": statistics.median(seen[size]), "ratio": ratio(seen[size], seen[1_000])},
                    **{"uncollected": ratio(uncollected[size], uncollected[1_000])},
                    **{"bytes left": asyncio.run(left_per_task(shape, func, size))},
                )
    report.save()


if __name__ == "__main__":
    main()
