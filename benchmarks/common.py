"""What the benchmarks share: how sides are compared, what is printed, where it is kept.

Every script takes `--quick` (fewer repetitions) and `--json FILE`. Sides run interleaved in one process,
in an order that turns round with each repetition, each after a garbage collection of its own; a ratio is
the median over the repetitions.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Side = Callable[[], Awaitable[float]]  # measures once


def options(doc: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--json", type=Path, help="write the rows to this file, too")
    return parser.parse_args()


def version_of(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"no {name}"


def machine() -> str:
    """Versions and machine, for the header of a table."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor()
    names = ("fifo-background", "starlette", "fastapi", "anyio", "uvloop", "trio", "uvicorn", "aiojobs")
    return (
        f"Python {platform.python_version()}, {', '.join(map(version_of, (*names, 'fastapi-taskflow')))}; "
        f"{model}, {os.cpu_count()} CPUs, {platform.system()}"
    )


def loops() -> dict[str, Callable[..., Any]]:
    """How to run `function(*args)` on each event loop that is installed."""
    import anyio

    found: dict[str, Callable[..., Any]] = {"asyncio": lambda f, *args: anyio.run(f, *args)}
    try:
        import uvloop  # noqa: F401

        found["uvloop"] = lambda f, *args: anyio.run(f, *args, backend_options={"use_uvloop": True})
    except ImportError:
        print("uvloop is not installed")
    try:
        import trio  # noqa: F401

        found["trio"] = lambda f, *args: anyio.run(f, *args, backend="trio")
    except ImportError:
        print("trio is not installed")
    return found


async def interleave(sides: dict[str, Side], repetitions: int) -> dict[str, list[float]]:
    """What each side measured, in the order of the repetitions; one more, to warm up, is not kept."""
    seen: dict[str, list[float]] = {name: [] for name in sides}
    for n in range(-1, repetitions):
        names = list(sides) if n % 2 else list(reversed(sides))
        for name in names:
            gc.collect()
            value = await sides[name]()
            if n >= 0:
                seen[name].append(value)
    return seen


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the pairs' ratios."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


class Report:
    """A table that is printed while it grows, and kept as JSON."""

    def __init__(self, title: str, columns: dict[str, str], where: Path | None) -> None:
        self.title, self.columns, self.where = title, columns, where
        self.rows: list[dict[str, Any]] = []
        print(f"{title}\n{machine()}\n")
        print("  ".join(f"{name:>{self._width(name)}}" for name in columns), flush=True)

    def _width(self, name: str) -> int:
        return max(len(name), int("".join(filter(str.isdigit, self.columns[name].split(".")[0])) or 9))

    def add(self, **row: Any) -> None:
        """One row; the columns' formats say how it is printed."""
        self.rows.append(row)
        cells = []
        for name, form in self.columns.items():
            value = row.get(name)
            cells.append(f"{'' if value is None else format(value, form):>{self._width(name)}}")
        print("  ".join(cells), flush=True)

    def save(self) -> None:
        print()
        if self.where is not None:
            self.where.parent.mkdir(parents=True, exist_ok=True)
            content = {"title": self.title, "machine": machine(), "rows": self.rows}
            self.where.write_text(json.dumps(content, indent=1) + "\n")
