"""The tables and functions in the database: made where they are missing, checked at each start."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import psycopg
from procrastinate.schema import SchemaManager

from fifo_background.engines.postgres._errors import SchemaError

__all__ = ("VERSION", "is_current", "migrate")

VERSION = 1

# One for all databases: what two processes that migrate wait for.
_LOCK = 0x6669666F

# What the SQL of ours calls.
_NEEDED = (
    "procrastinate_defer_jobs_v1",
    "procrastinate_fetch_job_v2",
    "procrastinate_finish_job_v1",
    "procrastinate_retry_job_v2",
    "procrastinate_cancel_job_v1",
    "procrastinate_register_worker_v1",
)


async def is_current(connection: psycopg.AsyncConnection[Any]) -> bool:
    """Whether the database has this version. Raises `SchemaError` if it has a newer one."""
    version = await _version(connection)
    if version is not None and version > VERSION:
        raise SchemaError(
            f"the database has version {version} of the tables, and this process knows version {VERSION}: "
            "update fifo-background here"
        )
    return version == VERSION


async def migrate(connection: psycopg.AsyncConnection[Any]) -> bool:
    """Make what is missing, in one transaction; other processes wait meanwhile. Whether there was anything.

    Raises `SchemaError` where the role may not, or where procrastinate's own tables are of another version.
    """
    try:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            if await is_current(connection):
                return False
            encoding = await _one(connection, "SHOW server_encoding")
            if encoding != "UTF8":
                raise SchemaError(
                    f"the database has the encoding {encoding}, and names and errors may be any text: make "
                    "one by `CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0`"
                )
            if await _one(connection, "SELECT to_regclass('procrastinate_jobs') IS NULL"):
                await connection.execute(_script(SchemaManager.get_schema()))
            missing = [
                name
                for name in _NEEDED
                if not await _one(connection, "SELECT EXISTS (SELECT FROM pg_proc WHERE proname = %s)", name)
            ]
            if missing:
                raise SchemaError(
                    f"procrastinate's tables are of an older version ({', '.join(missing)} is missing): "
                    "apply its migrations first, see its documentation"
                )
            ours = files("fifo_background.engines.postgres") / "schema.sql"
            await connection.execute(_script(ours.read_text("utf-8")))
            return True
    except psycopg.errors.InsufficientPrivilege as error:
        raise SchemaError(
            f"this role may not make the tables ({error}): run `fifo-background migrate --dsn ...` once, "
            "with a role that may"
        ) from error


async def _version(connection: psycopg.AsyncConnection[Any]) -> int | None:
    if await _one(connection, "SELECT to_regclass('fifo_background_schema') IS NULL"):
        return None
    found: int = await _one(connection, "SELECT version FROM fifo_background_schema")
    return found


async def _one(connection: psycopg.AsyncConnection[Any], query: Any, *values: Any) -> Any:
    cursor = await connection.execute(query, values or None)
    row = await cursor.fetchone()
    return None if row is None else row[0]


def _script(text: str) -> Any:
    """Several statements, without values: psycopg sends them as they are."""
    return text.encode()
