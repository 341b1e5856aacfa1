"""What `executor_of` returns with this engine: like the executor in memory, with awaited operations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Hashable
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar, overload

from starlette.background import BackgroundTask

from fifo_background._core.job_record import JobRecord
from fifo_background._core.lane_picture import LaneList, LaneRecord
from fifo_background._core.state import JobState
from fifo_background._entries import Entry
from fifo_background._run.call import make_task, not_callable
from fifo_background._settings import NOT_GIVEN, PLAIN, AfterFailure, NotGiven, Retry, check_key
from fifo_background.engines.postgres._jobs import StoredJob, lane_of_id, lane_record_of, record_of
from fifo_background.engines.postgres._measured import Measured
from fifo_background.engines.postgres._request import groups_of
from fifo_background.engines.postgres._shown import ShownStored
from fifo_background.engines.postgres._stored import clean, lock_of

if TYPE_CHECKING:
    from fifo_background.engines.postgres._session import Session

P = ParamSpec("P")
T = TypeVar("T")

__all__ = ("StoredExecutor", "StoredLane")


class _Submitter:
    """Submits tasks to one lane, with options."""

    __slots__ = ("_entry", "_session")

    def __init__(self, session: Session, entry: Entry) -> None:
        self._session = session
        self._entry = entry

    def options(
        self,
        *,
        timeout: float | NotGiven | None = NOT_GIVEN,
        retry: int | Retry | NotGiven | None = NOT_GIVEN,
    ) -> _Submitter:
        """For tasks with another `timeout` (seconds, None for no limit), or that are run again (`retry`)."""
        changes: dict[str, Any] = {"timeout": timeout, "retry": retry}
        PLAIN.replace(**changes)  # raises for an invalid one
        given = {name: value for name, value in changes.items() if value is not NOT_GIVEN}
        return _Submitter(self._session, Entry(self._entry.key, {**self._entry.changes, **given}))

    @overload
    async def submit(
        self, func: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> StoredJob[T]: ...

    @overload
    async def submit(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> StoredJob[T]: ...

    async def submit(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> StoredJob[Any]:
        """Store a call of `func(*args, **kwargs)` and return its handle once it is safe.

        Raises TypeError for what another process could not call, `QueueFull` and `StoreError`.
        """
        if not callable(func):
            raise not_callable("submit", func)
        session = self._session
        task = make_task("submit", BackgroundTask, func, args, kwargs)
        engine = session.engine
        new = engine.new_task(task, engine.lane_text(self._entry.key), self._entry, engine.settings)
        await session.store(groups_of(engine, [new], None))
        return StoredJob(session, new.id, new.name)

    def submit_nowait(self, func: object, /, *args: object, **kwargs: object) -> NoReturn:
        """Raises TypeError: to store a task takes a moment."""
        raise TypeError("with an engine a task is stored: write `job = await executor.submit(func, ...)`")


class StoredLane(_Submitter):
    """One lane of the queue, over all processes: `executor.lane(key)`. All operations are awaited."""

    __slots__ = ()

    @property
    def key(self) -> Hashable:
        """The key, as it was given."""
        key: Hashable = self._entry.key
        return key

    async def _do(self, operation: str, *values: Any) -> Any:
        engine = self._session.engine
        lock = lock_of(engine.queue, engine.lane_text(self.key))
        return await self._session.database.on_lane(operation, lock, *values)

    async def pause(self) -> None:
        """Start no task of the lane until `resume`, in no process; a running task continues."""
        await self._do("pause")

    async def resume(self) -> bool:
        """Let a paused lane run again. False if it is not paused."""
        return bool(await self._do("resume"))

    async def skip_head(self, head: StoredJob[Any] | str | None = None) -> StoredJob[Any] | None:
        """Leave out the task that is next; of a stopped lane, the failed one. None if nothing waits.

        With `head`, only if that is the one.
        """
        return self._job(await self._do("skip_head", _id_of(head)))

    async def retry_head(self, head: StoredJob[Any] | str | None = None) -> StoredJob[Any]:
        """Run the failed task of a stopped lane again, before all others.

        Raises RuntimeError if the lane has not stopped, or another task than `head` is the failed one.
        """
        job = await self._retry(head)
        if job is None:
            raise RuntimeError(
                "the lane has not stopped, so there is nothing to retry: `retry_head` is for lanes with "
                'after_failure="stop"'
            )
        return job

    async def _retry(self, head: StoredJob[Any] | str | None) -> StoredJob[Any] | None:
        return self._job(await self._do("retry_head", _id_of(head)))

    async def clear(self) -> list[StoredJob[Any]]:
        """Cancel, and return, all tasks that wait in the lane; a stopped lane goes on."""
        return [StoredJob(self._session, id, "a task") for id in await self._do("clear")]

    async def picture(self) -> LaneRecord:
        """The lane at this moment."""
        session = self._session
        lane = session.engine.lane_text(self.key)
        return lane_record_of(session, await session.database.lane(lane))

    async def peek(self) -> StoredJob[Any] | None:
        """The task that is next; of a stopped lane, the failed one. None if nothing waits."""
        return self._job(await self._do("peek"))

    def _job(self, id: str | None) -> StoredJob[Any] | None:
        return None if id is None else StoredJob(self._session, id, "a task")


class StoredExecutor(_Submitter):
    """The tasks of one queue, in all processes."""

    def lane(self, key: Hashable, *, after_failure: AfterFailure | NotGiven = NOT_GIVEN) -> StoredLane:
        """The lane of a key, which must be a value that can be stored; None is the default lane."""
        check_key(key)
        self._session.engine.lane_text(key)  # raises for what cannot be stored
        given = {} if after_failure is NOT_GIVEN else {"after_failure": after_failure}
        return StoredLane(self._session, Entry(key, {**self._entry.changes, **given}))

    async def job(self, id: str) -> JobRecord | None:
        """The task with that id, as it is now; None if the database does not have it."""
        row = await self._session.database.task(clean(id))
        return None if row is None else record_of(self._session, row)

    def handle(self, id: str) -> StoredJob[Any]:
        """A handle to the task with that id, to wait for it or cancel it."""
        return StoredJob(self._session, clean(id), "a task")

    async def jobs(
        self,
        *,
        states: Collection[JobState] | None = None,
        lane: str | None = None,
        function: str | None = None,
        search: str | None = None,
        limit: int = 50,
        before: int | None = None,
    ) -> list[JobRecord]:
        """The newest tasks that match, as the executor in memory has them.

        `function`, `search` and `lane` are looked for among the newest 10,000.
        """
        found = None if lane is None else lane_of_id(self._session, lane)
        if lane is not None and found is None:
            return []
        rows = await self._session.database.tasks(
            None if states is None else [state.value for state in states],
            None if found is None else found[1],
            None if function is None else clean(function),
            None if search is None else clean(search),
            limit,
            before,
        )
        return [record_of(self._session, row) for row in rows]

    async def statistics(self) -> dict[str, Any]:
        """How many tasks are in which state, and the workers that are alive.

        Ended tasks are those since the tables were made. Of waiting ones 100,000 are counted.
        """
        return await self._session.database.statistics()

    async def lanes(self, limit: int = 50) -> LaneList:
        """The lanes that need a person most: stopped, paused, busy and idle ones.

        Idle lanes are those of the last 1,000 ends.
        """
        found = await self._session.database.lanes(limit)
        items = tuple(lane_record_of(self._session, one) for one in found["lanes"])
        oldest = None if found["oldest"] is None else lane_record_of(self._session, found["oldest"])
        return LaneList(items, found["total"], oldest)

    def find_lane(self, id: str) -> StoredLane | None:
        """The lane with that id (`LaneName.id`), whether there is something in it or not."""
        found = lane_of_id(self._session, id)
        return None if found is None else StoredLane(self._session, Entry(found[0], self._entry.changes))

    async def counts(self) -> dict[str, Any]:
        """How many tasks run and wait, and have ended in which way since the tables were made.

        `max_running` is the `concurrency` of all workers that are alive.
        """
        found = await self._session.database.statistics()
        states = found["states"]
        return {
            "state": "closing" if self._session.changes.is_over else "open",
            "running": states.get("running", 0),
            "max_running": sum(worker["concurrency"] for worker in found["workers"]),
            "waiting": states.get("queued", 0),
            "added": sum(states.values()),
            **{state.value: states.get(state.value, 0) for state in JobState if state.ended},
            "history": None,  # they are kept for a time, however many
        }

    async def changed(self, version: int = 0) -> int:
        """Wait until something has changed, in any process, since `changed` returned `version`.

        Returns the version now. Raises `ExecutorClosed` once this app shuts down.
        """
        return await self._session.changes.after(version)

    async def last_end(self) -> tuple[str, int]:
        """What tells the numbers of these tables from those of others, and the number of the last end."""
        return await self._session.database.last_end()

    async def ended(self, after: int = 0, limit: int = 200) -> tuple[list[JobRecord], int] | None:
        """What has ended behind the end with that number, in any process, and the last one's number.

        None if some of it was pruned, or if it is more than 1,000.
        """
        found = await self._session.database.ended(after, limit)
        if found is None:
            return None
        return [record_of(self._session, row) for row in found["tasks"]], found["last"]

    @property
    def measured(self) -> Measured:
        """What `fifo_background.status.metrics` reports: the work of this process's worker."""
        return self._session.measured

    @property
    def shown(self) -> ShownStored:
        """What `fifo_background.status` shows and operates."""
        return ShownStored(self)

    async def join(self) -> None:
        """Wait for a moment at which nothing waits or runs, in no process."""
        await self._session.join()

    def __repr__(self) -> str:
        return f"<StoredExecutor {self._session.engine.queue!r}>"


def _id_of(head: StoredJob[Any] | str | None) -> str | None:
    return head.id if isinstance(head, StoredJob) else head and clean(head)
