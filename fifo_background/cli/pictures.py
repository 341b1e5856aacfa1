"""What `fifo-background status` prints of a queue."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fifo_background import JobRecord, JobState, LaneList, LaneRecord

__all__ = ("print_queue",)


def print_queue(console: Console, name: str, statistics: dict[str, Any], lanes: LaneList) -> None:
    """Its states, its lanes and its workers."""
    counts = statistics["states"]
    shown = [(state.value, counts[state.value]) for state in JobState if counts.get(state.value)]
    states = ", ".join(f"{count:,} {state}" for state, count in shown) or "no tasks"
    console.print(Text.assemble(("Queue ", "bold"), (name, "bold"), f": {states}"))
    if lanes.items:
        console.print(_lanes(lanes))
    workers = statistics["workers"]
    console.print(_workers(workers) if workers else "No worker is alive.")


def _lanes(lanes: LaneList) -> Table:
    more = f" ({len(lanes.items):,} of {lanes.total:,})" if lanes.total > len(lanes.items) else ""
    table = Table("lane", "state", "head", "for", "waiting", title=f"Lanes{more}", title_justify="left")
    table.columns[-1].justify = table.columns[-2].justify = "right"
    for lane in lanes.items:
        head, seconds = _head(lane)
        state = Text(lane.state, {"stopped": "red", "paused": "yellow"}.get(lane.state, ""))
        table.add_row(Text(lane.lane_name.name), state, Text(head), _duration(seconds), f"{lane.waiting:,}")
    return table


def _head(lane: LaneRecord) -> tuple[str, float | None]:
    """What runs in a lane, or is at its head, and for how long."""
    if lane.running is not None:
        return _job(lane.running), lane.running.ran
    if lane.head is None:
        return "", None
    error = f": {lane.head.error[0]}" if lane.head.error is not None else ""
    return f"{_job(lane.head)}{error}", lane.head_for


def _job(job: JobRecord) -> str:
    attempts = f", run {job.attempts}" if job.attempts > 1 else ""
    return f"{job.name} {job.id[:8]}{attempts}"


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
