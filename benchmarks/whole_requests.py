"""Whole HTTP requests, uvicorn with httptools on uvloop, wrk: plain FastAPI against ours.

Both servers run all the time; wrk asks them in turn. The client shares the machine with the server.

    python benchmarks/whole_requests.py [--quick] [--json FILE]
"""

from __future__ import annotations

import contextlib
import statistics

from common import Report, options, ratio
from served import server, wrk

GOALS = {"sync": 1.5, "async": 0.95}


def main() -> None:
    chosen = options(__doc__)
    repetitions, seconds = (3, 1) if chosen.quick else (7, 2)
    columns = {
        "task": "7",
        "connections": "11",
        "side": "8",
        "per second": ".0f",
        "faster": ".2f",
        "goal": "",
    }
    report = Report("Whole HTTP requests per second", columns, chosen.json)
    names = {"plain": "plain", "ours": "ordered", "full floor": "full_floor", "floor": "floor"}
    with contextlib.ExitStack() as servers:
        sides = {side: servers.enter_context(server(name)) for side, name in names.items()}
        for task in ("sync", "async", "without"):
            for connections in (64,) if chosen.quick else (1, 64):
                seen: dict[str, list[float]] = {side: [] for side in sides}
                for n in range(-1, repetitions):
                    for side in sides if n % 2 else reversed(sides):
                        result = wrk(f"{sides[side]}/{task}", connections, seconds)
                        if result["errors"]:
                            raise RuntimeError(f"{side} {task}: {result}")
                        if n >= 0:
                            seen[side].append(result["rate"])
                for side, rates in seen.items():
                    goal = GOALS.get(task) if side == "ours" and connections == 64 else None
                    report.add(
                        **{"task": task, "connections": connections, "side": side, "goal": goal},
                        **{"per second": statistics.median(rates), "faster": ratio(rates, seen["plain"])},
                    )
    report.save()


if __name__ == "__main__":
    main()
