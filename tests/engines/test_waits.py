"""Waits for stored tasks end, whatever else ends; what is left of the engine in each event loop."""

from __future__ import annotations

import asyncio
import gc
import secrets
import sys
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import anyio
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from fifo_background import (
    BackgroundTasks,
    ExecutorClosed,
    JobNoResult,
    JobState,
    WouldDeadlock,
    executor_of,
)
from fifo_background.engines.postgres import StoreError, _stored
from tests.engines import work
from tests.engines.stored import engine_of, handler, rows, stored_app
from tests.engines.work import fresh, ran  # noqa: F401
from tests.support.apps import until
from tests.support.asgi import Exchange, Lifespan, get, started


async def test_shutdown_ends_waits(dsn: str) -> None:
    """A wait that is left when the app shuts down ends with `ExecutorClosed`."""
    engine = engine_of(dsn, worker=False)
    app = stored_app(engine)
    errors: list[Exception] = []

    async def wait(job: Any) -> None:
        try:
            await job.wait()
        except ExecutorClosed as error:
            errors.append(error)

    async with anyio.create_task_group() as group, started(app):
        job = await executor_of(app).submit(work.sync, 1)
        for _ in range(2):
            group.start_soon(wait, job)
        await until(lambda: len(engine.session().waits._wakes.get(job.id, ())) == 2)
    assert len(errors) == 2
    assert "the wait for sync" in str(errors[0])


async def test_two_waits(dsn: str) -> None:
    """Many may wait for one task; the end of one wait leaves the others."""
    app = stored_app(engine_of(dsn))
    async with started(app), anyio.create_task_group() as group:
        job = await executor_of(app).submit(work.gated, 1)
        with anyio.move_on_after(0.05):
            await job.wait()
        group.start_soon(job.wait)
        work.gate(1).set()
        assert await job.wait() is JobState.SUCCEEDED
    assert ran == ["start 1", "end 1"]


async def test_task_of_another_queue(dsn: str) -> None:
    """Nobody tells a queue of the ends of another one's tasks: it does not have them."""
    job = await engine_of(dsn).executor.submit(work.sync, 1)
    app = stored_app(engine_of(dsn, worker=False))
    async with started(app):
        with pytest.raises(WouldDeadlock, match="the database has forgotten it"):
            await executor_of(app).handle(job.id).wait()


async def test_moments(dsn: str) -> None:
    """Moments are told in UTC, to the microsecond; PostgreSQL writes `.12` for 120,000 of them, which the
    Python of some years ago does not read."""
    engine = engine_of(f"{dsn}&options=-ctimezone%3DAsia/Tokyo")
    job = await engine.executor.submit(work.sync, 1)
    set_to = "UPDATE fifo_background_tasks SET added_at = %s WHERE id = %s"
    for microseconds in (0, 120_000, 999_999):
        at = datetime(2026, 3, 1, 23, 59, 59, microseconds, timezone.utc)
        await rows(dsn, set_to, at, job.id)
        added_at = (await job.record()).added_at
        assert added_at is not None
        assert (added_at, added_at.utcoffset()) == (at, timedelta())


async def test_two_lifespans(dsn: str) -> None:
    """An app whose lifespan is run twice at once works until the last one has ended."""
    app = stored_app(engine_of(dsn))
    async with started(app):
        async with started(app):
            pass
        assert await (await executor_of(app).submit(work.sync, 1)) == 1


async def test_cancelled_before_it_was_stored(dsn: str) -> None:
    """A task that was cancelled before it was stored has a handle that says so; one that was dropped, too."""
    kept: list[Any] = []

    async def regrets(request: Request) -> Response:
        tasks = BackgroundTasks()
        kept.append(tasks.add_task(work.quick, 1))
        await kept[0].cancel()
        kept.append(tasks.add_task(work.quick, 2))
        raise LookupError

    app = stored_app(engine_of(dsn, worker=False), regrets)
    async with started(app):
        await get(app, "/regrets")
        for job in kept:
            assert await job.wait() is JobState.CANCELLED
            with pytest.raises(JobNoResult, match="cancelled"):
                await job


async def test_websocket_that_cannot_be_stored(dsn: str, log: list[str]) -> None:
    """What a websocket has added, and cannot be stored at its end, is told; its error is raised."""
    engine = engine_of(f"{dsn}&port=1", worker=False, store_timeout=0.2)

    async def talk(websocket: WebSocket) -> None:
        BackgroundTasks().add_task(work.quick, 1)

    app = stored_app(engine)
    app.router.routes.append(WebSocketRoute("/ws", talk))
    async with started(app):
        exchange = Exchange(app, "/ws", type="websocket", subprotocols=[])
        with pytest.raises(StoreError):
            await app(exchange.scope, exchange.receive, exchange.send)
    assert any("dropped 1 task: quick" in record for record in log)


async def test_equal_keys(dsn: str) -> None:
    """Keys that are equal are one lane, and others are not."""
    engine = engine_of(dsn, worker=False)
    noon = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
    equal: list[tuple[Any, ...]] = [
        (1, 1.0, True, Decimal(1), Decimal("1.00"), work.Level.LOW),
        (0.5, Decimal("0.50")),
        (Decimal("0.1"), Decimal("0.10")),
        (10**20, Decimal(10**20), Decimal("1e20"), 1e20),
        (Decimal("1e5000"), Decimal("10e4999")),
        (0, -0.0, Decimal("-0.00")),
        ("yes", work.Word.YES),
        (noon, noon.astimezone(timezone(timedelta(hours=9)))),
        (noon.replace(tzinfo=None),),
        (None,),
        (0.1,),
    ]
    lanes: list[str] = []
    for keys in equal:
        assert len({keys[0], *keys}) == 1
        texts = {engine.lane_text((key, "a")) for key in keys}
        assert len(texts) == 1
        lanes += texts
    assert len(set(lanes)) == len(equal)


async def test_long_key(dsn: str) -> None:
    """The key of a lane is in an index: one that is too long for it is refused where it is given."""
    engine = engine_of(dsn)
    assert await (await engine.executor.lane(secrets.token_hex(999)).submit(work.sync, 1)).cancel()
    with pytest.raises(TypeError, match=r"takes 2002 bytes, and at most 2000 are stored: use an id"):
        engine.executor.lane(secrets.token_hex(1000))


@pytest.mark.parametrize("traces", [True, False])
async def test_what_is_carried(traces: bool, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is not set is not carried, and one that the worker does not know is left out."""
    monkeypatch.setattr(_stored, "_HAS_TRACING", traces and _stored._HAS_TRACING)
    engine = engine_of(dsn, carry={"tenant": work.tenant, "other": work.unset})
    app = stored_app(engine, handler((work.quick, 1)))
    async with started(app):
        work.tenant.set("somebody")
        await get(app, "/handle")
        await executor_of(app).join()
    reader = engine_of(dsn)
    task = _stored.Running(engine.queue, "null", "id", "name", lambda: None)
    context = reader.carried.context({"variables": {"unknown": '"x"'}}, task)
    assert context.get(work.unset) is None
    assert ran == [1]


async def test_without_sqlalchemy(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without SQLAlchemy, `store(connection=)` says what it takes."""
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)

    async def handle(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(work.quick, 1)
        with pytest.raises(TypeError, match="give a psycopg"):
            await tasks.store(object())
        return Response()

    app = stored_app(engine_of(dsn, worker=False), handle)
    async with started(app):
        assert (await get(app, "/handle")).status == 200


async def test_started_again_while_it_ends(dsn: str) -> None:
    """A lifespan that begins while the last one drains begins behind it, and has a worker of its own."""
    engine = engine_of(dsn)
    app = stored_app(engine, handler((work.gated, 1)))
    first, second = Lifespan(app), Lifespan(app)
    async with anyio.create_task_group() as group:
        group.start_soon(first.run)
        await until(lambda: first.sent)
        await get(app, "/handle")
        await until(lambda: ran == ["start 1"])
        first.shutdown.set()
        await until(lambda: engine.session()._ending is not None)
        group.start_soon(second.run)
        await anyio.wait_all_tasks_blocked()
        assert second.sent == []
        work.gate(1).set()
        await until(lambda: second.sent)
        assert await (await executor_of(app).submit(work.sync, 2)) == 2
        second.shutdown.set()


def test_event_loops_are_forgotten(dsn: str) -> None:
    """Nothing of the engine is left of an event loop that is gone."""
    engine = engine_of(dsn)
    app = stored_app(engine, handler((work.quick, 1)))

    async def run() -> None:
        async with started(app):
            await get(app, "/handle")
            await executor_of(app).join()

    for _ in range(2):
        asyncio.run(run())
    gc.collect()
    assert len(engine._sessions) == 0


async def test_retried_while_it_is_awaited(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`await job` of a task that somebody has run again, after its failure was told, gives its last end."""
    engine = engine_of(dsn)
    app = stored_app(engine, lane_after_failure="stop")
    async with started(app):
        job = await engine.executor.lane("a").submit(work.fails_until, 1, 2)
        await job.wait()
        database = engine.session().database
        look = database.task

        async def retried_meanwhile(id: str) -> Any:
            monkeypatch.undo()
            await engine.executor.lane("a").retry_head()
            return await look(id)

        monkeypatch.setattr(database, "task", retried_meanwhile)
        assert await job == 2


async def test_equal_progress(dsn: str) -> None:
    """What a task reports is told, also where the one before it in its request has reported the same."""
    engine = engine_of(dsn)
    app = stored_app(engine, handler((work.reports, 1), (work.reports, 2)))
    async with started(app):
        await get(app, "/handle")
        second, first = await engine.executor.jobs()
        for job in (first, second):
            with anyio.fail_after(20):
                while (await engine.executor.handle(job.id).record()).progress is None:
                    await anyio.sleep(0.01)
            work.gate(1).set()
        work.gate(2).set()
