"""The guarantees, as requests see them: the app is ASGI, the client sees every message."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio import wait_all_tasks_blocked
from starlette.applications import Starlette
from starlette.background import BackgroundTasks as StarletteTasks
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from fifo_background import (
    BackgroundTask,
    BackgroundTasks,
    ExecutorClosed,
    Job,
    JobState,
    OrderedBackgroundMiddleware,
    SerialExecutor,
    executor_of,
)
from tests.support.apps import Buffers, Handlers, Work, app_of, check_idle, make_app, start
from tests.support.asgi import Client, Exchange, Lifespan, get, http_scope
from tests.support.log import Log


async def test_one_queue_for_all_requests(events: list[Any]) -> None:
    """First in, first out: a request's tasks stay together, in the position of its first `add_task`."""
    handlers = Handlers(Work(events))
    app = make_app(handlers.slow)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        exchanges = [await start(client, "/slow", name) for name in "abc"]
        for name in "cba":
            assert events == []
            handlers.respond[name].set()
            await wait_all_tasks_blocked()
    assert events == ["a0", "a1", "b0", "b1", "c0", "c1"]
    assert [exchange.status for exchange in exchanges] == [200, 200, 200]


async def test_order_responded(events: list[Any]) -> None:
    """`order="responded"`: a request takes its position when its response has ended."""
    handlers = Handlers(Work(events))
    app = make_app(handlers.slow, order="responded")
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        for name in "abc":
            await start(client, "/slow", name)
        for name in "cba":
            handlers.respond[name].set()
            await wait_all_tasks_blocked()
    assert events == ["c0", "c1", "b0", "b1", "a0", "a1"]
    check_idle(executor_of(app))


async def test_after_the_response(events: list[Any]) -> None:
    """After the response: no task starts before the last message has passed the middleware."""
    sending = anyio.Event()

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, "task")
        return Response("x", background=tasks)

    class SlowClient(Exchange):
        async def send(self, message: dict[str, Any]) -> None:
            events.append(message["type"])
            await sending.wait()
            events.append("sent")

    app = make_app(handler)
    async with anyio.create_task_group() as group:
        exchange = SlowClient(app, "/handler")
        group.start_soon(exchange.run)
        await wait_all_tasks_blocked()
        assert events == ["http.response.start"]
        sending.set()
    assert events == ["http.response.start", "sent", "http.response.body", "sent", "task"]


@pytest.mark.parametrize(
    "messages",
    [
        [
            {"type": "http.response.start", "status": 200, "trailers": True},
            {"type": "http.response.body"},
            {"type": "http.response.trailers", "more_trailers": True},
            {"type": "http.response.trailers"},
        ],
        [{"type": "http.response.start", "status": 200}, {"type": "http.response.pathsend", "path": "/x"}],
        [
            {"type": "http.response.start", "status": 200},
            {"type": "http.response.body", "more_body": True},
            {"type": "http.response.zerocopysend", "file": 1},
        ],
        [
            {"type": "http.response.start", "status": 200},
            {"type": "http.response.body", "more_body": True},
            {"type": "http.response.body", "more_body": False},
        ],
    ],
)
async def test_last_message(messages: list[dict[str, Any]], events: list[Any]) -> None:
    """The last message is the body without `more_body`, the last trailers, or `pathsend`."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, "task")
        for message in messages:
            await send(message)
            await wait_all_tasks_blocked()
            events.append((message["type"], scope["fifo_background"].stage.value))
        await tasks()

    await get(OrderedBackgroundMiddleware(app))
    assert [stage for _, stage in events[:-1]] == ["handling"] * (len(messages) - 1) + ["responded"]
    assert events[-1] == "task"


async def test_first_ends_while_second_runs(events: list[Any]) -> None:
    """The outcome of a finished sync task reaches its request while the next one runs."""
    work = Work(events)

    async def quick(request: Request) -> Response:
        return Response(background=BackgroundTask(work.sync, 1))

    async def blocking(request: Request) -> Response:
        return Response(background=BackgroundTask(work.thread_gated, 2))

    async def first(request: Request) -> Response:
        return Response(background=BackgroundTask(work.thread_gated, 0))

    app = make_app(first, quick, blocking)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        exchanges = [await client.start(path) for path in ("/first", "/quick", "/blocking")]
        work.thread_gate(0).set()
        await exchanges[1].ended.wait()
        assert not exchanges[2].ended.is_set()
        work.thread_gate(2).set()
    assert events == ["start 0", "end 0", 1, "start 2", "end 2"]


async def test_detached(events: list[Any], log: Log) -> None:
    """Attached or detached: `wait=False` lets the request go as soon as its tasks are queued."""
    work = Work(events)

    async def fail() -> None:
        raise ValueError

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(work.gated, 0)
        tasks.add_task(fail)
        return Response(background=tasks)

    app = make_app(handler, wait=False)
    exchange = await get(app, "/handler")
    assert exchange.error is None
    work.gate(0).set()
    await executor_of(app).join()
    assert events == ["start 0", "end 0"]
    assert [line.rsplit(".", 1)[-1] for line in log] == ["fail failed (GET /handler)"]
    assert [record.levelname for record in log.records] == ["ERROR"]
    assert log.records[0].exc_info is not None


async def test_held_back_response(events: list[Any], log: Log) -> None:
    """A middleware inside this one that holds back the response is no deadlock: the tasks run after it."""

    class Recorder(Exchange):
        async def send(self, message: dict[str, Any]) -> None:
            events.append(message["type"])

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks([BackgroundTask(events.append, 1)])
        tasks.add_task(events.append, 2)
        return Response(background=tasks)

    async def another(request: Request) -> Response:
        return await handler(request)

    app = make_app(handler, another, inside=[Middleware(Buffers)])
    for path in ("/handler", "/another"):
        events.clear()
        await Recorder(app, path).run()
        assert events == ["http.response.start", "http.response.body", 1, 2]
    assert len(log) == 1, "one warning per app"
    assert "dependencies with yield may close before them" in log[0]


async def test_held_back_failure(log: Log) -> None:
    """A failure of tasks that were handed over is raised to the server, and not logged."""

    def fail() -> None:
        raise ValueError("task")

    async def handler(request: Request) -> Response:
        return Response(background=BackgroundTask(fail))

    exchange = await get(make_app(handler, inside=[Middleware(Buffers)]), "/handler")
    assert isinstance(exchange.error, ValueError)
    assert [record.levelname for record in log.records] == ["WARNING"]  # of the response held back


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("sync", [False, True])
async def test_base_http_middleware(outside: bool, sync: bool, events: list[Any]) -> None:
    """A `BaseHTTPMiddleware` inside or outside this middleware changes neither the order nor the outcome."""

    class Base(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            response: Response = await call_next(request)
            return response

    async def append(n: int) -> None:
        events.append(n)

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(events.append if sync else append, 1)
        tasks.add_task(append, 2)
        return PlainTextResponse("x", background=tasks)

    ours, base = Middleware(OrderedBackgroundMiddleware), Middleware(Base)
    app = Starlette(
        routes=[Route("/handler", handler)],
        middleware=[base, base, ours] if outside else [ours, base, base],
    )
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        exchanges = [await client.start("/handler") for _ in range(3)]
    assert events == [1, 2] * 3
    assert [(exchange.status, exchange.error) for exchange in exchanges] == [(200, None)] * 3


async def test_two_middlewares(events: list[Any], log: Log) -> None:
    """Of two `OrderedBackgroundMiddleware` the outermost one is used; one warning names the other."""

    async def handler(request: Request) -> Response:
        seen.append(executor_of(request))
        return Response(background=BackgroundTask(events.append, 1))

    seen: list[SerialExecutor] = []
    inner = make_app(handler)
    outer = Starlette(routes=[Mount("/inner", inner)], middleware=[Middleware(OrderedBackgroundMiddleware)])
    for _ in range(2):
        await get(outer, "/inner/handler")
    assert events == [1, 1]
    assert set(seen) == {executor_of(outer)}
    assert len(log) == 1
    assert "passes two OrderedBackgroundMiddleware" in log[0]


async def test_executor_of(events: list[Any]) -> None:
    """`executor_of` finds the app's executor from the app, a request, a thread, and the lifespan."""
    found: list[SerialExecutor] = []

    async def handler(request: Request) -> Response:
        found.append(executor_of(request))
        found.append(executor_of(request.app))
        found.append(await anyio.to_thread.run_sync(executor_of, request))
        found.append(await anyio.to_thread.run_sync(executor_of, request.app))
        return Response()

    app = make_app(handler)
    await get(app, "/handler")
    assert set(found) == {executor_of(app)}
    with pytest.raises(LookupError, match=r"app.add_middleware\(OrderedBackgroundMiddleware\)"):
        executor_of(Starlette())


async def test_lifespan(events: list[Any], log: Log) -> None:
    """A clean end: at `lifespan.shutdown`, before the app's own code, the executor is drained and closed."""
    work = Work(events)

    async def lifespan_app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"
        assert (await receive())["type"] == "lifespan.startup"
        executor = middleware.executor
        executor.submit_nowait(work.sync, 1)
        executor.submit_nowait(work.quick, 2)
        assert (await receive())["type"] == "lifespan.shutdown"
        events.append(repr(executor))
        executors.append(executor)
        with pytest.raises(ExecutorClosed):
            middleware.executor.submit_nowait(print)

    executors: list[SerialExecutor] = []
    middleware = OrderedBackgroundMiddleware(lifespan_app)
    for _ in range(2):  # an app can be started again in the same event loop
        messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

        async def receive(messages: Any = messages) -> Any:
            return next(messages)

        await middleware({"type": "lifespan"}, receive, None)  # type: ignore[arg-type]
        with pytest.raises(ExecutorClosed):
            executors[-1].submit_nowait(print)
    assert executors[0] is not executors[1]
    assert middleware.executor not in executors, "after the lifespan the app gets a fresh executor"
    assert middleware.executor.is_open
    assert events == [1, 2, "<SerialExecutor closed, 0 unfinished, 0 running>"] * 2


async def test_other_scopes(events: list[Any]) -> None:
    """A scope that is neither http, websocket nor lifespan passes through."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        events.append(scope)

    await OrderedBackgroundMiddleware(app)({"type": "other"}, None, None)  # type: ignore[arg-type]
    assert events == [{"type": "other"}]


@pytest.mark.parametrize(
    ("setting", "error", "text"),
    [
        ({"order": "random"}, ValueError, "order='random': use one of 'added', 'arrived', 'responded'"),
        ({"rest_after_failure": "ignore"}, ValueError, "='ignore': use one of 'skip', 'run'"),
        ({"lane_after_failure": "next"}, ValueError, "'next': use one of 'continue', 'stop'"),
        ({"hold_timeout": -1}, ValueError, "hold_timeout=-1: give a finite number of seconds, 0 or more"),
        ({"hold_timeout": float("nan")}, ValueError, "hold_timeout=nan"),
        ({"hold_timeout": "5"}, TypeError, "hold_timeout='5': give a number of seconds"),
        ({"hold_timeout": True}, TypeError, "hold_timeout=True"),
        ({"wait": 1}, TypeError, "wait=1: give True or False"),
        ({"drain_timeout": float("inf")}, ValueError, "drain_timeout=inf"),
        ({"engine": "postgresql://secret"}, TypeError, "engine=: give an engine, .*not a value of type str$"),
        ({"engine": SerialExecutor}, TypeError, "engine=: give an engine, .*, not a class"),
        ({"lane_key": anyio.sleep}, TypeError, "give a plain function of the ASGI scope, not an async one"),
    ],
)
def test_bad_settings(setting: dict[str, Any], error: type[Exception], text: str) -> None:
    """An invalid setting is refused where it is given, with the valid ones."""
    with pytest.raises(error, match=text):
        OrderedBackgroundMiddleware(Starlette(), **setting)


async def test_foreign_thread_in_a_request(events: list[Any]) -> None:
    """`add_task` may be called from any thread: the task runs in the request's position, in order."""
    jobs: list[Job[Any]] = []

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, 1)

        def add() -> None:
            jobs.append(tasks.add_task(events.append, 2))

        thread = threading.Thread(target=add)
        thread.start()
        thread.join()
        await anyio.to_thread.run_sync(tasks.add_task, events.append, 3)
        return Response(background=tasks)

    assert (await get(make_app(handler), "/handler")).error is None
    assert events == [1, 2, 3]
    assert [job.state for job in jobs] == [JobState.SUCCEEDED]


async def test_scope_is_kept() -> None:
    """The scope, `receive` and the messages pass as they are."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.zerocopysend", "file": 1})
        await send({"type": "http.response.body"})

    exchange = await get(OrderedBackgroundMiddleware(app))
    assert seen[0] is exchange.scope
    assert [message["type"] for message in exchange.messages] == [
        "http.response.start",
        "http.response.zerocopysend",
        "http.response.body",
    ]
    assert http_scope().items() <= exchange.scope.items()


async def test_plain_tasks_stay_plain(events: list[Any]) -> None:
    """Starlette's own class, in the same app, stays what it is."""

    async def handler(request: Request) -> Response:
        tasks = StarletteTasks()
        tasks.add_task(events.append, 1)
        return Response(background=tasks)

    app = make_app(handler)
    await get(app, "/handler")
    assert events == [1]
    check_idle(executor_of(app))


async def test_same_scope_twice(events: list[Any], log: Log) -> None:
    """A scope that is used for two requests, at once or one after the other, is two requests."""
    work = Work(events)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await Response(background=BackgroundTask(work.gated, len(exchanges)))(scope, receive, send)

    middleware = OrderedBackgroundMiddleware(app)
    exchanges: list[Exchange] = []
    async with anyio.create_task_group() as group:
        for _ in range(2):
            exchange = Exchange(middleware)
            exchange.scope = exchanges[0].scope if exchanges else exchange.scope
            exchanges.append(exchange)
            group.start_soon(exchange.run)
            await wait_all_tasks_blocked()
        assert events == ["start 1"]
        for n in (1, 2):
            work.gate(n).set()
    again = Exchange(middleware)
    again.scope = exchanges[0].scope
    await again.run()
    assert events == ["start 1", "end 1", "start 2", "end 2", "start 2", "end 2"]
    assert [exchange.error for exchange in (*exchanges, again)] == [None] * 3
    assert log == []


async def test_two_last_messages(events: list[Any]) -> None:
    """A response ends once, and not again when its request has ended."""
    kept: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, 1)
        for _ in range(2):
            await send({"type": "http.response.body"})
        await tasks()
        kept.extend((send, BackgroundTasks()))

    await get(OrderedBackgroundMiddleware(app, order="responded"))
    assert events == [1]
    send, tasks = kept
    await send({"type": "http.response.body"})
    with pytest.raises(RuntimeError, match="had ended"):
        tasks.add_task(events.append, 2)


async def test_awaited_in_another_request(events: list[Any], log: Log) -> None:
    """An object made in one request and awaited in another runs in the other's position, which is later."""
    kept: list[BackgroundTasks] = []

    async def makes(request: Request) -> Response:
        kept.append(BackgroundTasks())
        kept[0].add_task(events.append, 1)
        await request.is_disconnected()
        await gate.wait()
        return Response()

    async def awaits(request: Request) -> Response:
        return Response(background=kept[0])

    async def between(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, "between")
        await between_may_respond.wait()
        return Response(background=tasks)

    gate, between_may_respond = anyio.Event(), anyio.Event()
    app = make_app(makes, between, awaits)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        first = await client.start("/makes")
        await client.start("/between")
        await client.start("/awaits")
        first.disconnected.set()
        gate.set()
        await wait_all_tasks_blocked()
        between_may_respond.set()
    assert events == ["between", 1]
    check_idle(executor_of(app))


async def test_executor_after_the_request() -> None:
    """`executor_of(request)` also finds the app's executor after the request has ended."""
    kept: list[Request] = []

    async def handler(request: Request) -> Response:
        kept.append(request)
        return Response()

    app = make_app(handler)
    await get(app, "/handler")
    assert executor_of(kept[0]) is executor_of(app)


async def test_handed_over_together() -> None:
    """Of two objects that were awaited before the response, the first failure reaches the server."""

    def fails() -> None:
        raise ZeroDivisionError

    async def handle(path: str, respond: Any) -> None:
        one, two = BackgroundTasks(), BackgroundTasks()
        one.add_task(fails)
        two.lane("other").add_task(print, end="")
        await one()
        await two()
        await respond()

    assert isinstance((await get(app_of(handle))).error, ZeroDivisionError)


async def test_lifespan_that_starts_while_another_drains(events: list[Any]) -> None:
    """A lifespan that starts while the app's last one drains waits for its end, and gets a fresh executor."""
    work = Work(events)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "lifespan.startup"
        events.append("startup")
        executors.append(middleware.executor)
        assert (await receive())["type"] == "lifespan.shutdown"
        events.append("shutdown")

    executors: list[SerialExecutor] = []
    middleware = OrderedBackgroundMiddleware(app)
    lifespans = [Lifespan(middleware) for _ in range(3)]
    async with anyio.create_task_group() as group:
        group.start_soon(lifespans[0].run)
        await wait_all_tasks_blocked()
        executors[0].submit_nowait(work.gated, 1)
        lifespans[0].shutdown.set()
        await wait_all_tasks_blocked()
        for lifespan in lifespans[1:]:
            group.start_soon(lifespan.run)
        await wait_all_tasks_blocked()
        assert events == ["startup", "start 1"]
        with pytest.raises(ExecutorClosed):
            middleware.executor.submit_nowait(print)
        work.gate(1).set()
        await lifespans[0].ended.wait()
        await wait_all_tasks_blocked()
        assert events[2:] == ["end 1", "shutdown", "startup", "startup"]
        assert executors[1] is executors[2] is middleware.executor
        assert executors[1] is not executors[0]
        assert executors[1].is_open
        lifespans[1].shutdown.set()
        await lifespans[1].ended.wait()
        assert executors[1].is_open, "the other lifespan runs"
        lifespans[2].shutdown.set()
    assert not executors[1].is_open


async def test_lifespan_that_only_begins(events: list[Any]) -> None:
    """An app whose lifespan returns, or raises, before it is told to shut down keeps its executor."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if raises:
            raise ValueError

    for raises in (False, True):
        middleware = OrderedBackgroundMiddleware(app)
        executor = middleware.executor
        lifespan = Lifespan(middleware)
        await lifespan.run()
        assert lifespan.sent == ["ValueError()"] * raises
        assert middleware.executor is executor
        await executor.submit_nowait(events.append, raises)
        await executor.aclose()
    assert events == [False, True]


def test_executor_in_a_thread_without_a_loop() -> None:
    """A thread without a loop finds the app's only executor; with none or two, the error says how else."""

    app = make_app()
    middleware: Any = OrderedBackgroundMiddleware(app)

    async def here() -> SerialExecutor:
        executor: SerialExecutor = middleware.executor
        return executor

    with pytest.raises(RuntimeError, match=r"no executor yet: .*`executor_of\(request\)` in a handler"):
        executor_of(middleware)
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        executor = first.run_until_complete(here())
        assert executor_of(middleware) is executor
        other = second.run_until_complete(here())
        assert other is not executor
        with pytest.raises(RuntimeError, match=r"executors in 2 event loops.*use `executor_of\(request\)`"):
            executor_of(middleware)
        first.close()
        assert executor_of(middleware) is other
    finally:
        first.close()
        second.close()


@pytest.mark.parametrize("order", ["added", "arrived"])
@pytest.mark.parametrize("key", ["path_params", "other"])
async def test_lane_key_that_raises(order: str, key: str, events: list[Any]) -> None:
    """What `lane_key` raises reaches the handler, or with "arrived" the server, which is told why."""

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        with pytest.raises(KeyError) as caught:
            tasks.add_task(events.append, 1)
        assert caught.value.args == (key,)
        await respond()
        await tasks()

    def lane_key(scope: Any) -> Any:
        return scope[key]

    may_add: Any = {"may_add_tasks": bool} if order == "arrived" else {}
    app = app_of(handle, order=order, lane_key=lane_key, **may_add)
    error = (await get(app)).error
    if order == "added":
        assert error is None
    else:
        assert isinstance(error, KeyError)
        assert ("asked before routing" in str(error)) is (key == "path_params")
    assert events == []
    check_idle(app.executor)


async def test_lane_key_that_gives_a_coroutine(events: list[Any]) -> None:
    """A `lane_key` that turns out to be async is refused where the first task is added."""

    async def key() -> str:
        return "a"

    async def handle(path: str, respond: Any) -> None:
        with pytest.raises(TypeError, match="give a plain function, not an async one"):
            BackgroundTasks().add_task(events.append, 1)
        await respond()

    made = key()
    app = app_of(handle, lane_key=lambda scope: made)
    assert (await get(app)).error is None
    assert (await made, events) == ("a", [])
