"""How long an endpoint without tasks takes to answer while 1,000 tasks wait in line.

Each of 1,000 requests, in connections of their own, has added a sync task that sleeps: for 10 ms with
ours, and for 400 ms with plain BackgroundTasks, which run 40 at a time, so that both lines last ten
seconds. wrk, with one connection, asks an `async def` endpoint meanwhile.

    python benchmarks/waiting.py [--quick] [--json FILE]
"""

from __future__ import annotations

import resource
import statistics

from common import Report, options
from served import ask, server, wrk


def main() -> None:
    chosen = options(__doc__)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    repetitions = 1 if chosen.quick else 5
    columns = {"side": "10", "waiting": "8", "requests/s": ".0f", "p50 ms": ".3f", "p99 ms": ".3f"}
    report = Report("Latency of an endpoint while tasks wait", columns, chosen.json)
    for waiting in (0, 1000):
        seen: dict[str, list[dict[str, float]]] = {"plain": [], "ordered": []}
        for _ in range(repetitions):
            for name, results in seen.items():
                with server(name) as url:
                    wrk(f"{url}/without", 1, 1)
                    milliseconds = 10 if name == "ordered" else 400
                    open_ones = ask(f"{url}/sleep/{milliseconds}", waiting)
                    results.append(wrk(f"{url}/without", 1, 2))
                    for connection in open_ones:
                        connection.close()
        for name, results in seen.items():
            rate, p50, p99 = (statistics.median(r[key] for r in results) for key in ("rate", "p50", "p99"))
            report.add(**{"side": name, "waiting": waiting, "requests/s": rate, "p50 ms": p50, "p99 ms": p99})
    report.save()


if __name__ == "__main__":
    main()
