"""Instructions per request, counted by valgrind: they repeat on a noisy machine, where times do not.

Each side runs twice, with more and with fewer rounds of 100 requests; the difference is what the requests
cost.

    python benchmarks/instructions.py [--quick] [--json FILE]
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from common import Report, options
from full_floor import FullFloor
from per_task import Countdown, app_of, floor, one_round, ours
from starlette.background import BackgroundTasks as StarletteTasks

SIDES = ("Starlette", "ours", "full floor", "floor")


def run(side: str, rounds: int) -> None:
    """What valgrind looks at."""
    countdown = Countdown()
    task = countdown.async_task
    app = {
        "Starlette": lambda: app_of(StarletteTasks, task),
        "ours": lambda: ours(task),
        "full floor": lambda: floor(task, FullFloor),
        "floor": lambda: floor(task),
    }
    asyncio.run(one_round(app[side](), countdown, 100, rounds))


def count(side: str, rounds: int) -> int:
    command = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    command += [sys.executable, __file__, "run", side, str(rounds)]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, cwd=Path(__file__).parent, env=environment, capture_output=True, text=True)
    found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    if found is None:
        sys.exit(done.stderr)
    return int(found[1].replace(",", ""))


def main() -> None:
    chosen = options(__doc__)
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed: `apt install valgrind`")
    more = 12 if chosen.quick else 42
    columns = {"side": "10", "instructions": ".0f", "of Starlette's": ".2f"}
    report = Report("Instructions per request with one async task, asyncio", columns, chosen.json)
    seen = {side: (count(side, more) - count(side, 2)) / ((more - 2) * 100) for side in SIDES}
    for side, instructions in seen.items():
        report.add(
            **{"side": side, "instructions": instructions, "of Starlette's": instructions / seen["Starlette"]}
        )
    report.save()


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run(sys.argv[2], int(sys.argv[3]))
    else:
        main()
