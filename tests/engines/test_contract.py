"""What holds on every engine: the same endpoints, in memory and on PostgreSQL."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

import anyio
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from fifo_background import (
    BackgroundTask,
    BackgroundTasks,
    JobNoResult,
    JobState,
    OrderedBackgroundMiddleware,
    executor_of,
)
from fifo_background.engines.postgres import PostgresEngine, TaskFailed
from tests.engines import work
from tests.engines.work import fresh, ran  # noqa: F401
from tests.support.apps import until
from tests.support.asgi import Client, Exchange, get, started

PATIENCE = 20


class Kind:
    """One of the engines."""

    def __init__(self, name: str, dsn: str) -> None:
        self.name = name
        self.dsn = dsn

    @property
    def is_stored(self) -> bool:
        return self.name == "postgres"

    def settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        if self.is_stored:
            return {**settings, "engine": PostgresEngine(self.dsn, packages=["tests"], queue=uuid4().hex)}
        return settings

    def app(self, *handlers: Callable[..., Any], more: Any = (), **settings: Any) -> Starlette:
        return Starlette(
            routes=[*(Route(f"/{handler.__name__}", handler) for handler in handlers), *more],
            middleware=[Middleware(OrderedBackgroundMiddleware, **self.settings(settings))],
        )


@pytest.fixture(params=["memory", "postgres"])
def kind(request: pytest.FixtureRequest, dsn: str) -> Kind:
    return Kind(request.param, dsn)


async def asked(answer: Any) -> Any:
    """In memory lane operations are calls; with an engine they are awaited."""
    return await answer if inspect.iscoroutine(answer) else answer


async def error_of(kind: Kind, job: Any) -> tuple[str, str]:
    if kind.is_stored:
        return (await job.record()).error  # type: ignore[no-any-return]
    error = job.exception()
    return type(error).__name__, str(error)


def add(*calls: Any) -> Callable[[Request], Any]:
    """A handler that adds these calls."""

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        for func, *args in calls:
            tasks.add_task(func, *args)
        return Response(background=tasks)

    return handler


async def numbered(request: Request) -> Response:
    """Adds an async and a sync task with the number of the query."""
    tasks = BackgroundTasks()
    n = request.query_params["n"]
    tasks.add_task(work.quick, f"{n}a")
    tasks.add_task(work.sync, f"{n}b")
    return Response(background=tasks)


def in_thread(request: Request) -> Response:
    """The same, as a `def` endpoint."""
    tasks = BackgroundTasks()
    n = request.query_params["n"]
    tasks.add_task(work.sync, f"{n}a")
    tasks.add_task(work.quick, f"{n}b")
    return Response(background=tasks)


async def test_order(kind: Kind) -> None:
    """Tasks of one lane run in the order of their requests, a request's tasks together; sync and async."""
    app = kind.app(numbered, in_thread)
    async with started(app):
        for n in range(8):
            path = "/numbered" if n % 2 else "/in_thread"
            assert (await get(app, path, query_string=f"n={n}".encode())).status == 200
        await executor_of(app).join()
    assert ran == [f"{n}{part}" for n in range(8) for part in "ab"]


async def test_together(kind: Kind) -> None:
    """The tasks of a request run together, in the order of their adding, whatever others add meanwhile."""
    goes_on = anyio.Event()

    async def slow(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(work.quick, "slow 0")
        await goes_on.wait()
        tasks.add_task(work.sync, "slow 1")
        return Response(background=tasks)

    app = kind.app(slow, numbered, hold_timeout=60.0) if not kind.is_stored else kind.app(slow, numbered)
    async with started(app), anyio.create_task_group() as group:
        client = Client(app, group)
        first = await client.start("/slow")
        quick = await client.start("/numbered", query_string=b"n=1")
        await quick.responded.wait()
        goes_on.set()
        await first.ended.wait()
        await quick.ended.wait()
        await executor_of(app).join()
    assert sorted(ran) == ["1a", "1b", "slow 0", "slow 1"]
    assert ran.index("1b") == ran.index("1a") + 1
    assert ran.index("slow 1") == ran.index("slow 0") + 1


@pytest.mark.parametrize(("rest", "expected"), [("skip", [0, 1, 3]), ("run", [0, 1, 2, 3])])
async def test_rest_after_failure(rest: str, expected: list[int], kind: Kind) -> None:
    """After a failed task the later ones of its request are skipped, or run; other requests' tasks run."""
    first, second = add((work.quick, 0), (work.fails, 1), (work.sync, 2)), add((work.quick, 3))
    app = kind.app(more=[Route("/first", first), Route("/second", second)], rest_after_failure=rest)
    async with started(app):
        for path in ("/first", "/second"):
            await get(app, path)
        await executor_of(app).join()
    assert ran == expected


async def test_lanes(kind: Kind) -> None:
    """Lanes do not wait for each other."""

    async def both(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.lane("a").add_task(work.gated, "a")
        tasks.lane(("b", 1)).add_task(work.quick, "b")
        return Response(background=tasks)

    app = kind.app(both, wait=False)
    async with started(app):
        await get(app, "/both")
        await until(lambda: "b" in ran and "start a" in ran)
        assert "end a" not in ran
        work.gate("a").set()
        await executor_of(app).join()
    assert ran[-1] == "end a"


async def test_lane_key(kind: Kind) -> None:
    """`lane_key` chooses the lane of those tasks of a request that name none."""
    jobs: list[Any] = []

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        jobs.append(tasks.add_task(work.quick, 1))
        return Response(background=tasks)

    app = kind.app(handler, lane_key=lambda scope: scope["query_string"].decode(), wait=False)
    async with started(app):
        await get(app, "/handler", query_string=b"k=1")
        await jobs[0].wait()
        record = await asked(executor_of(app).job(jobs[0].id))
        assert record.lane == "k=1"


async def test_timeout(kind: Kind) -> None:
    """`options(timeout=...)` ends an async task that takes too long; the lane goes on."""
    jobs: list[Any] = []

    async def slow(request: Request) -> Response:
        tasks = BackgroundTasks()
        jobs.append(tasks.options(timeout=0.05).add_task(work.gated, 1))
        tasks.lane(None).options(timeout=None).add_task(work.quick, 2)
        return Response(background=tasks)

    app = kind.app(slow, rest_after_failure="run", wait=False)
    async with started(app):
        await get(app, "/slow")
        assert await jobs[0].wait() is JobState.FAILED
        await executor_of(app).join()
        assert (await error_of(kind, jobs[0]))[0] == "TimeoutError"
    assert ran == ["start 1", 2]


async def stopped(kind: Kind) -> tuple[Starlette, list[Any]]:
    """An app whose lane "s" a failing task stops; two more tasks wait in it."""
    jobs: list[Any] = []

    async def fill(request: Request) -> Response:
        tasks = BackgroundTasks()
        lane = tasks.lane("s", after_failure="stop")
        jobs.append(lane.add_task(work.fails_until, "head", 2))
        return Response(background=tasks)

    async def more(request: Request) -> Response:
        tasks = BackgroundTasks()
        for n in (1, 2):
            jobs.append(tasks.lane("s").add_task(work.quick, n))
        return Response(background=tasks)

    return kind.app(fill, more, wait=False), jobs


@pytest.mark.parametrize("operation", ["retry_head", "skip_head", "clear"])
async def test_stopped_lane(operation: str, kind: Kind) -> None:
    """With `after_failure="stop"` a lane stops at a failed task, until somebody operates on it."""
    app, jobs = await stopped(kind)
    async with started(app):
        await get(app, "/fill")
        assert await jobs[0].wait() is JobState.FAILED
        await get(app, "/more")
        lane = executor_of(app).lane("s")
        head = await asked(lane.peek())
        assert (head.id, ran) == (jobs[0].id, ["head"])
        found = await asked(getattr(lane, operation)())
        await executor_of(app).join()
        if operation == "clear":
            # in memory the failed task is among them
            assert {job.id for job in found} >= {job.id for job in jobs[1:]}
            assert [await job.wait() for job in jobs[1:]] == [JobState.CANCELLED] * 2
        assert await asked(lane.peek()) is None
    expected = {"retry_head": ["head", "head", 1, 2], "skip_head": ["head", 1, 2], "clear": ["head"]}
    assert ran == expected[operation]


async def test_nothing_to_operate_on(kind: Kind) -> None:
    """Operations on a lane that is not there answer False, None, None and []; `retry_head` raises."""
    app = kind.app()
    async with started(app):
        lane = executor_of(app).lane("not there")
        answers = [await asked(lane.resume()), await asked(lane.peek()), await asked(lane.skip_head())]
        assert [*answers, await asked(lane.clear())] == [False, None, None, []]
        with pytest.raises(RuntimeError, match="has not stopped"):
            await asked(lane.retry_head())


async def test_pause(kind: Kind) -> None:
    """A paused lane starts nothing, also if it was empty; a second pause changes nothing."""
    app = kind.app(numbered, wait=False)
    async with started(app):
        lane = executor_of(app).lane(None)
        for _ in range(2):
            await asked(lane.pause())
        await get(app, "/numbered", query_string=b"n=0")
        other = await asked(executor_of(app).lane("other").submit(work.quick, "other"))
        await other.wait()
        assert ran == ["other"]
        assert (await asked(lane.peek())).id
        assert await asked(lane.resume()) is True
        await executor_of(app).join()
    assert ran == ["other", "0a", "0b"]


async def test_pause_within_a_request(kind: Kind) -> None:
    """A lane that is paused while a task runs starts no later task of the same request either."""
    app = kind.app(more=[Route("/", add((work.gated, 0), (work.quick, 1)))], wait=False)
    async with started(app):
        await get(app)
        await until(lambda: ran == ["start 0"])
        lane = executor_of(app).lane(None)
        await asked(lane.pause())
        work.gate(0).set()
        other = await asked(executor_of(app).lane("other").submit(work.quick, "other"))
        await other.wait()
        await until(lambda: "end 0" in ran)
        another = await asked(executor_of(app).lane("other").submit(work.quick, "another"))
        await another.wait()
        assert 1 not in ran
        await asked(lane.resume())
        await executor_of(app).join()
    assert ran[-1] == 1


async def test_skip_head_within_a_request(kind: Kind) -> None:
    """`skip_head` and `peek` mean the task that is next, also where a task of its own request runs."""
    app = kind.app(more=[Route("/", add((work.gated, 0), (work.quick, 1), (work.quick, 2)))], wait=False)
    async with started(app):
        await get(app)
        await until(lambda: ran == ["start 0"])
        lane = executor_of(app).lane(None)
        next_one = await asked(lane.peek())
        skipped = await asked(lane.skip_head())
        assert skipped.id == next_one.id
        work.gate(0).set()
        await executor_of(app).join()
    assert ran == ["start 0", "end 0", 2]


async def test_http_exception_drops(kind: Kind) -> None:
    """An `HTTPException` drops what its handler has added."""

    async def refuses(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(work.quick, 1)
        raise HTTPException(403)

    app = kind.app(refuses, numbered)
    async with started(app):
        assert (await get(app, "/refuses")).status == 403
        await get(app, "/numbered", query_string=b"n=2")
        await executor_of(app).join()
    assert ran == ["2a", "2b"]


async def test_error_drops(kind: Kind) -> None:
    """A handler that raises drops what it has added."""

    async def breaks(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(work.quick, 1)
        raise LookupError

    app = kind.app(breaks, numbered)
    async with started(app):
        assert isinstance((await get(app, "/breaks")).error, LookupError)
        await executor_of(app).join()
    assert ran == []


async def test_error_response_with_tasks(kind: Kind) -> None:
    """A response of 422 that carries tasks runs them."""

    async def invalid(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(work.quick, 1)
        return Response(status_code=422, background=tasks)

    app = kind.app(invalid)
    async with started(app):
        assert (await get(app, "/invalid")).status == 422
        await executor_of(app).join()
    assert ran == [1]


MODULE_LEVEL = BackgroundTask(work.quick, "module")


class Mine(BackgroundTasks):
    """A subclass, with an `add_task` of its own."""

    def add_task(self, func: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        return super().add_task(func, f"mine {args[0]}", **kwargs)


async def test_forms(kind: Kind) -> None:
    """The single-task form, one that many responses share, the constructor, `.tasks`, and a subclass run."""

    async def single(request: Request) -> Response:
        return Response(background=BackgroundTask(work.quick, 1))

    async def shared(request: Request) -> Response:
        return Response(background=MODULE_LEVEL)

    async def constructor(request: Request) -> Response:
        tasks = BackgroundTasks([BackgroundTask(work.quick, 2), BackgroundTask(work.sync, 3)])
        tasks.tasks.append(BackgroundTask(work.quick, 4))
        return Response(background=tasks)

    async def subclass(request: Request) -> Response:
        tasks = Mine()
        tasks.add_task(work.quick, 5)
        tasks.lane(None).add_task(work.quick, 6)
        return Response(background=tasks)

    async def nested(request: Request) -> Response:
        inner, outer = BackgroundTasks(), BackgroundTasks()
        inner.add_task(work.quick, 7)
        outer.tasks.append(inner)
        outer.add_task(work.quick, 8)
        return Response(background=outer)

    app = kind.app(single, shared, constructor, subclass, nested)
    async with started(app):
        for path in ("/single", "/shared", "/shared", "/constructor", "/subclass", "/nested"):
            exchange = await get(app, path)
            assert (exchange.status, exchange.error) == (200, None)
        await executor_of(app).join()
    assert ran == [1, "module", "module", 2, 3, 4, "mine 5", "mine 6", 7, 8]


async def test_shared_object_after_a_failed_request(kind: Kind) -> None:
    """An object that many requests share runs for the next one, although the one before never awaited it."""
    tasks = BackgroundTasks([BackgroundTask(work.quick, 1)])

    async def may_break(request: Request) -> Response:
        if request.query_params:
            Response(background=tasks)
            raise LookupError
        return Response(background=tasks)

    app = kind.app(may_break)
    async with started(app):
        await get(app, "/may_break", query_string=b"b=1")
        for _ in range(2):
            await get(app, "/may_break")
        await executor_of(app).join()
    assert ran == [1, 1]


async def test_awaited_twice(kind: Kind) -> None:
    """An object that is awaited again runs its list again."""

    async def twice(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(work.quick, 1)
        await tasks()
        return Response(background=tasks)

    app = kind.app(twice, wait=False)
    async with started(app):
        await get(app, "/twice")
        await executor_of(app).join()
    assert ran == [1, 1]


async def test_websocket(kind: Kind) -> None:
    """What a websocket's handler has added and awaited runs."""

    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        tasks = BackgroundTasks()
        tasks.add_task(work.quick, 1)
        await websocket.close()
        await tasks()

    app = kind.app(more=[WebSocketRoute("/ws", talk)])
    async with started(app):
        exchange = Exchange(app, "/ws", type="websocket", subprotocols=[])
        received = iter([{"type": "websocket.connect"}])

        async def receive() -> Any:
            return next(received)

        await app(exchange.scope, receive, exchange.send)
        await executor_of(app).join()
    assert ran == [1]


async def test_added_too_late(kind: Kind) -> None:
    """What is added after the end of a request is refused, by an error that names what to use."""
    kept: list[BackgroundTasks] = []

    async def keeps(request: Request) -> Response:
        kept.append(BackgroundTasks())
        kept[0].add_task(work.quick, 1)
        return Response(background=kept[0])

    app = kind.app(keeps)
    async with started(app):
        await get(app, "/keeps")
        with pytest.raises(RuntimeError, match="submit"):
            kept[0].add_task(work.quick, 2)
        await executor_of(app).join()
    assert ran == [1]


async def test_queue_full(kind: Kind) -> None:
    """Where `max_waiting` tasks wait, the client gets 503 with `Retry-After`, and nothing is added."""
    app = kind.app(numbered, max_waiting=2, wait=False)
    async with started(app):
        await asked(executor_of(app).lane(None).pause())
        assert (await get(app, "/numbered", query_string=b"n=0")).status == 200
        full = await get(app, "/numbered", query_string=b"n=1")
        assert (full.status, full.error) == (503, None)
        headers = next(m["headers"] for m in full.messages if m["type"] == "http.response.start")
        assert (b"retry-after", b"1") in headers
        await asked(executor_of(app).lane(None).resume())
        await executor_of(app).join()
    assert ran == ["0a", "0b"]


async def test_streaming(kind: Kind) -> None:
    """A response that streams and adds tasks meanwhile runs them."""

    async def stream(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(work.quick, "first")

        async def body() -> AsyncIterator[bytes]:
            for n in range(3):
                tasks.add_task(work.quick, n)
                yield b"."
            tasks.add_task(work.quick, "last")

        return StreamingResponse(body(), background=tasks)

    app = kind.app(stream)
    async with started(app):
        await get(app, "/stream")
        await executor_of(app).join()
    assert ran == ["first", 0, 1, 2, "last"]


async def test_results(kind: Kind) -> None:
    """`await job` gives the result, or raises; its id finds it again, and `job(id)` tells how it ended."""
    app = kind.app()
    async with started(app):
        executor = executor_of(app)
        good, bad = await executor.submit(work.sync, {"a": (1, 2)}), await executor.submit(work.fails, 3)
        assert await good == {"a": (1, 2)}
        with pytest.raises((ValueError, TaskFailed), match="no 3"):
            await bad
        record = await asked(executor.job(good.id))
        assert (record.id, record.state, record.name) == (good.id, JobState.SUCCEEDED, "sync")
        assert record.number is not None
        assert await error_of(kind, bad) == ("ValueError", "no 3")
        assert await asked(executor.job("nobody's")) is None
        assert {job.id for job in await asked(executor.jobs())} >= {good.id, bad.id}


async def test_cancel(kind: Kind) -> None:
    """A task that waits and is cancelled never runs; one that runs is ended. Its lane goes on."""
    app = kind.app()
    async with started(app):
        executor = executor_of(app)
        running, waiting, last = [
            await executor.submit(work.gated, 0),
            await executor.submit(work.quick, 1),
            await executor.submit(work.quick, 2),
        ]
        await until(lambda: ran == ["start 0"])
        assert await asked(waiting.cancel()) is True
        assert await waiting.wait() is JobState.CANCELLED
        assert await asked(running.cancel()) is True
        assert await running.wait() is JobState.CANCELLED
        with pytest.raises(JobNoResult, match="cancelled"):
            await running
        assert await last == 2
        assert await asked(last.cancel()) is False
    assert ran == ["start 0", 2]


async def test_cancel_before_the_response(kind: Kind) -> None:
    """A task that its own handler cancels never runs."""
    answers: list[Any] = []

    async def regrets(request: Request) -> Response:
        tasks = BackgroundTasks()
        job = tasks.add_task(work.quick, 1)
        tasks.add_task(work.quick, 2)
        answers.append(await asked(job.cancel()))
        return Response(background=tasks)

    app = kind.app(regrets)
    async with started(app):
        await get(app, "/regrets")
        await executor_of(app).join()
    assert (answers, ran) == ([True], [2])


async def test_lifespans(kind: Kind) -> None:
    """An app that is started again, after its shutdown, runs tasks again."""
    app = kind.app(numbered)
    for n in range(2):
        async with started(app):
            await get(app, "/numbered", query_string=f"n={n}".encode())
            await executor_of(app).join()
    assert ran == ["0a", "0b", "1a", "1b"]


@pytest.mark.parametrize("wait", [True, False])
async def test_request_from_a_task(wait: bool, kind: Kind) -> None:
    """A task that sends a request to its own app does not wait for the tasks of that, which run after it."""

    async def outer(request: Request) -> Response:
        return Response(background=BackgroundTask(calls_back))

    app = kind.app(outer, numbered, wait=wait)
    work.app = app
    async with started(app), anyio.create_task_group() as group:
        group.start_soon(get, app, "/outer")
        await until(lambda: "called back" in ran)
        await executor_of(app).join()
    assert ran == ["called back", "1a", "1b"]


async def calls_back() -> None:
    await get(work.app, "/numbered", query_string=b"n=1")
    ran.append("called back")


async def test_tasks_in_a_task(kind: Kind) -> None:
    """A task that awaits tasks of its own runs them inside itself."""
    app = kind.app()
    async with started(app):
        await (await executor_of(app).submit(runs_tasks))
    assert ran == ["before", "inside", "after"]


async def runs_tasks() -> None:
    tasks = BackgroundTasks()
    tasks.add_task(work.sync, "inside")
    ran.append("before")
    await tasks()
    ran.append("after")


async def test_executor_of_a_request(kind: Kind) -> None:
    """`executor_of(request)` finds the executor; what a handler submits runs, whatever the response is."""

    async def submits(request: Request) -> Response:
        await executor_of(request).submit(work.quick, 1)
        raise HTTPException(400)

    app = kind.app(submits)
    async with started(app):
        await get(app, "/submits")
        await executor_of(app).join()
    assert ran == [1]
