"""Whole HTTP requests, uvicorn with httptools on uvloop, wrk: plain FastAPI against ours.

The servers are started anew for each repetition, as some processes are slower than others, and wrk asks them
in turn. The client shares the machine with the server.

    python benchmarks/whole_requests.py [--quick] [--json FILE]
"""

from __future__ import annotations

import contextlib
import statistics

from common import Report, options, ratio
from served import server, wrk

GOALS = {"sync": 1.6, "async": 0.83}


def main() -> None:
    chosen = options(__doc__)
    repetitions, seconds = (3, 1) if chosen.quick else (7, 2)
    columns = {
        "task": "7",
        "connections": "11",
        "side": "10",
        "per second": ".0f",
        "faster": ".2f",
        "goal": "",
    }
    report = Report("Whole HTTP requests per second", columns, chosen.json)
    names = {
        "plain": "plain",
        "ours": "ordered",
        "floor": "floor",
        "empty": "empty",
    }
    cells = [
        (task, connections)
        for task in ("sync", "async", "without")
        for connections in ((64,) if chosen.quick else (1, 64))
    ]
    seen: dict[tuple[str, int], dict[str, list[float]]] = {
        cell: {side: [] for side in names} for cell in cells
    }
    for n in range(repetitions):
        order = list(names) if n % 2 else list(reversed(names))
        with contextlib.ExitStack() as servers:
            sides = {side: servers.enter_context(server(names[side])) for side in order}
            for side in order:
                wrk(f"{sides[side]}/async", 64, 1)  # to warm up
            for task, connections in cells:
                for side in order:
                    result = wrk(f"{sides[side]}/{task}", connections, seconds)
                    if result["errors"]:
                        raise RuntimeError(f"{side} {task}: {result}")
                    seen[task, connections][side].append(result["rate"])
    for (task, connections), rates in seen.items():
        for side in names:
            goal = GOALS.get(task) if side == "ours" and connections == 64 else None
            report.add(
                **{"task": task, "connections": connections, "side": side, "goal": goal},
                **{
                    "per second": statistics.median(rates[side]),
                    "faster": ratio(rates[side], rates["plain"]),
                },
            )
    report.save()


if __name__ == "__main__":
    main()
