"""What the status needs of an executor: awaited, as an engine asks a database for it.

An engine's executor offers it as `shown`. `InMemory` is that of a `SerialExecutor`, which answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any, Protocol, cast

from fifo_background import (
    ExecutorClosed,
    ExecutorLane,
    Job,
    JobRecord,
    JobState,
    LaneList,
    LaneRecord,
    SerialExecutor,
)

__all__ = ("InMemory", "ShownExecutor", "ShownJob", "ShownLane", "shown")


class ShownJob(Protocol):
    """A job as it was when it was asked for, or a `Job`, which is as it is now."""

    @property
    def id(self) -> str: ...

    @property
    def state(self) -> JobState: ...

    def done(self) -> bool: ...

    def to_dict(self, *, results: bool = ..., errors: bool = ...) -> dict[str, Any]: ...


class ShownLane(Protocol):
    """A lane to operate. `head`: the id of the job that is to be the head; otherwise nothing is done."""

    async def record(self) -> LaneRecord: ...

    async def head_id(self) -> str | None:
        """The id of the job that is next; of a stopped lane, of the failed one."""
        ...

    async def pause(self) -> object: ...

    async def resume(self) -> object: ...

    async def skip_head(self, head: str | None = None) -> object:
        """None if nothing was skipped."""
        ...

    async def retry_head(self, head: str | None = None) -> object:
        """None if nothing is run again."""
        ...

    async def clear(self) -> object: ...


class ShownExecutor(Protocol):
    """Jobs and lanes, wherever they are."""

    @property
    def is_open(self) -> bool: ...

    async def job(self, id: str) -> ShownJob | None: ...

    async def wait_for(self, job: ShownJob) -> object:
        """Wait for the end of one that has not ended."""
        ...

    async def now(self, job: ShownJob) -> ShownJob:
        """The job as it is now."""
        ...

    async def cancel(self, job: ShownJob) -> bool:
        """Of one that has not ended: whether it ends without being run or, if it runs, is to be cancelled."""
        ...

    async def jobs(
        self,
        *,
        states: Collection[JobState] | None,
        lane: str | None,
        function: str | None,
        search: str | None,
        limit: int,
        before: int | None,
    ) -> Sequence[JobRecord]: ...

    async def lanes(self, limit: int) -> LaneList: ...

    async def find_lane(self, id: str) -> ShownLane | None: ...

    async def counts(self) -> dict[str, Any]: ...

    async def changed(self, version: int) -> int:
        """Wait until something has changed since. Raises `ExecutorClosed`."""
        ...

    async def last_end(self) -> tuple[str, int]:
        """The epoch, which tells numbers of ends from others', and the number of the last end."""
        ...

    async def ended(self, after: int, limit: int) -> tuple[list[JobRecord], int] | None:
        """What has ended behind an end, and the last one's number. None if some of it is forgotten."""
        ...


def shown(executor: Any) -> ShownExecutor:
    """What `executor_of` gives, as the status needs it."""
    if isinstance(executor, SerialExecutor):
        return cast(ShownExecutor, InMemory(executor))  # some of its methods are the executor's own
    found: ShownExecutor = executor.shown
    return found


class InMemory:
    """A `SerialExecutor`."""

    def __init__(self, executor: SerialExecutor) -> None:
        self._executor = executor
        self.jobs: Callable[..., Coroutine[Any, Any, list[JobRecord]]] = executor.jobs
        self.lanes: Callable[..., Coroutine[Any, Any, LaneList]] = executor.lanes
        self.changed: Callable[..., Coroutine[Any, Any, int]] = executor.changed

    @property
    def is_open(self) -> bool:
        return self._executor.is_open

    async def job(self, id: str) -> Job[Any] | JobRecord | None:
        return self._executor.job(id)

    async def wait_for(self, job: Any) -> None:
        await job.wait()  # a `Job`, as it has not ended

    async def now(self, job: ShownJob) -> ShownJob:
        return job

    async def cancel(self, job: Any) -> bool:
        return bool(job.cancel())

    async def find_lane(self, id: str) -> LaneInMemory | None:
        lane = self._executor.find_lane(id)
        return None if lane is None else LaneInMemory(self._executor, lane)

    async def counts(self) -> dict[str, Any]:
        return self._executor.counts()

    async def last_end(self) -> tuple[str, int]:
        return self._executor.epoch, self._executor.ended_count

    async def ended(self, after: int, limit: int) -> tuple[list[JobRecord], int] | None:
        return self._executor.ended(after, limit)


class LaneInMemory:
    """A lane of a `SerialExecutor`. Nothing happens between its looks and its acts."""

    def __init__(self, executor: SerialExecutor, lane: ExecutorLane) -> None:
        self._executor = executor
        self._lane = lane

    async def record(self) -> LaneRecord:
        return self._lane.picture

    async def head_id(self) -> str | None:
        head = self._lane.peek()
        return None if head is None else head.id

    async def pause(self) -> None:
        self._lane.pause()

    async def resume(self) -> None:
        self._lane.resume()

    async def skip_head(self, head: str | None = None) -> Job[Any] | None:
        named = self._lane.peek()
        if named is None or head not in (None, named.id):
            return None
        return self._lane.skip_head(None if head is None else named)

    async def retry_head(self, head: str | None = None) -> Job[Any] | None:
        if head not in (None, await self.head_id()):
            return None
        try:
            return self._lane.retry_head()
        except ExecutorClosed:
            raise
        except RuntimeError:  # it has not stopped
            return None

    async def clear(self) -> None:
        self._lane.clear()
