"""`def` endpoints while sync tasks run: with plain BackgroundTasks both share anyio's 40 threads.

100 requests each add a sync task of one second; while they run, wrk asks a `def` endpoint that does nothing.
In order takes longer for the tasks themselves: one after the other, they take 100 seconds.

    python benchmarks/endpoints.py [--quick] [--json FILE]
"""

from __future__ import annotations

import statistics

from common import Report, options
from served import ask, server, wrk


def main() -> None:
    chosen = options(__doc__)
    repetitions = 1 if chosen.quick else 5
    columns = {"side": "10", "sync tasks": "10", "def requests/s": ".0f", "p50 ms": ".2f", "p99 ms": ".1f"}
    report = Report("A def endpoint while sync tasks run", columns, chosen.json)
    for tasks in (0, 100):
        seen: dict[str, list[dict[str, float]]] = {"plain": [], "ordered": []}
        for _ in range(repetitions):
            for name, results in seen.items():
                with server(name) as url:
                    wrk(f"{url}/def", 32, 1)
                    open_ones = ask(f"{url}/sleep/1000", tasks)
                    results.append(wrk(f"{url}/def", 32, 2))
                    for connection in open_ones:
                        connection.close()
        for name, results in seen.items():
            rate, p50, p99 = (statistics.median(r[key] for r in results) for key in ("rate", "p50", "p99"))
            report.add(
                **{"side": name, "sync tasks": tasks, "def requests/s": rate, "p50 ms": p50, "p99 ms": p99}
            )
    report.save()


if __name__ == "__main__":
    main()
