"""Each row of the table of differences between the queue in memory and an engine."""

from __future__ import annotations

import functools
from contextvars import ContextVar
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

import anyio
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from fifo_background import (
    BackgroundTask,
    BackgroundTasks,
    JobState,
    LaneStopped,
    OrderedBackgroundMiddleware,
    QueueFull,
    WouldDeadlock,
    executor_of,
)
from fifo_background.engines.postgres import TaskFailed
from fifo_background.testing import drained
from tests.engines import work
from tests.engines.stored import engine_of, handler, rows, states, stored_app
from tests.engines.work import fresh, ran  # noqa: F401
from tests.support.apps import make_app, until
from tests.support.asgi import Exchange, get, started
from tests.support.log import Log


@pytest.mark.parametrize(
    "setting",
    [
        {"order": "added"},
        {"order": "arrived"},
        {"order": "responded"},
        {"hold_timeout": 5.0},
        {"order": "arrived", "may_add_tasks": bool},
    ],
)
def test_order(setting: dict[str, Any], dsn: str) -> None:
    """`order`, `hold_timeout`, `may_add_tasks`: ValueError if given: the one order is that of storing."""
    with pytest.raises(ValueError, match=f"{next(iter(setting))}= does not apply with an engine"):
        OrderedBackgroundMiddleware(Starlette(), engine=engine_of(dsn), **setting)


async def test_stored_before_the_first_byte(dsn: str) -> None:
    """Tasks are stored before the first byte of the response leaves."""
    engine = engine_of(dsn, worker=False)
    app = stored_app(engine, handler((work.quick, 1)))
    seen: list[Any] = []

    class Looks(Exchange):
        async def send(self, message: Any) -> None:
            seen.append(await states(dsn, engine))
            await super().send(message)

    async with started(app):
        await Looks(app, "/handle").run()
    assert seen == [[("quick", "queued")]] * 2


async def test_wait(dsn: str) -> None:
    """`wait`: False by default; True waits by the id of the task, and its error arrives as `TaskFailed`."""
    engine = engine_of(dsn)
    app = stored_app(engine, handler((work.sync, 1), (work.fails, 2)), wait=True)
    async with started(app):
        exchange = await get(app, "/handle")
        assert exchange.status == 200
        assert isinstance(exchange.error, TaskFailed)
        assert (exchange.error.type, exchange.error.text) == ("ValueError", "no 2")
    assert ran == [1, 2]
    assert engine_of(dsn).settings.wait is False


async def test_wait_of_one_task(dsn: str) -> None:
    """`options(wait=...)` differs from task to task: a request waits for those that it is to wait for."""

    async def handle(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.options(wait=True).add_task(work.sync, 1)
        tasks.lane("other").options(wait=False).add_task(work.gated, 2)
        return Response(background=tasks)

    app = stored_app(engine_of(dsn), handle)
    async with started(app):
        await get(app, "/handle")
        assert 1 in ran
        assert "end 2" not in ran
        work.gate(2).set()
        await executor_of(app).join()


async def test_interrupted_response(dsn: str) -> None:
    """A response that is interrupted after its start, or has its own background: what was added runs."""

    async def breaks(scope: Any, receive: Any, send: Any) -> None:
        BackgroundTasks().add_task(work.quick, 1)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise LookupError

    async def another(request: Request) -> Response:
        BackgroundTasks().add_task(work.quick, 2)
        return Response(background=BackgroundTask(work.quick, 3))

    app = stored_app(engine_of(dsn), another)
    app.mount("/breaks", breaks)
    async with started(app):
        assert isinstance((await get(app, "/breaks/")).error, LookupError)
        await get(app, "/another")
        await executor_of(app).join()
    assert ran == [1, 2, 3]


OUTSIDE = BackgroundTasks([BackgroundTask(work.quick, "outside")])


async def test_forms(dsn: str) -> None:
    """The constructor, `.tasks`, the single task: those made in the request are stored at the first byte,
    others when they are awaited."""
    engine = engine_of(dsn, worker=False)

    async def inside(request: Request) -> Response:
        tasks = BackgroundTasks([BackgroundTask(work.quick, 1)])
        tasks.tasks.append(BackgroundTask(work.sync, 2))
        return Response()

    async def outside(request: Request) -> Response:
        return Response(background=OUTSIDE)

    app = stored_app(engine, inside, outside)
    async with started(app):
        await get(app, "/inside")
        assert await states(dsn, engine) == [("quick", "queued"), ("sync", "queued")]
        await get(app, "/outside")
        assert len(await states(dsn, engine)) == 3


async def test_app_in_an_app(dsn: str, log: Log) -> None:
    """An inner app with a middleware of its own, in memory: the outer one is used, and that is said once."""
    engine = engine_of(dsn, worker=False)
    app = stored_app(engine)
    app.mount("/inner", make_app(handler((work.quick, 1))))
    async with started(app):
        for _ in range(2):
            assert (await get(app, "/inner/handle")).status == 200
    assert await states(dsn, engine) == [("quick", "queued")] * 2
    assert len([record for record in log if "passes two OrderedBackgroundMiddleware" in record]) == 1


another: ContextVar[str] = ContextVar("another", default="nobody")


async def others() -> tuple[str, str]:
    return work.tenant.get(), another.get()


async def test_context(dsn: str) -> None:
    """Context variables are not carried, except by an explicit `carry=`."""
    jobs: list[Any] = []

    async def handle(request: Request) -> Response:
        another.set("somebody")
        tasks = BackgroundTasks()
        for tenant in ("first", "second"):  # each task has what was set as it was added
            work.tenant.set(tenant)
            jobs.append(tasks.add_task(others))
        work.tenant.set("third")
        return Response(background=tasks)

    app = stored_app(engine_of(dsn, carry={"tenant": work.tenant}), handle)
    async with started(app):
        await get(app, "/handle")
        assert [await job for job in jobs] == [("first", "nobody"), ("second", "nobody")]


async def test_trace(dsn: str) -> None:
    """The W3C trace context is carried: a task belongs to the trace of its request."""
    trace = pytest.importorskip("opentelemetry.trace")
    context, jobs = trace.SpanContext(1, 2, True, trace.TraceFlags(1)), []

    async def handle(request: Request) -> Response:
        tasks = BackgroundTasks()
        with trace.use_span(trace.NonRecordingSpan(context)):
            jobs.append(tasks.add_task(trace_id))
        return Response(background=tasks)

    app = stored_app(engine_of(dsn), handle)
    async with started(app):
        await get(app, "/handle")
        assert await jobs[0] == 1


def trace_id() -> int:
    from opentelemetry import trace

    return trace.get_current_span().get_span_context().trace_id


def closure() -> Any:
    def inner() -> None: ...

    return inner


@pytest.mark.parametrize(
    ("func", "text"),
    [
        (closure(), "top level of its module"),
        (lambda: None, "Write `def`"),
        (work.Mailer().bound, "such as an id"),
        (functools.partial(work.sync, 1), "Pass its arguments to `add_task`"),
        (BackgroundTasks(), "Write a function of a module"),
    ],
)
async def test_functions(func: Any, text: str, dsn: str) -> None:
    """Closures, lambdas, bound methods: TypeError at `add_task`, which says what works."""
    errors: list[str] = []

    async def handle(request: Request) -> Response:
        tasks = BackgroundTasks()
        with pytest.raises(TypeError) as raised:
            tasks.add_task(func)
        errors.append(str(raised.value))
        assert tasks.tasks == []
        return Response(background=tasks)

    app = stored_app(engine_of(dsn, worker=False), handle)
    async with started(app):
        assert (await get(app, "/handle")).status == 200
    assert text in errors[0]


async def test_arguments(dsn: str) -> None:
    """Arguments: TypeError at `add_task`, which names the argument, for what cannot be stored exactly."""
    errors: list[str] = []

    async def handle(request: Request) -> Response:
        tasks = BackgroundTasks()
        with pytest.raises(TypeError) as raised:
            tasks.add_task(work.sync, request)
        errors.append(str(raised.value))
        with pytest.raises(TypeError, match=r"the key of a lane, .* cannot be stored"):
            tasks.lane(frozenset()).add_task(work.sync, 1)
        return Response(background=tasks)

    app = stored_app(engine_of(dsn, worker=False), handle)
    async with started(app):
        assert (await get(app, "/handle")).status == 200
    assert "the argument 'n' of sync cannot be stored: a Request cannot" in errors[0]


async def test_drained(dsn: str) -> None:
    """`drained` names what has not ended, and says what an engine's task waits for."""
    app = stored_app(engine_of(dsn, worker=False))
    async with started(app):
        await executor_of(app).submit(work.sync, 1)  # type: ignore[misc]
        with pytest.raises(
            TimeoutError, match=r"have not ended: sync in the default lane \(no worker is alive\)$"
        ):
            await drained(app, timeout=0.01)


async def test_keys(dsn: str) -> None:
    """Keys of lanes: each type that can be stored, of `tasks.lane` as of `executor.lane`."""
    keys = [Decimal("1.5"), datetime(2026, 1, 1), work.Word.YES, work.Level.LOW, ("a", (1, 2)), uuid4()]
    engine = engine_of(dsn, worker=False)

    async def handle(request: Request) -> Response:
        tasks = BackgroundTasks()
        for key in keys:
            tasks.lane(key).add_task(work.sync, 1)
        return Response(background=tasks)

    app = stored_app(engine, handle)
    async with started(app):
        assert (await get(app, "/handle")).status == 200
        pictures = [await engine.executor.lane(key).picture() for key in keys]
    assert [picture.waiting for picture in pictures] == [1] * len(keys)


async def test_lane_options(dsn: str) -> None:
    """`keep="latest"` and `max_waiting` of a lane: ValueError, for now."""

    async def handle(request: Request) -> Response:
        tasks = BackgroundTasks()
        for options in ({"keep": "latest"}, {"max_waiting": 3}):
            with pytest.raises(ValueError, match="do not work with an engine"):
                tasks.lane("a", **options).add_task(work.sync, 1)  # type: ignore[arg-type]
        return Response(background=tasks)

    app = stored_app(engine_of(dsn, worker=False), handle)
    async with started(app):
        assert (await get(app, "/handle")).status == 200


async def test_sync_operations(dsn: str) -> None:
    """`submit_nowait`, and what a handle tells without `await`: TypeError that names the awaited form."""
    engine = engine_of(dsn, worker=False)
    app = stored_app(engine)
    async with started(app):
        executor: Any = executor_of(app)
        with pytest.raises(TypeError, match=r"await executor\.submit"):
            executor.submit_nowait(work.sync, 1)
        with pytest.raises(TypeError, match=r"await executor\.submit"):
            executor.lane("a").submit_nowait(work.sync, 1)
        job = await executor.submit(work.sync, 1)
        for ask in (job.done, job.result, job.exception, lambda: job.state):
            with pytest.raises(TypeError, match="await job"):
                ask()
        with pytest.raises(TypeError, match="await job"):
            job.add_done_callback(print)
        with pytest.raises(TypeError, match="submit takes a function"):
            await executor.submit(1)  # type: ignore[call-overload]
        assert repr(job) == f"<StoredJob sync {job.id}>"
        assert repr(executor).startswith("<StoredExecutor ")
        assert executor is engine.executor  # which is typed


async def waits_for(id: str) -> Any:
    return await executor_of(work.app).handle(id)


async def waits_for_itself() -> Any:
    (record,) = await executor_of(work.app).jobs(states=[JobState.RUNNING])
    return await executor_of(work.app).handle(record.id)


async def joins() -> None:
    await executor_of(work.app).join()


async def test_would_deadlock(dsn: str) -> None:
    """`WouldDeadlock`: for a task that waits for itself, for one behind it in its own lane, or for all; for a
    request that waits for a task that it has not stored. A task of another lane is waited for."""

    async def handle(request: Request) -> Response:
        tasks = BackgroundTasks()
        with pytest.raises(WouldDeadlock, match=r"is stored when its response begins.*tasks\.store"):
            await tasks.add_task(work.sync, 0)
        return Response()

    work.app = app = stored_app(engine_of(dsn, concurrency=1), handle)
    async with started(app):
        executor = executor_of(app)
        await get(app, "/handle")
        await executor.join()
        with pytest.raises(TaskFailed, match="it would wait for itself"):
            await (await executor.submit(waits_for_itself))
        with pytest.raises(TaskFailed, match="this one included"):
            await (await executor.submit(joins))
        await executor.lane("other").pause()
        other = await executor.lane("other").submit(work.sync, 2)
        waiting = await executor.submit(waits_for, other.id)
        await executor.lane("other").resume()
        assert await waiting == 2


async def test_own_lane(dsn: str) -> None:
    """`WouldDeadlock`: for a task that waits for one that stands behind it, in its own lane."""

    async def handle(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(waits_for_the_next)
        tasks.add_task(work.sync, 1)
        return Response(background=tasks)

    work.app = app = stored_app(engine_of(dsn), handle, rest_after_failure="run")
    async with started(app):
        await get(app, "/handle")
        await executor_of(app).join()
        (failed,) = await executor_of(app).jobs(states=[JobState.FAILED])
        assert failed.error is not None
        assert "stands behind it, in its own lane" in failed.error[1]
        assert "`job = await executor_of(request).lane(...).submit(func, ...)`" in failed.error[1]
    assert ran == [1]


async def waits_for_the_next() -> Any:
    (record,) = await executor_of(work.app).jobs(states=[JobState.QUEUED])
    return await executor_of(work.app).handle(record.id)


@pytest.mark.parametrize(
    "setting",
    [
        {"max_lanes_running": 4},
        {"history": 5},
        {"history_seconds": 5.0},
        {"results": True},
        {"results_bytes": 5},
        {"log_arguments": True},
    ],
)
def test_max_lanes_running(setting: dict[str, Any], dsn: str) -> None:
    """`max_lanes_running`: the concurrency of a worker; what else is of the memory names its setting, too."""
    with pytest.raises(ValueError, match=r"does not apply with an engine: .*(PostgresEngine|database)"):
        OrderedBackgroundMiddleware(Starlette(), engine=engine_of(dsn), **setting)


async def test_concurrency(dsn: str) -> None:
    """A worker runs as many lanes at once as its concurrency says."""
    app = stored_app(engine_of(dsn, concurrency=2))
    async with started(app):
        executor = executor_of(app)
        for lane in "abc":
            await executor.lane(lane).submit(work.gated, lane)
        await until(lambda: len(ran) == 2)
        assert (await executor.statistics())["states"] == {"queued": 1, "running": 2}
        for lane in "abc":
            work.gate(lane).set()
        await executor.join()
    assert ran[-1] == "end c"


async def test_max_waiting(dsn: str) -> None:
    """`max_waiting`: counted when storing, approximately, and answered 503."""
    engine = engine_of(dsn, worker=False)
    app = stored_app(engine, handler((work.sync, 1), (work.sync, 2)), max_waiting=1)
    async with started(app):
        assert [(await get(app, "/handle")).status for _ in range(2)] == [200, 503]
        with pytest.raises(QueueFull, match=r"a task was refused: 1 task waits already \(max_") as full:
            await executor_of(app).submit(work.sync, 3)  # type: ignore[misc]
    assert "submit" not in str(full.value)  # it has not waited
    assert len(await states(dsn, engine)) == 2


def test_trio(dsn: str) -> None:
    """trio: RuntimeError at startup."""
    app = stored_app(engine_of(dsn))
    with pytest.raises(RuntimeError, match="asyncio or uvloop"):
        anyio.run(started(app).__aenter__, backend="trio")


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_wait_in_a_stopped_lane(when: str, dsn: str) -> None:
    """`wait=True` in a lane that has stopped, or stops: `LaneStopped`, as in memory; the task stays."""
    settings: dict[str, Any] = {"wait": True, "lane_after_failure": "stop"}

    async def stops(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.options(wait=False).add_task(work.fails_at_gate, 1)
        return Response(background=tasks)

    engine = engine_of(dsn)
    app = stored_app(engine, stops, handler((work.quick, 2)), **settings)
    async with started(app):
        executor = executor_of(app)
        await get(app, "/stops")
        (failed,) = await executor.jobs()
        seen: list[Any] = []

        async def waits() -> None:
            seen.append((await get(app, "/handle")).error)

        async with anyio.create_task_group() as group:
            if when == "meanwhile":
                group.start_soon(waits)
                query = "SELECT watched FROM fifo_background_tasks WHERE queue = %s AND state = 'queued'"
                while await rows(dsn, query, engine.queue) != [(True,)]:
                    await anyio.sleep(0.01)
            work.gate(1).set()
            await executor.handle(failed.id).wait()
            if when == "before":
                group.start_soon(waits)
        (error,) = seen
        assert isinstance(error, LaneStopped)
        assert "fails_at_gate" in str(error)
        (waiting,) = await executor.jobs(states=[JobState.QUEUED])
        assert await executor.lane(None).skip_head() is not None
        assert await executor.handle(waiting.id) == 2


async def test_own_failure_in_a_stopped_lane(dsn: str) -> None:
    """`wait=True`, and the request's own task stops the lane: its error is raised, as in memory."""
    settings: dict[str, Any] = {"wait": True, "lane_after_failure": "stop", "rest_after_failure": "run"}
    app = stored_app(engine_of(dsn), handler((work.fails, 1), (work.quick, 2)), **settings)
    async with started(app):
        error = (await get(app, "/handle")).error
        assert isinstance(error, TaskFailed)
        assert error.text == "no 1"
    assert ran == [1]
