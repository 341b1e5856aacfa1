"""Time per task as the line and the number of lanes grow: it must not grow with either.

    python benchmarks/growth.py [--quick] [--json FILE]

Each figure is the median of rounds that are interleaved over the sizes; a ratio is against 1,000 tasks of the
same kind. The last column is what is left in memory, per task, after all have ended.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

from per_task import versions

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


async def time_of(shape: Callable[..., Any], func: Callable[[], Any], tasks: int, repeat: int) -> float:
    """Microseconds per task."""
    gc.collect()
    begin = time.perf_counter()
    for _ in range(repeat):
        await shape(func, tasks)
    return (time.perf_counter() - begin) / (tasks * repeat) * 1e6


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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds, up to 10,000 tasks")
    parser.add_argument("--json", help="write the rows to this file too")
    options = parser.parse_args()
    sizes = (1_000, 10_000) if options.quick else (1_000, 10_000, 100_000)
    rounds = 3 if options.quick else 11

    print(versions())
    print(f"{'shape':12} {'task':6} {'tasks':>8} {'us per task':>12} {'ratio':>7} {'bytes left':>11}")
    rows = []
    for shape in (one_line, many_lanes):
        for kind, func in (("async", async_task), ("sync", sync_task)):
            seen: dict[int, list[float]] = {size: [] for size in sizes}
            for _ in range(rounds):
                for size in sizes:
                    seen[size].append(asyncio.run(time_of(shape, func, size, max(1, 10_000 // size))))
            for size in sizes:
                cost = statistics.median(seen[size])
                ratio = statistics.median(a / b for a, b in zip(seen[size], seen[1_000], strict=True))
                left = asyncio.run(left_per_task(shape, func, size))
                print(f"{shape.__name__:12} {kind:6} {size:8} {cost:12.2f} {ratio:7.2f} {left:11.2f}")
                rows.append(
                    {
                        "shape": shape.__name__,
                        "task": kind,
                        "tasks": size,
                        "us_per_task": cost,
                        "ratio": ratio,
                        "limit": LIMIT,
                        "bytes_left_per_task": left,
                    }
                )
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"versions": versions(), "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
