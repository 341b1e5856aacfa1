"""Instructions and bytecodes per request: they repeat on a noisy machine, where times do not.

Instructions are counted by valgrind, bytecodes by `sys.monitoring` (Python 3.12 or newer). Each side runs
twice, with more and with fewer rounds of 100 requests; the difference is what the requests cost. With
FastAPI, where each request runs cold code, bytecodes tell more than instructions, and are counted alone; so
they are for sync tasks.

    python benchmarks/instructions.py [--quick] [--json FILE]
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import Report, options
from per_task import Countdown, app_of, floor, one_round, ours
from starlette.background import BackgroundTasks as StarletteTasks

from fifo_background import SerialExecutor


def fastapi_app(task: Any, ordered: bool) -> Any:
    """A FastAPI app whose one endpoint adds the task."""
    import fastapi

    from fifo_background import BackgroundTasks, OrderedBackgroundMiddleware

    app = fastapi.FastAPI()

    async def endpoint(tasks: Any) -> None:
        tasks.add_task(task)

    endpoint.__annotations__["tasks"] = BackgroundTasks if ordered else fastapi.BackgroundTasks
    app.get("/")(endpoint)
    if ordered:
        app.add_middleware(OrderedBackgroundMiddleware)
    return app


def submitted(task: Any, **settings: Any) -> Any:
    """An app whose requests submit the task, and do nothing else."""
    executors: dict[Any, SerialExecutor] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        loop = asyncio.get_running_loop()
        if loop not in executors:
            executors[loop] = SerialExecutor(**settings)
        executors[loop].submit_nowait(task)

    return app


SIDES: dict[str, Callable[[Any], Any]] = {
    "Starlette": lambda task: app_of(StarletteTasks, task),
    "ours": ours,
    "ours, detached": lambda task: ours(task, wait=False),
    "ours, history=0": lambda task: ours(task, history=0),
    "submit_nowait": submitted,
    "submit_nowait, history=0": lambda task: submitted(task, history=0),
    "floor": floor,
    "FastAPI": lambda task: fastapi_app(task, False),
    "FastAPI, ours": lambda task: fastapi_app(task, True),
}


def kind_of(countdown: Countdown, kind: str) -> Any:
    return countdown.async_task if kind == "async" else countdown.sync_task


def run(side: str, kind: str, rounds: int) -> None:
    """What valgrind looks at."""
    countdown = Countdown()
    asyncio.run(one_round(SIDES[side](kind_of(countdown, kind)), countdown, 100, rounds))


def instructions(side: str, kind: str, rounds: int) -> int:
    command = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    command += [sys.executable, __file__, "run", side, kind, str(rounds)]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, cwd=Path(__file__).parent, env=environment, capture_output=True, text=True)
    found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    if found is None:
        sys.exit(done.stderr)
    return int(found[1].replace(",", ""))


def bytecodes(side: str, kind: str, rounds: int) -> int:
    """On the event loop's thread and in threads, from the first request on."""
    countdown = Countdown()
    app = SIDES[side](kind_of(countdown, kind))
    seen = 0

    def count(code: Any, offset: int) -> None:
        nonlocal seen
        seen += 1

    monitoring = sys.monitoring
    tool = monitoring.PROFILER_ID
    asyncio.run(one_round(app, countdown, 100, 2))
    monitoring.use_tool_id(tool, "bytecodes")
    monitoring.register_callback(tool, monitoring.events.INSTRUCTION, count)
    monitoring.set_events(tool, monitoring.events.INSTRUCTION)
    try:
        asyncio.run(one_round(app, countdown, 100, rounds))
    finally:
        monitoring.set_events(tool, 0)
        monitoring.free_tool_id(tool)
    return seen


def main() -> None:
    chosen = options(__doc__)
    has_valgrind = shutil.which("valgrind") is not None
    if not has_valgrind:
        print("valgrind is not installed (`apt install valgrind`): bytecodes alone are counted")
    more = 12 if chosen.quick else 42
    columns = {"task": "6", "side": "24", "instructions": ".0f", "bytecodes": ".0f", "of plain's": ".2f"}
    report = Report("Instructions and bytecodes per request with one task, asyncio", columns, chosen.json)
    plain: dict[str, float] = {}
    for kind in ("async", "sync"):
        for side in SIDES:
            requests = (more - 2) * 100
            used: dict[str, float] = {
                "bytecodes": (bytecodes(side, kind, more) - bytecodes(side, kind, 2)) / requests
            }
            if has_valgrind and kind == "async" and "FastAPI" not in side:
                steps = instructions(side, kind, more) - instructions(side, kind, 2)
                used["instructions"] = steps / requests
            if side in ("Starlette", "FastAPI"):
                plain = used
            unit = "instructions" if "instructions" in used else "bytecodes"
            report.add(**{"task": kind, "side": side, "of plain's": used[unit] / plain[unit], **used})
    report.save()


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
