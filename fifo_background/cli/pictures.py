"""What `fifo-background status` prints of a queue."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fifo_background._core.state import JobState

__all__ = ("print_queue",)


def print_queue(console: Console, name: str, statistics: dict[str, Any], lanes: dict[str, Any]) -> None:
    """Its states, its lanes and its workers, as the SQL functions of the engine have them."""
    counts = statistics["states"]
    shown = [(state.value, counts[state.value]) for state in JobState if state.value in counts]
    states = ", ".join(f"{count:,} {state}" for state, count in shown) or "no tasks"
    console.print(Text.assemble(("Queue ", "bold"), (name, "bold"), f": {states}"))
    if lanes["lanes"]:
        console.print(_lanes(lanes))
    console.print(_workers(statistics["workers"]) if statistics["workers"] else "No worker is alive.")


def _lanes(lanes: dict[str, Any]) -> Table:
    shown, total = lanes["lanes"], lanes["total"]
    more = f" ({len(shown):,} of {total:,})" if total > len(shown) else ""
    table = Table("lane", "state", "head", "for", "waiting", title=f"Lanes{more}", title_justify="left")
    table.columns[-1].justify = table.columns[-2].justify = "right"
    for lane in shown:
        state, head, seconds = _head(lane)
        style = {"stopped": "red", "paused": "yellow"}.get(state, "")
        table.add_row(
            Text(_lane_name(lane["lane"])),
            Text(state, style),
            Text(head),
            _duration(seconds),
            f"{lane['waiting']:,}",
        )
    return table


def _head(lane: dict[str, Any]) -> tuple[str, str, float | None]:
    """The state of a lane, the task that is at its head, and for how long it has been so."""
    state, running, head = lane["state"], lane["running"], lane["head"]
    if state == "stopped":
        return state, f"{_task(head)}: {head['error_type']}", head["waited"]
    if running is not None:
        return "busy", _task(running), running["ran"]
    if lane["paused_for"] is not None:
        return "paused", "" if head is None else _task(head), lane["paused_for"]
    if head is None:
        return "idle", "", None
    return "waits", _task(head), head["waited"]


def _task(task: dict[str, Any]) -> str:
    attempts = f", run {task['attempts']}" if task["attempts"] > 1 else ""
    return f"{task['function'].partition(':')[2]} {task['id'][:8]}{attempts}"


def _lane_name(text: str) -> str:
    key = json.loads(text)
    return "default" if key is None else key if isinstance(key, str) else text


def _workers(workers: list[dict[str, Any]]) -> Table:
    table = Table("worker", "host", "pid", "running", "heard of", title="Workers", title_justify="left")
    for one in workers:
        table.add_row(
            str(one["id"]),
            Text(one["host"]),
            str(one["pid"]),
            f"{one['running']} of {one['concurrency']}",
            f"{_duration(one['heard'])} ago",
        )
    return table


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.1f} s"
