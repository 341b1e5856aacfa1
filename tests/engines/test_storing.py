"""A request's tasks are stored before its response, or its client gets 503."""

from __future__ import annotations

import functools
import json
import logging
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from psycopg.types.json import set_json_dumps, set_json_loads
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from fifo_background import BackgroundTasks, JobNoResult, executor_of
from fifo_background.engines.postgres import Retry, StoreError
from tests.engines import work
from tests.engines.stored import QUICK, engine_of, handler, rows, states, stored_app
from tests.engines.work import fresh, ran  # noqa: F401
from tests.support.asgi import get, started
from tests.support.log import Log


@pytest.mark.parametrize("commits", [True, False])
async def test_psycopg(commits: bool, dsn: str) -> None:
    """`store(connection=)` puts tasks into the caller's transaction: they are there if that is committed."""
    engine = engine_of(dsn, worker=False)

    async def handle(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(work.quick, 1)
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            await tasks.store(connection)
            assert await states(dsn, engine) == []
            await (connection.commit() if commits else connection.rollback())
        return Response(background=tasks)

    app = stored_app(engine, handle)
    async with started(app):
        assert (await get(app, "/handle")).status == 200
    assert await states(dsn, engine) == [("quick", "queued")] * commits


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("kind", ["session", "connection"])
async def test_sqlalchemy(kind: str, commits: bool, dsn: str) -> None:
    """`store(connection=)` takes an `AsyncSession` and an `AsyncConnection` of SQLAlchemy."""
    sqlalchemy = pytest.importorskip("sqlalchemy.ext.asyncio")
    engine = engine_of(dsn, worker=False)
    theirs = sqlalchemy.create_async_engine(dsn.replace("postgresql://", "postgresql+psycopg://"))

    async def handle(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(work.quick, 1)
        async with sqlalchemy.AsyncSession(theirs) if kind == "session" else theirs.connect() as session:
            await tasks.store(session)
            await (session.commit() if commits else session.rollback())
        return Response(background=tasks)

    app = stored_app(engine, handle)
    async with started(app):
        assert (await get(app, "/handle")).status == 200
    await theirs.dispose()
    assert await states(dsn, engine) == [("quick", "queued")] * commits


async def test_wrong_connections(dsn: str) -> None:
    """`store(connection=)` refuses what is neither, a sync connection, and a session that is not async."""
    errors: list[str] = []

    async def handle(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(work.quick, 1)
        sqlalchemy_orm = pytest.importorskip("sqlalchemy.orm")
        with psycopg.connect(dsn) as connection, sqlalchemy_orm.Session() as session:
            for wrong in (connection, object(), session):
                with pytest.raises(TypeError) as raised:
                    await tasks.store(wrong)
                errors.append(str(raised.value))
        return Response(background=tasks)

    engine = engine_of(dsn, worker=False)
    app = stored_app(engine, handle)
    async with started(app):
        assert (await get(app, "/handle")).status == 200
    assert "async" in errors[0]
    assert all("give a psycopg.AsyncConnection" in error for error in errors[1:])
    assert await states(dsn, engine) == [("quick", "queued")]


async def test_store_some(dsn: str) -> None:
    """`store()` stores what was added to that object; the rest is stored by the response, once."""
    engine = engine_of(dsn, worker=False)

    async def handle(request: Request) -> Response:
        first, second = BackgroundTasks(), BackgroundTasks()
        second.add_task(work.sync, 2)
        first.add_task(work.quick, 1)
        for _ in range(2):
            await first.store()
        assert await states(dsn, engine) == [("quick", "queued")]
        return Response(background=second)

    app = stored_app(engine, handle)
    async with started(app):
        await get(app, "/handle")
    assert await states(dsn, engine) == [("quick", "queued"), ("sync", "queued")]


async def test_store_without_an_engine() -> None:
    """`store()` of an object that no engine keeps: RuntimeError."""
    with pytest.raises(RuntimeError, match="for an app with an engine"):
        await BackgroundTasks().store()


async def test_after_the_end(dsn: str) -> None:
    """After its request, an object cannot be stored or awaited; the error names what to use."""
    kept: list[BackgroundTasks] = []

    async def handle(request: Request) -> Response:
        kept.append(BackgroundTasks())
        return Response()

    app = stored_app(engine_of(dsn, worker=False), handle)
    async with started(app):
        await get(app, "/handle")
        with pytest.raises(RuntimeError, match=r"executor_of\(request\)"):
            await kept[0].store()


async def test_refused(dsn: str, log: Log) -> None:
    """Where PostgreSQL is not there, the client gets 503, whatever the app sends; the log has names."""
    engine = engine_of(f"{dsn}&port=1", worker=False, store_timeout=0.2)

    async def handle(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(work.quick, 1)

        async def body() -> Any:
            yield b"a"
            tasks.add_task(work.quick, 2)
            yield b"b"

        return StreamingResponse(body(), background=tasks)

    app = stored_app(engine, handle)
    async with started(app):
        exchange = await get(app, "/handle")
    assert (exchange.status, exchange.error) == (503, None)
    assert [message.get("body") for message in exchange.messages] == [None, b"Service Unavailable"]
    assert any("GET /handle got 503: the tasks could not be stored" in record for record in log)
    assert any("dropped 2 tasks: quick" in record and "the client got 503" in record for record in log)


async def test_refused_in_the_handler(dsn: str) -> None:
    """A handler that stores or submits, and cannot: the client gets 503, unless the handler handles it."""
    engine = engine_of(f"{dsn}&port=1", worker=False, store_timeout=0.2)

    async def stores(request: Request) -> Any:
        tasks = BackgroundTasks()
        tasks.add_task(work.quick, 1)
        await tasks.store()

    async def submits(request: Request) -> Any:
        await executor_of(request).submit(work.quick, 1)

    app = stored_app(engine, stores, submits)
    async with started(app):
        for path in ("/stores", "/submits"):
            exchange = await get(app, path)
            assert (exchange.status, exchange.error) == (503, None)


async def test_too_late_to_refuse(dsn: str, log: Log) -> None:
    """Tasks that cannot be stored once the response has begun: the request fails, and the log has names."""
    engine = engine_of(dsn, worker=False)
    app = stored_app(engine, handler((work.quick, 1), status=422))
    async with started(app):
        engine.dsn = f"{dsn}&port=1"
        engine.session()._connections._dsn = engine.dsn
        engine.session().database._store_seconds = 0.2
        await engine.session()._connections.drop_idle()
        exchange = await get(app, "/handle")
    assert exchange.status == 422
    assert isinstance(exchange.error, StoreError)
    assert any("dropped 1 task: quick" in record for record in log)


async def test_carried_value(dsn: str) -> None:
    """A context variable to carry whose value cannot be stored: TypeError at `add_task`, which names it."""

    async def handle(request: Request) -> Response:
        work.tenant.set(object())  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="the context variable 'tenant' cannot be stored"):
            BackgroundTasks().add_task(work.quick, 1)
        return Response()

    app = stored_app(engine_of(dsn, worker=False, carry={"tenant": work.tenant}), handle)
    async with started(app):
        assert (await get(app, "/handle")).status == 200


async def test_odd_path(dsn: str) -> None:
    """A path with `%00` is no reason to refuse its tasks; of a long one, the beginning is kept."""
    engine = engine_of(dsn, worker=False)
    app = stored_app(engine)

    async def add(scope: Any, receive: Any, send: Any) -> None:
        BackgroundTasks().add_task(work.quick, 1)
        await Response()(scope, receive, send)

    app.mount("/", add)
    async with started(app):
        assert (await get(app, "/a\0b" + 1000 * "c")).status == 200
    query = "SELECT request FROM fifo_background_tasks WHERE queue = %s"
    assert await rows(dsn, query, engine.queue) == [(r"GET /a\x00b" + 489 * "c",)]


@pytest.mark.parametrize("kind", ["psycopg", "sqlalchemy"])
async def test_queue_full_in_a_transaction(kind: str, dsn: str) -> None:
    """`store(connection=)` where too many wait: the client gets 503, as by a store of its own."""
    sqlalchemy = pytest.importorskip("sqlalchemy.ext.asyncio")
    theirs = sqlalchemy.create_async_engine(dsn.replace("postgresql://", "postgresql+psycopg://"))

    async def handle(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(work.quick, 1)
        own = await psycopg.AsyncConnection.connect(dsn) if kind == "psycopg" else theirs.connect()
        async with own as connection:
            await tasks.store(connection)
            await connection.commit()
        return Response()

    app = stored_app(engine_of(dsn, worker=False), handle, max_waiting=1)
    async with started(app):
        assert [(await get(app, "/handle")).status for _ in range(2)] == [200, 503]
    await theirs.dispose()


async def test_no_lifespan(dsn: str, log: Log) -> None:
    """Without a lifespan tasks are stored, which is said once, and nothing is left behind."""
    engine = engine_of(dsn)
    app = stored_app(engine, handler((work.quick, 1)))
    logging.getLogger("fifo_background").setLevel(logging.INFO)
    try:
        for _ in range(2):
            assert (await get(app, "/handle")).status == 200
    finally:
        logging.getLogger("fifo_background").setLevel(logging.NOTSET)
    assert len([record for record in log if "has seen no lifespan" in record]) == 1
    job = await executor_of(app).submit(work.quick, 2)
    await job.cancel()
    with pytest.raises(JobNoResult):
        await job
    assert await states(dsn, engine) == [("quick", "queued")] * 2 + [("quick", "cancelled")]


async def test_empty_database(postgres: Any) -> None:
    """A database without the tables: an app without a lifespan makes them when it stores."""
    dsn = postgres.database()
    engine = engine_of(dsn)
    app = stored_app(engine, handler((work.quick, 1)))
    assert (await get(app, "/handle")).status == 200
    assert await states(dsn, engine) == [("quick", "queued")]


async def test_options(dsn: str) -> None:
    """`retry=` and `timeout=` of `tasks.options` are stored with the task, also through `lane`."""
    engine = engine_of(dsn, worker=False)

    async def handle(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.options(retry=3, timeout=2.0).add_task(work.quick, 1)
        tasks.lane("a").options(retry=Retry(2, wait=0.5)).options(timeout=None).add_task(work.quick, 2)
        tasks.options(retry=None).add_task(work.quick, 3)
        for wrong, error in ((0, ValueError), ("3", TypeError), (True, TypeError)):
            with pytest.raises(error, match=r"retry|attempts"):
                tasks.options(retry=wrong)  # type: ignore[arg-type]
        return Response(background=tasks)

    app = stored_app(engine, handle, timeout=9.0)
    async with started(app):
        assert (await get(app, "/handle")).status == 200
        with pytest.raises(ValueError, match="attempts=0"):
            executor_of(app).options(retry=0)
    found = await rows(
        dsn, "SELECT options FROM fifo_background_tasks WHERE queue = %s ORDER BY arguments", engine.queue
    )
    expected = [
        {"timeout": 2.0, "rest": "skip", "retry": {"attempts": 3, "wait": 1.0, "wait_max": 60.0}},
        {"timeout": None, "rest": "skip", "retry": {"attempts": 2, "wait": 0.5, "wait_max": 60.0}},
        {"timeout": 9.0, "rest": "skip"},
    ]
    assert [row[0] for row in found] == expected


async def test_retry_in_memory() -> None:
    """`retry=` without an engine is refused at the call, by an error that says what works."""
    tasks = BackgroundTasks()
    for refused in (3, Retry()):
        with pytest.raises(TypeError, match="retry inside the task"):
            tasks.options(retry=refused)
        with pytest.raises(TypeError, match="retry inside the task"):
            tasks.lane("a").options(retry=refused)
    tasks.options(retry=None).add_task(work.quick, 1)
    await tasks()
    assert ran == [1]


async def test_what_storing_writes(dsn: str) -> None:
    """A stored task has no event of procrastinate's, and is told of once; jobs of others keep theirs."""
    engine = engine_of(dsn, worker=False)
    app = stored_app(engine)
    query = """SELECT count(*) FROM procrastinate_events AS event JOIN procrastinate_jobs AS job
        ON job.id = event.job_id WHERE job.lock = %s"""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        for channel in (f"fifo_background#{engine.queue}", f"procrastinate_queue_v1#{engine.queue}"):
            await connection.execute(psycopg.sql.SQL("LISTEN {}").format(psycopg.sql.Identifier(channel)))
        async with started(app):
            await executor_of(app).submit(work.quick, 1)
        defer = "INSERT INTO procrastinate_jobs (queue_name, task_name, lock) VALUES (%s, 'other', %s)"
        await rows(dsn, defer, engine.queue, engine.queue)
        told = [
            (heard.channel.partition("#")[0], heard.payload[:7])
            async for heard in connection.notifies(timeout=5, stop_after=2)
        ]
    assert told == [("fifo_background", "wake"), ("procrastinate_queue_v1", '{"type"')]
    assert await rows(dsn, query, f"{engine.queue}/null") == [(0,)]
    assert await rows(dsn, query, engine.queue) == [(1,)]


async def test_what_an_app_has_set(dsn: str) -> None:
    """An app's own encoding, and its own reader and writer of JSON, are those of its own connections."""
    write: Any = {}.__getitem__  # raises, whatever it is to write
    engine = engine_of(f"{dsn}&client_encoding=LATIN1")
    app = stored_app(engine)

    async def add(scope: Any, receive: Any, send: Any) -> None:
        BackgroundTasks().add_task(work.fails, "\N{EURO SIGN}")
        await Response()(scope, receive, send)

    app.mount("/", add)
    set_json_loads(functools.partial(json.loads, parse_float=Decimal))
    set_json_dumps(write)
    try:
        async with started(app):
            assert (await get(app, "/\N{EURO SIGN}")).status == 200
            await executor_of(app).join()
            (record,) = await engine.executor.jobs()
    finally:
        set_json_loads(json.loads)
        set_json_dumps(json.dumps)
    assert (record.request, record.error) == ("GET /\N{EURO SIGN}", ("ValueError", "no \N{EURO SIGN}"))
    assert record.attempts == 1


@pytest.mark.parametrize("cursors", [psycopg.AsyncRawCursor, psycopg.AsyncClientCursor])
async def test_cursors_of_another_kind(cursors: Any, dsn: str) -> None:
    """`store(connection=)` works with a connection whose cursors take other marks for parameters."""
    engine = engine_of(dsn, worker=False)

    async def handle(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(work.quick, 1)
        async with await psycopg.AsyncConnection.connect(dsn, cursor_factory=cursors) as connection:
            await tasks.store(connection)
        return Response()

    app = stored_app(engine, handle)
    async with started(app):
        assert (await get(app, "/handle")).status == 200
    assert await states(dsn, engine) == [("quick", "queued")]


async def test_tables_that_are_made_anew(postgres: Any) -> None:
    """Where the tables go away under an app, the next store makes them, and the worker goes on."""
    dsn = postgres.database()
    engine = engine_of(dsn, **QUICK)
    app = stored_app(engine, handler((work.quick, 1)))
    async with started(app):
        for statement in ("DROP SCHEMA public CASCADE", "CREATE SCHEMA public"):
            await rows(dsn, statement)
        assert (await get(app, "/handle")).status == 200
        await executor_of(app).join()
    assert ran == [1]


async def test_two_apps_with_one_engine(dsn: str) -> None:
    """Tasks have the settings of the app that adds them, whichever of two has taken the engine last."""
    engine = engine_of(dsn, worker=False)
    first = stored_app(engine, handler((work.quick, 1)), timeout=5.0, rest_after_failure="run")
    second = stored_app(engine, handler((work.quick, 2)), lane_after_failure="stop")
    for app in (first, second, first):
        assert (await get(app, "/handle")).status == 200
    query = "SELECT options FROM fifo_background_tasks WHERE queue = %s ORDER BY number"
    one, other = {"timeout": 5.0, "rest": "run"}, {"timeout": None, "rest": "skip", "after_failure": "stop"}
    assert await rows(dsn, query, engine.queue) == [(one,), (other,), (one,)]
