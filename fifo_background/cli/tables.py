"""What the commands ask of the database: its queues, what can be forgotten, the tables themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg

from fifo_background.engines.postgres import SchemaError
from fifo_background.engines.postgres._connections import Connections, connect
from fifo_background.engines.postgres._database import Database
from fifo_background.engines.postgres._schema import is_current, migrate

__all__ = ("Queue", "migrated", "open_queues")

# How many seconds a question may take.
_ASK = 30.0

# One transaction of `prune` forgets so many jobs.
_BATCH = 1000


class Queue:
    """One queue, as the commands see it."""

    def __init__(self, name: str, connections: Connections) -> None:
        self.name: str = name
        self._connections = connections
        self._database = Database(connections, name, _ASK)

    async def statistics(self) -> dict[str, Any]:
        """How many tasks are in which state, and the workers."""
        return await self._database.statistics()

    async def lanes(self, limit: int) -> dict[str, Any]:
        """The lanes that need a person most, and how many there are."""
        return await self._database.lanes(limit)

    async def count_ended(self, seconds: float) -> int:
        """How many jobs have ended so long ago that `forget` takes them."""
        query = """SELECT count(DISTINCT task.job_id) FROM fifo_background_tasks AS task
            JOIN procrastinate_jobs AS job ON job.id = task.job_id AND job.status NOT IN ('todo', 'doing')
            WHERE task.queue = %s AND task.ended_at < clock_timestamp() - make_interval(secs => %s)"""
        (count,) = await self._connections.row(query, self.name, seconds, seconds=_ASK)
        return int(count)

    async def forget(self, seconds: float) -> int:
        """Forget some of them; how many, 0 if none is left."""
        return await self._database.prune(seconds, _BATCH)


async def migrated(dsn: str) -> bool:
    """Make the tables, where they are missing. Whether they were. Raises `SchemaError`, `psycopg.Error`."""
    connection = await connect(dsn)
    try:
        return await migrate(connection)
    finally:
        await connection.close()


@asynccontextmanager
async def open_queues(dsn: str, name: str | None) -> AsyncIterator[list[Queue]]:
    """The queue with that name; by default all that have tasks or workers.

    Raises `SchemaError` where the tables are not there, and `psycopg.Error`.
    """
    connection = await connect(dsn)
    try:
        if not await is_current(connection):
            raise SchemaError("the database does not have the tables: run `fifo-background migrate`")
        names = [name] if name is not None else [one async for one in _names(connection)]
    finally:
        await connection.close()
    connections = Connections(dsn, 1)
    try:
        yield [Queue(one, connections) for one in names]
    finally:
        await connections.drop_idle()


async def _names(connection: psycopg.AsyncConnection[Any]) -> AsyncIterator[str]:
    cursor = await connection.execute(
        "SELECT queue FROM fifo_background_tasks UNION SELECT queue FROM fifo_background_workers ORDER BY 1"
    )
    async for (name,) in cursor:
        yield name
