"""Cost per request of one task that does nothing: Starlette's BackgroundTasks against ours, in the same run.

Both sides are the same app, with Starlette's own `Response`; ours comes from `fifo_background`, wrapped
by its middleware, with every guarantee on. Pairs are interleaved, a ratio is the median over pairs.

    python benchmarks/per_task.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from starlette.background import BackgroundTasks as StarletteTasks
from starlette.responses import Response

from fifo_background import BackgroundTasks, OrderedBackgroundMiddleware

# Starlette's time over ours has to be at least this (an async request may take twice as long).
GOALS = {
    ("sync", "asyncio"): 5.0,
    ("sync", "uvloop"): 10.0,
    ("async", "asyncio"): 0.5,
    ("async", "uvloop"): 0.5,
}


async def async_task() -> None: ...


def sync_task() -> None: ...


def make_app(tasks_class: Any, func: Callable[[], Any]) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        tasks = tasks_class()
        tasks.add_task(func)
        await Response(b"", background=tasks)(scope, receive, send)

    return app


async def receive() -> Any:
    return {"type": "http.request"}


async def send(message: Any) -> None: ...


async def per_request(app: Any, in_flight: int, rounds: int) -> float:
    """Microseconds per request, with `in_flight` of them at once."""
    begin = time.perf_counter()
    for _ in range(rounds):
        scopes = [
            {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
            for _ in range(in_flight)
        ]
        await asyncio.gather(*(app(scope, receive, send) for scope in scopes))
    return (time.perf_counter() - begin) / (in_flight * rounds) * 1e6


async def compare(kind: str, in_flight: int, pairs: int, requests: int) -> tuple[float, float, float]:
    """Starlette's and our microseconds per request, and the median of the pairs' ratios."""
    func = sync_task if kind == "sync" else async_task
    rounds = max(1, requests // in_flight)
    apps = make_app(StarletteTasks, func), OrderedBackgroundMiddleware(make_app(BackgroundTasks, func))
    for app in apps:
        await per_request(app, in_flight, rounds)
    seen = []
    for n in range(pairs):
        gc.collect()
        order = apps if n % 2 == 0 else apps[::-1]
        times = [await per_request(app, in_flight, rounds) for app in order]
        seen.append(tuple(times if n % 2 == 0 else times[::-1]))
    theirs, ours = (statistics.median(pair[side] for pair in seen) for side in (0, 1))
    return theirs, ours, statistics.median(pair[0] / pair[1] for pair in seen)


def versions() -> str:
    def of(name: str) -> str:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            return f"no {name}"

    return ", ".join(
        [
            f"Python {platform.python_version()}",
            *map(of, ("starlette", "anyio", "fastapi", "uvloop")),
            platform.machine(),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer requests and pairs")
    parser.add_argument("--json", help="write the rows to this file too")
    options = parser.parse_args()
    pairs, requests = (5, 300) if options.quick else (15, 2000)

    runners: dict[str, Callable[..., Any]] = {"asyncio": asyncio.run}
    try:
        import uvloop

        runners["uvloop"] = uvloop.run
    except ImportError:
        print("uvloop is not installed: asyncio only")
    print(versions())
    print(f"{'loop':8} {'task':6} {'in flight':>9} {'Starlette':>13} {'ours':>9} {'faster':>13} {'goal':>5}")
    rows = []
    for loop, run in runners.items():
        for kind in ("sync", "async"):
            for in_flight in (1, 100, 1000):
                theirs, ours, ratio = run(compare(kind, in_flight, pairs, requests))
                goal = GOALS[kind, loop] if in_flight == 100 else None
                print(
                    f"{loop:8} {kind:6} {in_flight:9} {theirs:13.1f} {ours:9.1f} {ratio:13.2f} "
                    f"{'' if goal is None else goal:>5}"
                )
                rows.append(
                    {
                        "loop": loop,
                        "task": kind,
                        "in_flight": in_flight,
                        "starlette_us": theirs,
                        "ours_us": ours,
                        "ratio": ratio,
                        "goal": goal,
                    }
                )
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"versions": versions(), "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
