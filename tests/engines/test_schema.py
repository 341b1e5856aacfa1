"""The tables and functions in the database."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest

from fifo_background import executor_of
from fifo_background.engines.postgres import SchemaError
from fifo_background.engines.postgres._connections import connect
from fifo_background.engines.postgres._schema import migrate
from tests.engines import work
from tests.engines.stored import engine_of, handler, rows, states, stored_app
from tests.engines.work import fresh, ran  # noqa: F401
from tests.support.asgi import get, started
from tests.support.postgres import migrated


async def test_an_app_migrates(postgres: Any) -> None:
    """An app whose database is empty makes the tables when it starts."""
    app = stored_app(engine_of(postgres.database()))
    async with started(app):
        assert await (await executor_of(app).submit(work.sync, 1)) == 1


async def test_an_app_that_does_not_migrate(postgres: Any) -> None:
    """With `migrate=False` an app says what to run, at its startup; once that was done, it starts."""
    dsn = postgres.database()
    app = stored_app(engine_of(dsn, migrate=False, worker=False))
    with pytest.raises(SchemaError, match="run `fifo-background migrate"):
        await started(app).__aenter__()
    await migrated(dsn)
    async with started(app):
        assert await executor_of(app).jobs() == []


async def test_another_encoding(postgres: Any) -> None:
    """A database that cannot take any text is refused: an error that it cannot store could never be told."""
    await rows(postgres.dsn, "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    latin = urlunsplit(urlsplit(postgres.dsn)._replace(path="/latin"))
    with pytest.raises(SchemaError, match="the encoding LATIN1"):
        await migrated(latin)
    await rows(postgres.dsn, "DROP DATABASE latin")


async def test_newer_tables(postgres: Any) -> None:
    """Tables of a newer version than this process knows: it says so."""
    dsn = await migrated(postgres.database())
    await rows(dsn, "UPDATE fifo_background_schema SET version = 1000")
    with pytest.raises(SchemaError, match=r"version 1000 .* update fifo-background"):
        await started(stored_app(engine_of(dsn))).__aenter__()


async def test_a_role_that_may_not(postgres: Any) -> None:
    """A role that may not make the tables: the error says what to run, and with which role."""
    dsn = postgres.database()
    await rows(dsn, "CREATE ROLE weak LOGIN")
    try:
        weak = urlunsplit(urlsplit(dsn)._replace(netloc="weak@"))
        with pytest.raises(SchemaError, match="may not make the tables"):
            await migrated(weak)
    finally:
        await rows(dsn, "DROP ROLE weak")


@pytest.mark.parametrize(
    "statement", ["DELETE FROM procrastinate_jobs WHERE id = 1", "TRUNCATE procrastinate_jobs CASCADE"]
)
async def test_a_task_goes_with_its_job(statement: str, postgres: Any) -> None:
    """Whoever deletes procrastinate's jobs deletes the tasks of these jobs, and no others."""
    dsn = await migrated(postgres.database())
    engine = engine_of(dsn, worker=False)
    app = stored_app(engine, handler((work.quick, 1), (work.quick, 2)))
    async with started(app):
        await get(app, "/handle")
        await executor_of(app).submit(work.sync, 3)
        await rows(dsn, statement)
        assert await states(dsn, engine) == ([] if "TRUNCATE" in statement else [("sync", "queued")])


async def test_other_tables_of_procrastinate(postgres: Any) -> None:
    """Procrastinate's tables are there, and of an older version: its migrations come first."""
    dsn = await migrated(postgres.database())
    await rows(dsn, "DROP TABLE fifo_background_schema")
    await rows(dsn, "DROP FUNCTION procrastinate_fetch_job_v2 CASCADE")
    connection = await connect(dsn)
    try:
        with pytest.raises(SchemaError, match=r"procrastinate_fetch_job_v2 is missing.*migrations first"):
            await migrate(connection)
    finally:
        await connection.close()
