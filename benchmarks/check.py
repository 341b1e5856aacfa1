"""Measures the key figures quickly, and fails when one is worse than half of what is published.

    python benchmarks/check.py

"Published" is `benchmarks/results`, which docs/benchmarks.md shows. Takes less than a minute. It looks at
ratios within this run, and at bytes: nothing depends on how fast the machine is. A speed that is too low is
measured twice more, and the best counts: noise goes away, a loss stays.
"""

from __future__ import annotations

import asyncio
import json
import logging
import statistics
import sys
from pathlib import Path
from typing import Any

import growth
import memory
import per_task
from common import interleave, loops, machine, ratio

RESULTS = Path(__file__).parent / "results"


def published(name: str, column: str, **where: Any) -> float:
    """One figure of the published results."""
    rows = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
    (found,) = [row[column] for row in rows if all(row[key] == value for key, value in where.items())]
    return float(found)


class Check:
    def __init__(self) -> None:
        self.failed = 0

    def at_least(self, what: str, value: float, was: float) -> None:
        self._say(what, value, was, value >= was / 2)

    def at_most(self, what: str, value: float, was: float) -> None:
        self._say(what, value, was, value <= was * 2)

    def _say(self, what: str, value: float, was: float, fine: bool) -> None:
        self.failed += not fine
        print(f"{what:58} {value:8.2f}  published {was:8.2f}  {'ok' if fine else 'TOO BAD'}", flush=True)


async def grown(shape: Any, func: Any) -> float:
    """How many times the cost per task of 1,000 tasks that of 10,000 is."""
    seen = await interleave(
        {
            "1,000": lambda: growth.time_of(shape, func, 1_000, 5),
            "10,000": lambda: growth.time_of(shape, func, 10_000, 1),
        },
        3,
    )
    return ratio(seen["10,000"], seen["1,000"])


def main() -> None:
    print(machine())
    logging.disable(logging.WARNING)  # what waits is dropped and named when its loop ends
    check = Check()
    for loop, run in loops().items():
        for kind in ("sync", "async"):
            was = published("per_task", "faster", loop=loop, task=kind, side="ours", **{"in flight": 100})
            value = 0.0
            for _ in range(3):
                seen = run(per_task.compare, kind, 100, 7, 500, False)
                value = max(value, ratio(seen["Starlette"], seen["ours"]))
                if value >= was / 2:
                    break
            check.at_least(f"{loop} {kind}, 100 in flight: Starlette's time / ours", value, was)
    for shape in (growth.one_line, growth.many_lanes):
        for kind, func in (("async", growth.async_task), ("sync", growth.sync_task)):
            was = published("growth", "ratio", shape=shape.__name__, task=kind, tasks=10_000)
            check.at_most(
                f"{shape.__name__} {kind}: 10,000 / 1,000 tasks", asyncio.run(grown(shape, func)), was
            )
    was = published("memory", "bytes per task", what="submitted", tasks=1_000)
    size = statistics.median(asyncio.run(memory.submitted(1_000)) for _ in range(3))
    check.at_most("bytes per submitted task that waits", size, was)
    sys.exit(bool(check.failed))


if __name__ == "__main__":
    main()
