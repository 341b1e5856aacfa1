"""What the commands ask of the database beside what an executor tells: its tables, and its queues."""

from __future__ import annotations

from typing import Any

from fifo_background.engines.postgres import PostgresEngine, SchemaError
from fifo_background.engines.postgres._connections import connect
from fifo_background.engines.postgres._schema import is_current, migrate
from fifo_background.engines.postgres._session import Session

__all__ = ("migrated", "open_queues")


async def migrated(dsn: str) -> bool:
    """Make the tables, where they are missing. Whether they were. Raises `SchemaError`, `psycopg.Error`."""
    connection = await connect(dsn)
    try:
        return await migrate(connection)
    finally:
        await connection.close()


async def open_queues(dsn: str, name: str | None) -> list[Session]:
    """The queue with that name; by default all that have tasks or workers.

    Raises `SchemaError` where the tables are not there, and `psycopg.Error`.
    """
    names = [name]
    connection = await connect(dsn)
    try:
        if not await is_current(connection):
            raise SchemaError("the database does not have the tables: run `fifo-background migrate`")
        if name is None:
            cursor = await connection.execute(
                "SELECT queue FROM fifo_background_tasks UNION "
                "SELECT queue FROM fifo_background_workers ORDER BY 1"
            )
            found: list[tuple[Any, ...]] = await cursor.fetchall()
            names = [one for (one,) in found]
    finally:
        await connection.close()
    return [PostgresEngine(dsn, queue=str(one), packages=()).session() for one in names]
