"""Writes docs/benchmarks.md and its plots from benchmarks/results.

python benchmarks/page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DOCS = HERE.parent / "docs"
PLOTS = DOCS / "benchmarks"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")

COLOURS = {
    "Starlette": "#9aa5b1",
    "plain": "#9aa5b1",
    "ours": "#1f77b4",
    "ordered": "#1f77b4",
    "floor": "#86b8dc",
    "empty": "#c7dcef",
}

PAGE = """# Benchmarks

**These numbers do not show your tasks.** A task that does nothing makes the cost of its management visible; a task that
takes a millisecond hides it. The numbers come from a small, noisy machine, so only ratios count. The compared sides ran
interleaved in one process (or, with wrk, in turn), and each ratio is the median over the repetitions. wrk shares the
machine with the servers. "Faster" is Starlette's time divided by the side's time, or the side's requests per second
divided by plain FastAPI's.

"Ours" has every guarantee on: contexts, `Job`s, attached waiting and the middleware. **The floor**
([benchmarks/floor.py](../benchmarks/floor.py)) shows what Python allows: it is the barest code that runs this one case
in order, without lanes, limits, cancels, failures, logs, or a shutdown. No code that keeps the order is faster. If a
table says otherwise, that is noise: from run to run ratios differ by up to a sixth. Until November 2026 there was a
second floor, with every check that the guarantees of that time needed, written without function calls. It reached 3.27
(sync, asyncio), 3.73 (sync, uvloop), 0.48 (async, asyncio) and 0.42 (async, uvloop) times Starlette's speed, and 1.56
(sync) and 0.84 (async) times FastAPI's in whole requests. **Empty**, with whole requests, is plain FastAPI behind a
middleware that does nothing.

{machine}.

Measured on 2026-11-26. Three parts are of earlier versions, in which a request cost less: growth, whole HTTP requests,
and the requests with one task on Python 3.12.

`python -m nox -s benchmarks` measures everything again and rewrites this page (half an hour; it needs wrk and valgrind).
`python -m nox -s benchmarks_check`, which `.ci/run` runs, fails when a ratio is worse than half of the one here.

## In short

{short}

## A request with one task

An ASGI app with Starlette's `Response`, called in process, with {in_flight} requests in flight. Times are microseconds
per request.

![Microseconds per request](benchmarks/per_task.svg)

{per_task}

With a sync task ours is faster than {slower}. With an async task a request costs {price[0]:.0f} microseconds more than
Starlette's, of which the floor needs {price[1]:.0f}.

A request that comes alone pays for the queue and gains nothing. When requests come together, one trip to a worker
thread runs the sync tasks of all of them. Starlette makes one trip for each task.

### On other versions of Python

"Faster" with 100 requests in flight; there is no aim for these. Before Python 3.12 there are no eager tasks.

{pythons}

## Whole HTTP requests

uvicorn with httptools on uvloop, FastAPI, wrk. "without" is an endpoint without tasks.

![Whole requests](benchmarks/whole_requests.svg)

{whole_requests}

## `def` endpoints while sync tasks run

100 requests have each added a sync task of one second. Plain `BackgroundTasks` runs these tasks in the 40 threads that
`def` endpoints also need, so no request is answered. Ours has threads of its own.

{endpoints}

## An endpoint while 1,000 tasks wait

{waiting}

## Waiting for a job

Microseconds to submit a task to another lane and wait for its result, while other requests that hold a position are in
flight. The cost does not grow with the number of those requests.

{waits}

## Memory

Bytes per waiting task, and per job that has ended and that the history keeps. A request includes the response, the
request's asyncio task and its wait.

{memory}

## Growth

Time per task, and bytes left per task in the end, as the queue and the number of lanes grow. The ratios change by a
tenth from run to run. The growth is the work of Python's garbage collector, which scans the waiting tasks again and
again while more tasks are added. The column "uncollected" has the ratio while the collector is off.

![Growth](benchmarks/growth.svg)

{growth}

## From the end of the response to the start of the task

Measured while nothing else happens. With ours, an async task runs in an event loop task of its own, so a cancelled
request does not cancel it.

{latency}

## Tasks in PostgreSQL

[The engine for PostgreSQL](postgres.md) beside procrastinate's own worker, a bare INSERT, and the queue in memory, by
`benchmarks/postgres.py`. The HTTP server, its worker, PostgreSQL and wrk share the machine. Each commit is on the disk.
Each figure is the median of the repetitions; "ratio" is to the bare INSERT.

{postgres}

## Bytecodes

Counted by `sys.monitoring`, 100 requests in flight, asyncio. `benchmarks/instructions.py` also counts the
processor's instructions if valgrind is installed.

{instructions}
"""


def load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return content


def number(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return (
            f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
        )
    return f"{value:,}" if isinstance(value, int) else str(value)


def table(name: str, rows: list[dict[str, Any]] | None = None) -> str:
    rows = load(name)["rows"] if rows is None else rows
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(number(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def pythons() -> str:
    """Ours on every version of Python, with 100 requests in flight."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for version in PYTHONS:
        name = "per_task" if version == "3.12" else f"per_task-{version}"
        for row in load(name)["rows"]:
            if row["side"] == "ours" and row["in flight"] == 100:
                key = row["loop"], row["task"]
                rows.setdefault(key, {"loop": key[0], "task": key[1]})[version] = row["faster"]
    return table("", list(rows.values()))


def find(name: str, column: str, **where: Any) -> float:
    (found,) = [
        row[column]
        for row in load(name)["rows"]
        if all(row.get(key) == value for key, value in where.items())
    ]
    return float(found)


def short() -> str:
    """The aims of the project, what was reached, and what the floor reaches."""
    lines = ["| | ours | aim | the floor |", "| --- | --- | --- | --- |"]
    for kind, aims in (("sync", ("", 3.0)), ("async", ("", 0.45))):
        for loop, aim in zip(("asyncio", "uvloop"), aims, strict=True):
            values = [
                find("per_task", "faster", loop=loop, task=kind, side=side, **{"in flight": 100})
                for side in ("ours", "floor")
            ]
            lines.append(
                f"| {kind} task, {loop}, 100 in flight: faster than Starlette by | "
                f"{values[0]:.2f} | {aim} | {values[1]:.2f} |"
            )
    for kind, aim in (("sync", 1.6), ("async", 0.83)):
        values = [
            find("whole_requests", "faster", task=kind, side=side, connections=64)
            for side in ("ours", "floor")
        ]
        lines.append(
            f"| whole HTTP request, {kind} task: faster than FastAPI by | "
            f"{values[0]:.2f} | {aim} | {values[1]:.2f} |"
        )
    for column, what in (("ratio", ""), ("uncollected", ", garbage collector off")):
        worst = max(row[column] for row in load("growth")["rows"])
        lines.append(
            f"| time per task, 100,000 against 1,000, at worst{what} | {worst:.2f} | 1.5 at most | |"
        )
    size = find("memory", "bytes per task", what="submitted", tasks=100_000)
    lines.append(f"| bytes per waiting task, of 100,000 | {size:.0f} | 1,024 at most | |")
    return "\n".join(lines)


def price() -> list[float]:
    """Microseconds more than Starlette's, of a request with an async task."""
    of = {"loop": "asyncio", "task": "async", "in flight": 100}
    bare = find("per_task", "us", side="Starlette", **of)
    return [find("per_task", "us", side=side, **of) - bare for side in ("ours", "floor")]


def in_flight() -> str:
    """The numbers of requests at once that were measured."""
    *others, most = sorted({row["in flight"] for row in load("per_task")["rows"]})
    return f"{', '.join(map(str, others))} and {most:,}" if others else str(most)


def slower() -> str:
    """What ours is compared with: others that keep an order only if they were measured."""
    measured = {row["side"] for row in load("per_task")["rows"]}
    plain = "plain `BackgroundTasks`"
    others = {"queue worker", "aiojobs", "taskflow"} & measured
    return f"everything else that keeps an order, and than {plain}" if others else plain


def bars(rows: list[dict[str, Any]], groups: list[str], value: str, of: Any, path: str, label: str) -> None:
    """A group of horizontal bars for each of `groups`, one bar a side."""
    figure, axes = plt.subplots(1, len(groups), figsize=(9, 3.2), sharey=True, layout="constrained")
    for axis, group in zip(axes, groups, strict=True):
        mine = [row for row in rows if of(row) == group][::-1]
        sides = [row["side"] for row in mine]
        drawn = axis.barh(
            sides, [row[value] for row in mine], color=[COLOURS.get(side, "#d9dee3") for side in sides]
        )
        axis.bar_label(drawn, fmt="%.1f" if value == "us" else "%.0f", padding=2, fontsize=8)
        axis.set_title(group, fontsize=10)
        axis.margins(x=0.2)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    figure.supxlabel(label, fontsize=9)
    _save(figure, path)


def _save(figure: Any, path: str) -> None:
    PLOTS.mkdir(exist_ok=True)
    figure.savefig(PLOTS / path, metadata={"Date": None})
    plt.close(figure)


def plots() -> None:
    plt.rcParams["svg.hashsalt"] = "fifo-background"  # the same numbers give the same file
    rows = [row for row in load("per_task")["rows"] if row["in flight"] == 100 and row["loop"] != "trio"]
    bars(
        rows,
        ["asyncio, sync", "asyncio, async", "uvloop, sync", "uvloop, async"],
        "us",
        lambda row: f"{row['loop']}, {row['task']}",
        "per_task.svg",
        "microseconds per request with one task, 100 in flight: less is better",
    )
    rows = [row for row in load("whole_requests")["rows"] if row["connections"] == 64]
    bars(
        rows,
        ["sync", "async"],
        "per second",
        lambda row: row["task"],
        "whole_requests.svg",
        "HTTP requests per second, 64 connections: more is better",
    )
    figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
    grown = load("growth")["rows"]
    for shape, kind in dict.fromkeys((row["shape"], row["task"]) for row in grown):
        mine = [row for row in grown if (row["shape"], row["task"]) == (shape, kind)]
        axis.plot(
            [row["tasks"] for row in mine],
            [row["ratio"] for row in mine],
            marker="o",
            label=f"{shape.replace('_', ' ')}, {kind}",
        )
    axis.axhline(1.5, color="#9aa5b1", linestyle="--", linewidth=1)
    axis.set(xscale="log", xlabel="tasks", ylabel="time per task / that of 1,000", ylim=(0, 2))
    axis.legend(fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, "growth.svg")


def main() -> None:
    plots()
    names = ("whole_requests", "endpoints", "waiting", "waits", "memory", "growth", "latency")
    page = PAGE.format(
        machine=load("per_task")["machine"],
        short=short(),
        price=price(),
        in_flight=in_flight(),
        slower=slower(),
        per_task=table("per_task"),
        pythons=pythons(),
        **{name: table(name) for name in (*names, "postgres", "instructions")},
    )
    (DOCS / "benchmarks.md").write_text(page)


if __name__ == "__main__":
    main()
