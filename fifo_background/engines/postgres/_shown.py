"""What `fifo_background.status` needs of an executor, of this engine's."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from fifo_background._core.job_record import JobRecord
from fifo_background._core.lane_picture import LaneList, LaneRecord

if TYPE_CHECKING:
    from fifo_background.engines.postgres._executor import StoredExecutor, StoredLane
    from fifo_background.engines.postgres._jobs import StoredJob

__all__ = ("ShownStored",)


class ShownStored:
    """A `StoredExecutor`. Its jobs are records: they are asked for again where they may have changed."""

    def __init__(self, executor: StoredExecutor) -> None:
        self._executor = executor
        self.job: Callable[..., Coroutine[Any, Any, JobRecord | None]] = executor.job
        self.jobs: Callable[..., Coroutine[Any, Any, list[JobRecord]]] = executor.jobs
        self.lanes: Callable[..., Coroutine[Any, Any, LaneList]] = executor.lanes
        self.counts: Callable[..., Coroutine[Any, Any, dict[str, Any]]] = executor.counts
        self.changed: Callable[..., Coroutine[Any, Any, int]] = executor.changed
        self.last_end: Callable[..., Coroutine[Any, Any, tuple[str, int]]] = executor.last_end
        self.ended: Callable[..., Coroutine[Any, Any, tuple[list[JobRecord], int] | None]] = executor.ended

    @property
    def is_open(self) -> bool:
        return not self._executor._session.changes.is_over

    async def wait_for(self, job: Any) -> None:
        await self._executor.handle(job.id).wait()

    async def now(self, job: JobRecord) -> JobRecord:
        return await self._executor.job(job.id) or job  # it may be pruned meanwhile

    async def cancel(self, job: Any) -> bool:
        return await self._executor.handle(job.id).cancel()

    async def find_lane(self, id: str) -> ShownStoredLane | None:
        lane = self._executor.find_lane(id)
        return None if lane is None else ShownStoredLane(lane)


class ShownStoredLane:
    """A `StoredLane`, whose operations look at the head and act in one statement."""

    def __init__(self, lane: StoredLane) -> None:
        self._lane = lane
        self.pause: Callable[..., Coroutine[Any, Any, object]] = lane.pause
        self.resume: Callable[..., Coroutine[Any, Any, object]] = lane.resume
        self.skip_head: Callable[..., Coroutine[Any, Any, object]] = lane.skip_head
        self.clear: Callable[..., Coroutine[Any, Any, object]] = lane.clear

    async def record(self) -> LaneRecord:
        return await self._lane.picture()

    async def head_id(self) -> str | None:
        head = await self._lane.peek()
        return None if head is None else head.id

    async def retry_head(self, head: str | None = None) -> StoredJob[Any] | None:
        return await self._lane._retry(head)
