"""Whole HTTP requests, uvicorn with httptools on uvloop, wrk: plain FastAPI against ours.

Both servers run all the time; wrk asks them in turn. The client shares the machine with the server.

    python benchmarks/whole_requests.py [--quick] [--json FILE]
"""

from __future__ import annotations

import statistics

from common import Report, options, ratio
from served import server, wrk

GOALS = {"sync": 1.5, "async": 0.95}


def main() -> None:
    chosen = options(__doc__)
    repetitions, seconds = (3, 1) if chosen.quick else (11, 3)
    columns = {
        "task": "7",
        "connections": "11",
        "plain/s": ".0f",
        "ours/s": ".0f",
        "faster": ".2f",
        "goal": "",
    }
    report = Report("Whole HTTP requests per second", columns, chosen.json)
    with server("plain") as plain, server("ordered") as ordered:
        for task in ("sync", "async", "without"):
            for connections in (64,) if chosen.quick else (1, 64):
                seen: dict[str, list[float]] = {plain: [], ordered: []}
                for n in range(-1, repetitions):
                    for url in (plain, ordered) if n % 2 else (ordered, plain):
                        result = wrk(f"{url}/{task}", connections, seconds)
                        if result["errors"]:
                            raise RuntimeError(f"{task}: {result}")
                        if n >= 0:
                            seen[url].append(result["rate"])
                report.add(
                    **{"task": task, "connections": connections, "goal": GOALS.get(task)},
                    **{"plain/s": statistics.median(seen[plain]), "ours/s": statistics.median(seen[ordered])},
                    faster=ratio(seen[ordered], seen[plain]),
                )
    report.save()


if __name__ == "__main__":
    main()
