"""What users see of one job at one moment: frozen, and in terms of JSON."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fifo_background._core.special import Progress
from fifo_background._core.state import JobState

__all__ = ("Blocker", "JobRecord", "LaneName", "rounded")


@dataclass(frozen=True, slots=True)
class Blocker:
    """What keeps a job from starting."""

    kind: str
    """"job" (the task before it runs), "request" (one that holds its position has not responded), "paused",
    "failed" (the lane has stopped), "slot" (`max_lanes_running` lanes run), or with an engine "retry" (the
    head has failed, and waits to be run again) or "worker" (none is alive)."""
    id: str | None
    """The id of the job, of "job", "failed" and "retry"."""
    name: str | None
    """The name of the job, or the request's method and path."""
    seconds: float
    """For how long it has blocked the job."""

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "id": self.id, "name": self.name, "for": rounded(self.seconds)}


@dataclass(frozen=True, slots=True)
class LaneName:
    """A lane, as the status API names it."""

    id: str
    """Opaque; for `SerialExecutor.find_lane`."""
    name: str
    """The key as text."""

    def to_dict(self) -> dict[str, str]:
        return {"id": self.id, "name": self.name}


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job at one moment: one that waits or runs, or one that has ended and is in the history."""

    id: str
    number: int
    name: str
    """The qualified name of the task's function."""
    lane: Hashable
    """The key of its lane."""
    lane_name: LaneName
    state: JobState
    added_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    waited: float | None
    """Seconds from its adding to its start; to this moment, if it has not started."""
    ran: float | None
    """Seconds from its start to its end, or to this moment."""
    ahead: int | None
    """How many jobs of its lane run or stand before it; None where that is not known, or it has started."""
    ahead_more: bool
    """Whether there are more: they are counted up to 1,000."""
    blocked_by: Blocker | None
    progress: Progress | None
    attempts: int
    """How often it was started."""
    request: str | None
    """The method and path of the request that added it."""
    retry_of: str | None
    """The id of the failed job that it runs again (`retry_head`)."""
    result: Any
    """In terms of JSON; only with `results=True`."""
    result_omitted: str | None
    """Why there is no result, where there could be one."""
    error: tuple[str, str] | None
    """The type and the message of what it raised."""

    def done(self) -> bool:
        """Whether it has ended, in any way."""
        return self.state.ended

    def to_dict(self, *, results: bool = False, errors: bool = False) -> dict[str, Any]:
        """As JSON. With `results` its result, with `errors` the message of its error: both may be private."""
        error = None
        if self.error is not None:
            error = {"type": self.error[0], "message": self.error[1] if errors else None}
        return {
            "id": self.id,
            "number": self.number,
            "function": self.name,
            "lane": self.lane_name.to_dict(),
            "state": self.state.value,
            "done": self.done(),
            "added_at": _iso(self.added_at),
            "started_at": _iso(self.started_at),
            "ended_at": _iso(self.ended_at),
            "waited": rounded(self.waited),
            "ran": rounded(self.ran),
            "ahead": self.ahead,
            "ahead_more": self.ahead_more,
            "blocked_by": None if self.blocked_by is None else self.blocked_by.to_dict(),
            "progress": None if self.progress is None else self.progress._asdict(),
            "attempts": self.attempts,
            "request": self.request,
            "retry_of": self.retry_of,
            "result": self.result if results else None,
            "result_omitted": self.result_omitted if results else None,
            "error": error,
        }


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(max(seconds, 0.0), 3)
