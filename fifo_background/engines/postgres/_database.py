"""What the engine asks of the database: one statement, and so one transaction, for each question."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import psycopg
from psycopg.types.json import Jsonb

from fifo_background.engines.postgres._connections import Connections
from fifo_background.engines.postgres._errors import StoreError, UnreachableError, WorkerLost
from fifo_background.engines.postgres._heartbeat import Heard
from fifo_background.exceptions import QueueFull

T = TypeVar("T")

__all__ = ("Database", "STORE")

# For values that psycopg passes on, and for SQLAlchemy's.
STORE = "SELECT fifo_background_store(%s, %s, %s)"

# How many seconds questions of people may take; a worker has more time than a client.
_ASK, _WORK, _LONG = 5.0, 10.0, 60.0


class Database:
    """The tables of one queue, asked in one event loop."""

    def __init__(self, connections: Connections, queue: str, store_seconds: float) -> None:
        self.queue: str = queue
        self._connections = connections
        self._store_seconds = store_seconds

    # -- storing ---------------------------------------------------------------------------------------------

    async def store(
        self,
        groups: Sequence[dict[str, Any]],
        max_waiting: int | None,
        prepare: Callable[[], Awaitable[None]],
    ) -> None:
        """Store tasks: all of them or, with an error, none that anybody was told of.

        `prepare` makes the tables, where they are not there. Raises `StoreError` where it is not known in
        time whether it was done, and `QueueFull`.
        """
        try:
            try:
                await self._store(groups, max_waiting)
            except psycopg.errors.UndefinedFunction:
                await prepare()
                await self._store(groups, max_waiting)
        except psycopg.Error as error:
            raise self.refusal(error, max_waiting) from error

    async def _store(self, groups: Sequence[dict[str, Any]], max_waiting: int | None) -> None:
        values = self.queue, Jsonb(groups), max_waiting
        await self._connections.row(STORE, *values, seconds=self._store_seconds, tries=20)

    def refusal(self, error: Any, max_waiting: int | None) -> Exception:
        """What to raise where tasks could not be stored. `error`: that of any driver."""
        if getattr(error, "sqlstate", None) == "FB001":
            return QueueFull("a task", max_waiting or 0, submit_waits=False)
        return StoreError(f"the tasks could not be stored: {error}")

    # -- a worker --------------------------------------------------------------------------------------------

    async def register(self, lost_after: float, host: str, pid: int, concurrency: int) -> int:
        query = "SELECT fifo_background_register(%s, %s, %s, %s, %s)"
        return await self._value(int, query, self.queue, lost_after, host, pid, concurrency)

    async def unregister(self, worker: int) -> None:
        await self._find(str, "SELECT procrastinate_unregister_worker_v1(%s)", worker)

    async def fetch(self, worker: int) -> dict[str, Any]:
        """A job of a lane that is free, or {"next_at"}. Raises `WorkerLost`."""
        try:
            # not again: what was fetched, and not heard of, is the lost worker's
            query = "SELECT fifo_background_fetch(%s, %s)"
            return await self._value(dict, query, self.queue, worker, seconds=_WORK, tries=1)
        except psycopg.errors.ForeignKeyViolation as error:
            raise WorkerLost("others have taken over what this worker had in hand") from error
        except psycopg.errors.UniqueViolation:  # another worker was quicker
            return {"next_at": 0.0}

    async def end(self, worker: int, job: int, attempts: int, end: dict[str, Any]) -> dict[str, Any] | None:
        """A task has ended. None where the job is this worker's no longer: also where it was told before."""
        return await self._find(
            dict,
            "SELECT fifo_background_end(%s, %s, %s, %s, %s)",
            self.queue,
            worker,
            job,
            attempts,
            Jsonb(end),
            seconds=_WORK,
            tries=1,
        )

    async def give_back(self, worker: int, job: int, attempts: int) -> bool:
        query = "SELECT fifo_background_give_back(%s, %s, %s, %s)"
        return await self._value(bool, query, self.queue, worker, job, attempts, seconds=_WORK)

    async def could_not_run(
        self, worker: int, job: int, attempts: int, most_crashes: int, error_type: str
    ) -> None:
        """Because of an error of the worker's own. After `most_crashes` the task has failed."""
        query = "SELECT fifo_background_could_not_run(%s, %s, %s, %s, %s, %s)"
        values = worker, job, attempts, most_crashes, error_type
        await self._find(str, query, self.queue, *values, seconds=_WORK)

    async def in_hand_of(self, worker: int) -> list[tuple[int, int]]:
        """The jobs that the database believes this worker to have, with their attempts."""
        query = """SELECT jsonb_agg(jsonb_build_array(id, attempts)) FROM procrastinate_jobs
            WHERE worker_id = %s AND status = 'doing'"""
        return [(job, attempts) for job, attempts in await self._find(list, query, worker) or []]

    async def recover(self, most_crashes: int, heard: Heard) -> int:
        """Put the jobs of lost workers at the heads of their lanes; how many."""
        query = "SELECT fifo_background_recover(%s, %s, %s)"
        silent = Jsonb(heard.silent())
        found = await self._value(dict, query, self.queue, most_crashes, silent, seconds=_WORK)
        heard.note(found["heartbeats"])
        recovered: int = found["recovered"]
        return recovered

    async def backlog(self) -> tuple[int, float | None]:
        """How many tasks wait, and for how many seconds the first of them."""
        waiting, oldest = await self._value(list, "SELECT fifo_background_backlog(%s)", self.queue)
        return waiting, oldest

    async def progress(self, id: str, progress: dict[str, Any]) -> None:
        await self._connections.row(
            "UPDATE fifo_background_tasks SET progress = %s WHERE id = %s AND state = 'running'",
            Jsonb(progress),
            id,
            seconds=_WORK,
        )

    async def cancelled(self, ids: Sequence[str]) -> list[str]:
        """Which of these tasks somebody has asked to cancel."""
        query = "SELECT array_agg(id) FROM fifo_background_tasks WHERE id = ANY(%s) AND cancel_requested"
        return await self._find(list, query, list(ids)) or []

    async def notify(self, what: str) -> None:
        """Tell all processes: "wake" for workers, "changed" for those who follow."""
        await self._find(str, "SELECT fifo_background_notify(%s, %s)", self.queue, what)

    # -- one task --------------------------------------------------------------------------------------------

    async def task(self, id: str) -> dict[str, Any] | None:
        """One row as a dict, with `ahead` and what blocks it."""
        query = "SELECT fifo_background_task(%s, %s)"
        return await self._ask(self._find(dict, query, self.queue, id))

    async def watch(self, id: str) -> str | None:
        """The state of a task whose end is told from here on; None if it is not there.

        "stopped": it waits in a lane that has stopped, which is told, too.
        """
        return await self._ask(self._find(str, "SELECT fifo_background_watch(%s, %s)", self.queue, id))

    async def cancel(self, id: str) -> str | None:
        """The state that it had; "thread" if it runs in one, which nothing can end."""
        query = "SELECT fifo_background_cancel(%s, %s)"
        return await self._ask(self._find(str, query, self.queue, id))

    # -- lanes -----------------------------------------------------------------------------------------------

    async def on_lane(self, operation: str, lock: str, *values: Any) -> Any:
        """`pause`, `resume`, `clear`; `retry_head` and `skip_head` with the id of the head that is meant."""
        marks = ", ".join(["%s"] * (2 + len(values)))
        query = f"SELECT fifo_background_{operation}({marks})"
        return await self._ask(self._find(object, query, self.queue, lock, *values))

    # -- many tasks ------------------------------------------------------------------------------------------

    async def tasks(self, *filters: Any) -> list[dict[str, Any]]:
        """The newest that match, as `task` has them; the filters are those of `fifo_background_list`."""
        query = "SELECT fifo_background_list(%s, %s, %s, %s, %s, %s, %s)"
        return await self._ask(self._find(list, query, self.queue, *filters)) or []

    async def lanes(self, limit: int) -> dict[str, Any]:
        """The lanes that need a person most, and how many there are."""
        query = "SELECT fifo_background_lanes(%s, %s)"
        return await self._ask(self._value(dict, query, self.queue, limit))

    async def lane(self, lane: str) -> dict[str, Any]:
        """One lane, whether there is one now or not. `lane`: the key as text."""
        query = "SELECT fifo_background_lane(%s, %s)"
        return await self._ask(self._value(dict, query, self.queue, lane))

    async def statistics(self) -> dict[str, Any]:
        """How many tasks are in which state, and the workers that are alive."""
        query = "SELECT fifo_background_statistics(%s)"
        return await self._ask(self._value(dict, query, self.queue))

    async def last_end(self) -> tuple[str, int]:
        """The epoch of the numbers of ends, and the last number."""
        query = "SELECT jsonb_build_array(epoch, ended) FROM fifo_background_number_ends(%s, true)"
        epoch, ended = await self._ask(self._value(list, query, self.queue))
        return epoch, ended

    async def ended(self, after: int, limit: int) -> dict[str, Any] | None:
        """What has ended behind an end. None if some of it is forgotten."""
        query = "SELECT fifo_background_ended(%s, %s, %s)"
        return await self._ask(self._find(dict, query, self.queue, after, limit))

    async def newest_open(self) -> str | None:
        """The id of the newest task that waits or runs."""
        query = """SELECT id FROM fifo_background_tasks WHERE queue = %s AND state IN ('queued', 'running')
            ORDER BY number DESC LIMIT 1"""
        return await self._ask(self._find(str, query, self.queue))

    async def count_old(self, seconds: float) -> int:
        """How many jobs `prune` would forget."""
        query = """SELECT count(*) FROM (
                SELECT FROM fifo_background_tasks AS task
                JOIN procrastinate_jobs AS job ON job.id = task.job_id AND job.status NOT IN ('todo', 'doing')
                WHERE task.queue = %s
                GROUP BY job.id HAVING max(task.ended_at) < clock_timestamp() - make_interval(secs => %s)
            ) AS old"""
        return await self._value(int, query, self.queue, seconds, seconds=_LONG)

    async def prune(self, seconds: float, most: int = 1000) -> int:
        """Forget jobs all of whose tasks have ended so long ago; how many, at most `most`."""
        query = "SELECT fifo_background_prune(%s, %s, %s)"
        return await self._value(int, query, self.queue, seconds, most, seconds=_WORK)

    @staticmethod
    async def _ask(answer: Awaitable[T]) -> T:
        """What a person or a client wants to know or do. Raises `UnreachableError`."""
        try:
            return await answer
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            raise UnreachableError(f"PostgreSQL does not answer: {error}") from error

    async def _value(
        self, kind: type[T], query: str, *values: Any, seconds: float = _ASK, tries: int = 2
    ) -> T:
        """The value that a statement gives: SQL makes it, so `kind` is for the type checker alone."""
        row = await self._connections.row(query, *values, seconds=seconds, tries=tries)
        value: T = row[0]
        return value

    async def _find(
        self, kind: type[T], query: str, *values: Any, seconds: float = _ASK, tries: int = 2
    ) -> T | None:
        """The value; None where it is null, or there is no row."""
        row = await self._connections.row(query, *values, seconds=seconds, tries=tries)
        return None if row is None else row[0]
