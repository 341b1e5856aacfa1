"""Runs every benchmark, and writes docs/benchmarks.md and its plots from what they measured.

    python benchmarks/all.py [NAME ...]        these only, then the page from all results that are there

Takes about half an hour, on a machine that has nothing else to do. Needs wrk and valgrind.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import page

HERE = Path(__file__).parent
NAMES = (
    "per_task",
    "whole_requests",
    "endpoints",
    "waiting",
    "waits",
    "memory",
    "growth",
    "latency",
    "postgres",
    "instructions",
)


def main() -> None:
    for name in sys.argv[1:] or NAMES:
        subprocess.run([sys.executable, f"{name}.py", "--json", f"results/{name}.json"], cwd=HERE, check=True)
    page.main()


if __name__ == "__main__":
    main()
