"""The JSON of the API as models, for OpenAPI. They work with both versions of pydantic that FastAPI takes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

__all__ = ("JobPage", "JobStatus", "LanePage", "LaneStatus", "TaskSummary")

State = Literal[
    "pending", "queued", "running", "succeeded", "failed", "skipped", "cancelled", "superseded", "dropped"
]


class LaneName(BaseModel):
    """A lane: its opaque id, and its key as text."""

    id: str
    name: str


class JobBlocker(BaseModel):
    """What keeps a job from starting, and for how many seconds it has."""

    kind: Literal["job", "request", "paused", "failed", "slot", "retry", "worker"]
    id: str | None
    name: str | None
    seconds: float = Field(alias="for")


class JobProgress(BaseModel):
    """How far a running job says it is."""

    done: float
    total: float | None
    note: str | None


class JobError(BaseModel):
    """What a job raised. The message is null for clients that may not see it."""

    type: str
    message: str | None


class JobStatus(BaseModel):
    """One job. Times are ISO 8601 in UTC, durations are seconds."""

    id: str
    number: int
    function: str
    lane: LaneName
    state: State
    done: bool
    added_at: str
    started_at: str | None
    ended_at: str | None
    waited: float | None
    ran: float | None
    ahead: int | None
    ahead_more: bool
    blocked_by: JobBlocker | None
    progress: JobProgress | None
    attempts: int
    request: str | None
    retry_of: str | None
    result: Any
    result_omitted: str | None
    error: JobError | None


class JobPage(BaseModel):
    """Jobs, newest first, and the cursor of the next page."""

    items: list[JobStatus]
    next: str | None


class WaitingRun(BaseModel):
    """Jobs of one function that wait one behind the other, by their places in the queue."""

    first: int = Field(alias="from")
    to: int
    function: str


class RecentJob(BaseModel):
    """How a job of a lane ended."""

    state: State
    ran: float | None


class Percentiles(BaseModel):
    """Of seconds."""

    p50: float
    p95: float


class LaneStatus(BaseModel):
    """One lane: what has run in it, what runs, and what waits."""

    id: str
    name: str
    state: Literal["stopped", "held", "paused", "busy", "idle"]
    running: JobStatus | None
    head: JobStatus | None
    held_by: str | None
    waiting: int
    head_for: float | None
    next: list[WaitingRun]
    more: int
    recent: list[RecentJob]
    ended: int
    failed: int
    waited: Percentiles | None
    ran: Percentiles | None


class LanePage(BaseModel):
    """The lanes that need a look most, and how many there are."""

    items: list[LaneStatus]
    total: int


class OldestJob(BaseModel):
    """The job that has waited longest at the head of its lane, in seconds."""

    lane: LaneName
    id: str
    seconds: float = Field(alias="for")


class TaskSummary(BaseModel):
    """The figures of one executor."""

    running: int
    max_running: int
    waiting: int
    added: int
    succeeded: int
    failed: int
    skipped: int
    cancelled: int
    superseded: int
    dropped: int
    oldest: OldestJob | None
    state: Literal["open", "closing", "closed"]
    operate: bool
    history: int | None
