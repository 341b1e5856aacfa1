"""Handles to stored tasks: they ask the database, so what they are asked for is awaited."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Generator
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from fifo_background._core.job_record import Blocker, JobRecord, LaneName
from fifo_background._core.lane_picture import LaneRecord, Recent, Run
from fifo_background._core.names import text_of_key
from fifo_background._core.plain import as_plain
from fifo_background._core.special import Progress
from fifo_background._core.state import JobState
from fifo_background.engines.postgres._errors import TaskFailed
from fifo_background.engines.postgres._stored import Fate
from fifo_background.exceptions import JobNoResult, LaneStopped

if TYPE_CHECKING:
    from fifo_background.engines.postgres._session import Session

T = TypeVar("T")

__all__ = ("StoredJob", "lane_of", "lane_of_id", "lane_record_of", "record_of")


class StoredJob(Generic[T]):
    """The handle to a task that is in the database, or will be: `id` finds it again, in any process.

    `await job` gives the function's result, or raises `TaskFailed` or `JobNoResult`. `await job.wait()` waits
    and returns the `JobState`. `await job.record()` tells all that is known of it. `await job.cancel()` says
    whether it was in time, or, of a task that runs, whether it was asked to end.
    """

    __slots__ = ("_fate", "_session", "id", "name")

    def __init__(self, session: Session, id: str, name: str, fate: Fate | None = None) -> None:
        self._session = session
        self._fate = fate
        self.id: str = id
        self.name: str = name

    def __await__(self) -> Generator[Any, None, T]:
        return self._result().__await__()

    async def _result(self) -> T:
        while True:
            await self.wait()
            if self._is_cancelled_unstored:
                raise JobNoResult(self.name, JobState.CANCELLED.value)
            row = await self._row()
            if JobState(row["state"]).ended:  # else somebody has had it run again meanwhile
                break
        if row["state"] == "failed":
            raise TaskFailed(self.name, row["error_type"] or "an error", row["error"] or "")
        if row["state"] != "succeeded":
            raise JobNoResult(self.name, row["state"])
        if row["result"] is None:
            raise JobNoResult(self.name, f"not stored: {row['result_omitted']}")
        result: T = self._session.codec.read(row["result"])
        return result

    async def wait(self) -> JobState:
        """Wait for its end, however it ends.

        Raises `WouldDeadlock` in a task of the same lane, and for a task that is not stored yet.
        """
        if self._is_cancelled_unstored:
            return JobState.CANCELLED
        return await self._session.waits.for_end(self.id, self.name)

    async def _wait_in_request(self) -> JobState:
        """Wait for its end. Raises `LaneStopped` where that is for a person to decide, as in memory."""
        while not self._is_cancelled_unstored:
            state = await self._session.waits.for_end_or_stop(self.id, self.name)
            if state is not None:
                return state
            record = await self.record()
            blocker = record.blocked_by
            if blocker is not None and blocker.kind == "failed":
                raise LaneStopped(record.lane, blocker.name or "a task")
        return JobState.CANCELLED

    async def record(self) -> JobRecord:
        """Where it is now. Raises LookupError where it was never stored, or was pruned."""
        return record_of(self._session, await self._row())

    async def cancel(self) -> bool:
        """Whether it never runs or, where it runs, whether its worker was asked to cancel it."""
        if self._fate is not None and self._fate.cancel():
            return True
        return await self._session.database.cancel(self.id) in ("queued", "running")

    @property
    def _is_cancelled_unstored(self) -> bool:
        return self._fate is not None and self._fate.is_cancelled

    async def _row(self) -> dict[str, Any]:
        row = await self._session.database.task(self.id)
        if row is None:
            raise LookupError(
                f"{self.name} {self.id} is not in the database: it was not stored, or was pruned"
            )
        return row

    def _by_await(self) -> NoReturn:
        raise TypeError(
            f"{self.name} is in the database: write `await job`, `await job.wait()` or "
            "`(await job.record()).state` instead"
        )

    @property
    def state(self) -> JobState:
        self._by_await()

    def done(self) -> bool:
        self._by_await()

    def result(self) -> Any:
        self._by_await()

    def exception(self) -> BaseException | None:
        self._by_await()

    def add_done_callback(self, callback: object) -> None:
        self._by_await()

    def __repr__(self) -> str:
        return f"<StoredJob {self.name} {self.id}>"


def record_of(session: Session, row: dict[str, Any]) -> JobRecord:
    """A row as users see it. `row`: as the SQL function `fifo_background_task` gives it."""
    key, lane_name = lane_of(session, row["lane"])
    progress = row["progress"]
    blocker = row.get("blocked_by")
    result, omitted = None, row["result_omitted"]
    if row["result"] is not None:
        result, omitted = plain_result(session, row["result"])
    return JobRecord(
        id=row["id"],
        number=row["number"],
        name=row["function"].partition(":")[2],
        lane=key,
        lane_name=lane_name,
        state=JobState(row["state"]),
        added_at=datetime.fromtimestamp(row["added_at"], timezone.utc),
        started_at=_moment(row["started_at"]),
        ended_at=_moment(row["ended_at"]),
        waited=row["waited"],
        ran=row["ran"],
        ahead=row.get("ahead"),
        ahead_more=bool(row.get("ahead_more")),
        blocked_by=None
        if blocker is None
        else Blocker(blocker["kind"], blocker["id"], blocker["name"], blocker["seconds"]),
        progress=None if progress is None else Progress(**progress),
        request=row["request"],
        attempts=row["attempts"],
        retry_of=None,
        result=result,
        result_omitted=omitted,
        error=None if row["error_type"] is None else (row["error_type"], row["error"] or ""),
    )


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)


def lane_of(session: Session, lane: str) -> tuple[Any, LaneName]:
    """The key of a lane, and its name; its id needs no table. `lane`: the key as text."""
    try:
        key = session.codec.read(lane)
    except Exception:  # of an Enum that this app does not have
        key = lane
    return key, LaneName(urlsafe_b64encode(lane.encode()).decode().rstrip("="), text_of_key(key))


def lane_of_id(session: Session, id: str) -> tuple[Any, str] | None:
    """The key, and the key as text. None for what is no id of a lane."""
    try:
        lane = urlsafe_b64decode(id + "=" * (-len(id) % 4)).decode()
        key = session.codec.read(lane)
        return (key, lane) if session.engine.lane_text(key) == lane else None
    except Exception:  # whatever is in it
        return None


def lane_record_of(session: Session, found: dict[str, Any]) -> LaneRecord:
    """A lane as users see it. `found`: as the SQL function `fifo_background_lane` gives it."""
    key, lane_name = lane_of(session, found["lane"])
    running, head = (
        None if found[one] is None else record_of(session, found[one]) for one in ("running", "head")
    )
    return LaneRecord(
        key=key,
        lane_name=lane_name,
        state=found["state"],
        running=running,
        head=head,
        head_for=found["head_for"],
        held_by=None,
        waiting=found["waiting"],
        next=tuple(Run(*run) for run in found["next"]),
        more=found["more"],
        recent=tuple(Recent(JobState(state), ran) for state, ran in found["recent"]),
        ended=found["ended"],
        failed=found["failed"],
        waited=_percentiles(found["waited"]),
        ran=_percentiles(found["ran"]),
    )


def _percentiles(found: list[float | None] | None) -> tuple[float, float] | None:
    """Null, or nulls, where none of the tasks has run."""
    if found is None or found[0] is None or found[1] is None:
        return None
    return found[0], found[1]


def plain_result(session: Session, text: str) -> tuple[Any, str | None]:
    """A stored result in terms of JSON, and why there is none."""
    try:
        plain, _, omitted = as_plain(session.codec.read(text), 10 * len(text) + 1000)
    except Exception as error:  # of an Enum that this app does not have
        return None, f"it cannot be read here: {error}"
    return plain, omitted
