"""The guarantees, seen by requests: the app is ASGI, the client sees every message."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
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
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

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
from tests.asgi import Client, Exchange, get, http_scope
from tests.conftest import Log
from tests.test_executor import Work

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

Handler = Callable[[Request], Awaitable[Response]]


def make_app(*handlers: Handler, inside: list[Any] | None = None, **settings: Any) -> Starlette:
    """An app with one route per handler, named like it, and our middleware outside of `inside`."""
    return Starlette(
        routes=[Route(f"/{handler.__name__}", handler) for handler in handlers],
        middleware=[Middleware(OrderedBackgroundMiddleware, **settings), *(inside or [])],
    )


class Handlers:
    """Handlers that add tasks, some of which wait to be let go before they respond."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.second: Callable[[Any], Any] | None = work.sync
        self.jobs: dict[str, Job[Any]] = {}
        self.respond = {name: anyio.Event() for name in ("a", "b", "c")}

    async def slow(self, request: Request) -> Response:
        """Adds tasks named by the query, and responds when it may."""
        name = request.query_params["n"]
        tasks = BackgroundTasks()
        tasks.add_task(self.work.quick, f"{name}0")
        await self.respond[name].wait()
        if self.second is not None:
            self.jobs[name] = tasks.add_task(self.second, f"{name}1")
        return Response(name, background=tasks)

    async def gated(self, request: Request) -> Response:
        return Response(background=BackgroundTask(self.work.gated, int(request.query_params["n"])))


async def start(client: Client, path: str, n: object) -> Exchange:
    return await client.start(path, query_string=f"n={n}".encode())


async def test_one_line_for_all_requests(events: list[Any]) -> None:
    """First in, first out: a request's tasks stay together, in the place of its first `add_task`."""
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
    """`order="responded"`: a request takes its place when its response has ended."""
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


@pytest.mark.virtual_clock
async def test_hold(events: list[Any], log: Log) -> None:
    """The line always moves: a handler that stalls costs the line at most `hold`, once."""
    handlers = Handlers(Work(events))
    handlers.second = handlers.work.quick  # virtual time does not wait for threads
    app = make_app(handlers.slow, hold=2.0)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        begin = anyio.current_time()
        for name in "abc":
            await start(client, "/slow", name)
        for name in "bc":
            handlers.respond[name].set()
        while not events:
            await anyio.sleep(0.01)
        assert anyio.current_time() - begin == pytest.approx(2.0, abs=0.1)
        await anyio.sleep(100)
        assert events == ["b0", "b1", "c0", "c1"]
        handlers.respond["a"].set()
    assert events == ["b0", "b1", "c0", "c1", "a0", "a1"]
    assert log == [
        "WARNING GET /slow lost its place: it kept ready tasks waiting for more than 2 s without responding "
        "or running its own; when its response has ended it takes a new one, for 1 task: Work.quick"
    ]


@pytest.mark.virtual_clock
async def test_late_requests_keep_their_place(events: list[Any], log: Log) -> None:
    """A busy line never reorders the requests in it, however late they respond."""
    work = Work(events)
    handlers = Handlers(work)
    handlers.second = handlers.work.quick  # virtual time does not wait for threads
    app = make_app(handlers.slow, handlers.gated, hold=1.0)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        await start(client, "/gated", 0)
        await start(client, "/slow", "a")
        await start(client, "/slow", "b")
        handlers.respond["b"].set()
        await anyio.sleep(50)
        handlers.respond["a"].set()
        await wait_all_tasks_blocked()
        work.gate(0).set()
    assert events == ["start 0", "end 0", "a0", "a1", "b0", "b1"]
    assert log == []


@pytest.mark.virtual_clock
async def test_nothing_ready_behind(events: list[Any], log: Log) -> None:
    """A place that keeps no ready task waiting is never lost."""
    handlers = Handlers(Work(events))
    handlers.second = handlers.work.quick  # virtual time does not wait for threads
    app = make_app(handlers.slow, hold=1.0)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        await start(client, "/slow", "a")
        await start(client, "/slow", "b")
        await anyio.sleep(50)
        for name in "ab":
            handlers.respond[name].set()
            await wait_all_tasks_blocked()
    assert events == ["a0", "a1", "b0", "b1"]
    assert log == []


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


async def test_disconnect_and_cancel(events: list[Any]) -> None:
    """Owed is owed: once `await tasks()` is reached, a cancelled request only stops waiting."""
    work = Work(events)

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(work.gated, 0)
        tasks.add_task(work.sync, 1)
        return Response(background=tasks)

    app = make_app(handler)
    async with anyio.create_task_group() as group:
        exchange = await Client(app, group).start("/handler")
        exchange.cancel_scope.cancel()
        await exchange.ended.wait()
        assert events == ["start 0"]
        work.gate(0).set()
        await executor_of(app).join()
    assert events == ["start 0", "end 0", 1]


async def test_failure_after_the_wait_was_cancelled(events: list[Any], log: Log) -> None:
    """If only the waiting was interrupted, a later failure goes to our log alone."""
    work = Work(events)

    async def fail() -> None:
        await work.gated(0)
        raise ValueError("later")

    async def handler(request: Request) -> Response:
        return Response(background=BackgroundTask(fail))

    app = make_app(handler)
    async with anyio.create_task_group() as group:
        exchange = await Client(app, group).start("/handler")
        exchange.cancel_scope.cancel()
        await exchange.ended.wait()
        work.gate(0).set()
        await executor_of(app).join()
    assert exchange.error is None
    assert len(log) == 1
    assert log[0].endswith("fail failed (GET /handler)")


class _Interrupted(Exchange):
    """A client that is gone when the body comes."""

    async def send(self, message: dict[str, Any]) -> None:
        await super().send(message)
        if message["type"] == "http.response.body":
            raise OSError("gone")


@pytest.mark.parametrize("stream", [False, True])
async def test_response_interrupted(stream: bool, events: list[Any], log: Log) -> None:
    """If sending fails before the tasks are awaited, they are dropped and logged as interrupted."""

    async def chunks() -> AsyncIterator[str]:
        yield "x"

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, 1)
        return StreamingResponse(chunks(), background=tasks) if stream else Response(background=tasks)

    app = make_app(handler)
    exchange = _Interrupted(app, "/handler", asgi={"version": "3.0", "spec_version": "2.4"})
    await exchange.run()
    assert exchange.error is not None
    assert events == []
    assert log == ["WARNING GET /handler ended without running 1 task: list.append: response interrupted"]
    assert executor_of(app).line.unfinished == 0


async def test_streaming_client_leaves(events: list[Any]) -> None:
    """A stream whose client leaves, on ASGI 2.3, owes its tasks: its background is reached."""

    async def chunks() -> AsyncIterator[str]:
        yield "x"
        await anyio.sleep_forever()

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, 1)
        return StreamingResponse(chunks(), background=tasks)

    app = make_app(handler)
    async with anyio.create_task_group() as group:
        exchange = await Client(app, group).start("/handler")
        exchange.disconnected.set()
        await exchange.ended.wait()
    assert (events, exchange.error) == ([1], None)


async def test_handler_raises(events: list[Any], log: Log) -> None:
    """A handler that raises after `add_task` runs no task; they are named, and the line moves at once."""

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        jobs.append(tasks.add_task(events.append, 1))
        jobs.append(tasks.add_task(events.append, 2))
        raise ValueError("handler")

    async def fine(request: Request) -> Response:
        return Response(background=BackgroundTask(events.append, 3))

    jobs: list[Job[Any]] = []
    app = make_app(handler, fine, hold=1000)
    exchange = await get(app, "/handler")
    assert isinstance(exchange.error, ValueError)
    assert (await get(app, "/fine")).error is None
    assert events == [3]
    assert [job.state for job in jobs] == [JobState.DROPPED, JobState.DROPPED]
    assert log == [
        "WARNING GET /handler ended without running 2 tasks: list.append x2: it raised ValueError('handler')"
    ]


async def test_own_background(events: list[Any], log: Log) -> None:
    """A response with a background of its own drops the tasks that were added elsewhere, and says so."""

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, "lost")
        return Response(background=BackgroundTask(events.append, "own"))

    assert (await get(make_app(handler), "/handler")).error is None
    assert events == ["own"]
    assert log == [
        "WARNING GET /handler ended without running 1 task: list.append: its response did not carry them "
        "(it had a background of its own, or none was attached)"
    ]


@pytest.mark.parametrize("sync", [False, True])
async def test_skip_rest(sync: bool, events: list[Any], log: Log) -> None:
    """`on_error="skip_rest"`: the first failure skips the rest of the request, is raised, and logged once."""

    def fail_sync() -> None:
        raise error

    async def fail() -> None:
        raise error

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        jobs[:] = [
            tasks.add_task(events.append, 1),
            tasks.add_task(fail_sync if sync else fail),
            tasks.add_task(events.append, 2),
        ]
        return Response(background=tasks)

    error = ValueError("task")
    jobs: list[Job[Any]] = []
    exchange = await get(make_app(handler), "/handler")
    assert exchange.error is error
    assert events == [1]
    assert [job.state for job in jobs] == [JobState.SUCCEEDED, JobState.FAILED, JobState.SKIPPED]
    (record,) = log.records
    assert record.getMessage().endswith(" failed (GET /handler); skipped after it: 1 task: list.append")
    assert record.exc_info is not None
    assert record.exc_info[1] is error


async def test_run_all(events: list[Any], log: Log) -> None:
    """`on_error="run_all"`: all run, the first failure in time is raised, the others are in its `.others`."""

    async def fail(error: Exception) -> None:
        raise error

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        for error in errors:
            tasks.add_task(fail, error)
            tasks.add_task(events.append, str(error))
        return Response(background=tasks)

    errors = [ValueError("1"), KeyError("2"), OSError("3")]
    exchange = await get(make_app(handler, on_error="run_all"), "/handler")
    assert exchange.error is errors[0]
    assert exchange.error.others == (errors[1], errors[2])  # type: ignore[attr-defined]
    assert events == ["1", "'2'", "3"]
    assert len(log) == 3


async def test_failure_of_another_request(events: list[Any], log: Log) -> None:
    """Failures stay where they happen: a failing task never stops another request's tasks."""

    async def fail() -> None:
        await work.gated(0)
        raise ValueError

    async def failing(request: Request) -> Response:
        return Response(background=BackgroundTask(fail))

    async def fine(request: Request) -> Response:
        return Response(background=BackgroundTask(work.sync, 1))

    work = Work(events)
    app = make_app(failing, fine)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        failed, other = await client.start("/failing"), await client.start("/fine")
        work.gate(0).set()
    assert isinstance(failed.error, ValueError)
    assert other.error is None
    assert events == ["start 0", "end 0", 1]


async def test_context(events: list[Any]) -> None:
    """The request's context: tasks run in one copy of it, made when they are awaited."""

    async def look(value: str) -> None:
        events.append(variable.get())
        variable.set(value)

    def look_sync(value: str) -> None:
        events.append(variable.get())
        variable.set(value)

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(look, "by async 1")
        variable.set("request")
        tasks.add_task(look_sync, "by sync")
        tasks.add_task(look, "by async 2")
        tasks.add_task(look_sync, "by sync")
        tasks.add_task(look, "by async 3")
        variable.set("last")
        return Response(background=tasks)

    app = make_app(handler)
    await get(app, "/handler")
    expected = ["last", "by async 1", "by async 1", "by async 2", "by async 2"]
    assert events == expected
    await get(app, "/handler")
    assert events == expected * 2, "no task sees another request's"


async def test_detached(events: list[Any], log: Log) -> None:
    """Attached or detached: `wait=False` lets the request go as soon as its tasks are in line."""
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
    assert len(log) == 1


class _Buffers:
    """Holds back the last body message until the inner app has returned, as old BaseHTTPMiddleware does."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        held: list[Any] = []

        async def hold(message: Any) -> None:
            held.append(message)

        await self.app(scope, receive, hold)
        for message in held:
            await send(message)


async def test_held_back_response(events: list[Any], log: Log) -> None:
    """A middleware inside ours that holds back the response is no deadlock: the tasks run after it."""

    class Recorder(Exchange):
        async def send(self, message: dict[str, Any]) -> None:
            events.append(message["type"])

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks([BackgroundTask(events.append, 1)])
        tasks.add_task(events.append, 2)
        return Response(background=tasks)

    async def another(request: Request) -> Response:
        return await handler(request)

    app = make_app(handler, another, inside=[Middleware(_Buffers)])
    for path in ("/handler", "/another"):
        events.clear()
        await Recorder(app, path).run()
        assert events == ["http.response.start", "http.response.body", 1, 2]
    assert len(log) == 1, "one warning per app"
    assert "dependencies with yield may close before them" in log[0]


async def test_held_back_failure(events: list[Any]) -> None:
    """A failure of tasks that were handed over is raised to the server."""

    def fail() -> None:
        raise ValueError("task")

    async def handler(request: Request) -> Response:
        return Response(background=BackgroundTask(fail))

    exchange = await get(make_app(handler, inside=[Middleware(_Buffers)]), "/handler")
    assert isinstance(exchange.error, ValueError)


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("sync", [False, True])
async def test_base_http_middleware(outside: bool, sync: bool, events: list[Any]) -> None:
    """A `BaseHTTPMiddleware` inside or outside ours changes neither the order nor the outcome."""

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


async def test_native_cancel_in_mid_thread(events: list[Any]) -> None:
    """A task cancelled natively in mid-thread never overlaps the next one."""
    if "trio" in str(anyio.get_current_task()).lower() or not _on_asyncio():
        return  # trio has no native cancel
    work = Work(events)
    executor = SerialExecutor()
    executor.submit_nowait(work.thread_gated, 0)
    last = executor.submit_nowait(work.sync, 1)
    while "start 0" not in events:
        await asyncio.sleep(0)
    for _ in range(3):
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert events == ["start 0"]
    work.thread_gate(0).set()
    assert await last.wait() == 1
    assert events == ["start 0", "end 0", 1]


def _on_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def test_native_cancel_of_async_task(events: list[Any], log: Log) -> None:
    """An async task that is cancelled natively ends as cancelled, and the next one runs."""
    if not _on_asyncio():
        return  # trio has no native cancel
    work = Work(events)
    executor = SerialExecutor()
    first = executor.submit_nowait(work.gated, 0)
    last = executor.submit_nowait(work.quick, 1)
    await wait_all_tasks_blocked()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    assert await last.wait() == 1
    assert (first.state, events) == (JobState.CANCELLED, ["start 0", 1])
    assert log == ["WARNING Work.gated was cancelled"]


async def test_websocket(events: list[Any]) -> None:
    """A websocket holds no place: its tasks line up when the connection has ended."""

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        tasks = BackgroundTasks()
        tasks.add_task(events.append, "ws 1")
        other = BackgroundTasks()
        other.add_task(events.append, "ws 2")
        tasks.add_task(events.append, "ws 3")
        await websocket.receive_text()

    async def handler(request: Request) -> Response:
        return Response(background=BackgroundTask(events.append, "http"))

    app = Starlette(
        routes=[WebSocketRoute("/ws", endpoint), Route("/handler", handler)],
        middleware=[Middleware(OrderedBackgroundMiddleware)],
    )

    class Socket(Exchange):
        async def receive(self) -> dict[str, Any]:
            if not self._asked:
                self._asked = True
                return {"type": "websocket.connect"}
            await self.disconnected.wait()
            return {"type": "websocket.disconnect", "code": 1000}

    async with anyio.create_task_group() as group:
        socket = Socket(app, "/ws", type="websocket", subprotocols=[])
        group.start_soon(socket.run)
        await wait_all_tasks_blocked()
        await get(app, "/handler")
        assert events == ["http"]
        socket.disconnected.set()
        await socket.ended.wait()
    assert events == ["http", "ws 1", "ws 2", "ws 3"]
    assert type(socket.error).__name__ == "WebSocketDisconnect"


async def test_two_middlewares(events: list[Any], log: Log) -> None:
    """A request that passes two of our middlewares uses the outermost one; the inner one warns once."""

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
    """A clean end: at `lifespan.shutdown`, before the app's own code, the line is drained and closed."""
    work = Work(events)

    async def lifespan_app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"
        assert (await receive())["type"] == "lifespan.startup"
        executor = middleware.executor
        executor.submit_nowait(work.sync, 1)
        executor.submit_nowait(work.quick, 2)
        assert (await receive())["type"] == "lifespan.shutdown"
        events.append(repr(executor))

    middleware = OrderedBackgroundMiddleware(lifespan_app)
    for _ in range(2):  # an app can be started again in the same event loop
        messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

        async def receive(messages: Any = messages) -> Any:
            return next(messages)

        await middleware({"type": "lifespan"}, receive, None)  # type: ignore[arg-type]
        with pytest.raises(ExecutorClosed):
            middleware.executor.submit_nowait(print)
    assert events == [1, 2, "<SerialExecutor closed, 0 unfinished, 0 running>"] * 2


async def test_other_scopes(events: list[Any]) -> None:
    """What is neither http, websocket nor lifespan passes through."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        events.append(scope)

    await OrderedBackgroundMiddleware(app)({"type": "other"}, None, None)  # type: ignore[arg-type]
    assert events == [{"type": "other"}]


@pytest.mark.parametrize(
    ("setting", "error", "text"),
    [
        ({"order": "random"}, ValueError, "order='random': use one of 'added', 'arrived', 'responded'"),
        ({"on_error": "ignore"}, ValueError, "use one of 'skip_rest', 'run_all'"),
        ({"hold": -1}, ValueError, "hold=-1: give a finite number of seconds, 0 or more"),
        ({"hold": float("nan")}, ValueError, "hold=nan"),
        ({"hold": "5"}, TypeError, "hold='5': give a number of seconds"),
        ({"hold": True}, TypeError, "hold=True"),
        ({"wait": 1}, TypeError, "wait=1: give True or False"),
        ({"drain_timeout": float("inf")}, ValueError, "drain_timeout=inf"),
    ],
)
def test_bad_settings(setting: dict[str, Any], error: type[Exception], text: str) -> None:
    """A setting that cannot be is refused where it is given, with what can be."""
    with pytest.raises(error, match=text):
        OrderedBackgroundMiddleware(Starlette(), **setting)


async def test_zero_hold(events: list[Any], log: Log) -> None:
    """With `hold=0` a request that has not responded never keeps a ready task waiting."""
    handlers = Handlers(Work(events))
    app = make_app(handlers.slow, hold=0)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        await start(client, "/slow", "a")
        handlers.respond["b"].set()
        await start(client, "/slow", "b")
        await executor_of(app).wait_for(handlers.jobs["b"])
        handlers.respond["a"].set()
    assert events == ["b0", "b1", "a0", "a1"]
    assert len(log) == 1


async def test_foreign_thread_in_a_request(events: list[Any]) -> None:
    """`add_task` from a thread that is not the loop's raises, and the request's other tasks run."""
    errors: list[str] = []

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, 1)

        def add() -> None:
            try:
                tasks.add_task(events.append, 2)
            except RuntimeError as error:
                errors.append(str(error))

        thread = threading.Thread(target=add)
        thread.start()
        thread.join()
        await anyio.to_thread.run_sync(tasks.add_task, events.append, 3)
        return Response(background=tasks)

    await get(make_app(handler), "/handler")
    assert events == [1, 3]
    assert len(errors) == 1


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
    assert executor_of(app).line.lanes[None].first is None


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
    """An object made in one request and awaited in another runs in the other's place, which is later."""
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
    assert executor_of(app).line.unfinished == 0


async def test_executor_after_the_request() -> None:
    """`executor_of(request)` finds the app's executor after the request has ended, too."""
    kept: list[Request] = []

    async def handler(request: Request) -> Response:
        kept.append(request)
        return Response()

    app = make_app(handler)
    await get(app, "/handler")
    assert executor_of(kept[0]) is executor_of(app)


def test_loops_in_turn(events: list[Any]) -> None:
    """Each event loop has an executor of its own, however often they take turns."""

    async def handler(request: Request) -> Response:
        return Response(background=BackgroundTask(events.append, executor_of(request)))

    app = make_app(handler)
    loops = [asyncio.new_event_loop() for _ in range(2)]
    for loop in loops * 2:
        loop.run_until_complete(get(app, "/handler"))
    for loop in loops:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    assert events[:2] == events[2:]
    assert events[0] is not events[1]


async def test_websocket_without_tasks() -> None:
    """A websocket that ends with a disconnect and has no tasks ends as it would without us."""

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive_text()

    class Socket(Exchange):
        async def receive(self) -> dict[str, Any]:
            self._asked, asked = True, self._asked
            return {"type": "websocket.disconnect", "code": 1000} if asked else {"type": "websocket.connect"}

    app = Starlette(
        routes=[WebSocketRoute("/ws", endpoint)], middleware=[Middleware(OrderedBackgroundMiddleware)]
    )
    socket = await Socket(app, "/ws", type="websocket", subprotocols=[]).run()
    assert type(socket.error).__name__ == "WebSocketDisconnect"


@pytest.mark.parametrize("second", [True, False])
async def test_closing_gives_up_places(second: bool, events: list[Any], log: Log) -> None:
    """Closing gives up held places, in line or not, and refuses what is added or awaited after it."""
    handlers = Handlers(Work(events))
    if not second:
        handlers.second = None
    apps = [make_app(handlers.slow, order="added"), make_app(handlers.slow, order="responded")]
    async with anyio.create_task_group() as group:
        exchanges = [
            await start(Client(app, group), "/slow", name) for app, name in zip(apps, "ab", strict=True)
        ]
        for app in apps:
            await executor_of(app).aclose()
        for name in "ab":
            handlers.respond[name].set()
    assert events == []
    assert [type(exchange.error).__name__ for exchange in exchanges] == ["ExecutorClosed"] * 2
    assert log == [
        "WARNING the executor was closed, requests gave up their places, paused and stopped lanes what they "
        "kept: dropped 1 task: Work.quick",
        f"WARNING GET /slow ended without running 1 task: Work.quick: it raised {exchanges[1].error!r}",
    ]
    assert [executor_of(app).line.unfinished for app in apps] == [0, 0]


async def test_same_error_twice(events: list[Any], log: Log) -> None:
    """Two tasks that raise one and the same error make one error."""

    def fail() -> None:
        raise error

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(fail)
        tasks.add_task(fail)
        return Response(background=tasks)

    error = ValueError()
    exchange = await get(make_app(handler, on_error="run_all"), "/handler")
    assert exchange.error is error
    assert not hasattr(error, "others")
    assert len(log) == 2


async def test_websocket_that_awaits_its_tasks(events: list[Any]) -> None:
    """Tasks that a websocket endpoint awaits itself run once, when its connection has ended."""

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        tasks, rest = BackgroundTasks(), BackgroundTasks()
        tasks.add_task(events.append, "awaited")
        rest.add_task(events.append, "rest")
        await tasks()
        events.append("end")

    class Socket(Exchange):
        async def receive(self) -> dict[str, Any]:
            return {"type": "websocket.connect"}

    app = Starlette(
        routes=[WebSocketRoute("/ws", endpoint)], middleware=[Middleware(OrderedBackgroundMiddleware)]
    )
    socket = await Socket(app, "/ws", type="websocket", subprotocols=[]).run()
    assert socket.error is None
    assert sorted(events[1:]) == ["awaited", "rest"]
    assert events[0] == "end"


@pytest.mark.virtual_clock
async def test_own_background_keeps_the_place(events: list[Any], log: Log) -> None:
    """A request that runs a long task in its place is not stalling: it does not lose the place for it."""
    work = Work(events)

    async def handler(request: Request) -> Response:
        BackgroundTasks().add_task(events.append, "dropped")
        return Response(background=BackgroundTask(work.gated, 0))

    async def behind(request: Request) -> Response:
        return Response(background=BackgroundTask(work.quick, 1))

    app = make_app(handler, behind, inside=[Middleware(_Buffers)], hold=1)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        await client.start("/handler")
        await client.start("/behind")
        await anyio.sleep(10)
        work.gate(0).set()
    assert events == ["start 0", "end 0", 1]
    assert [record for record in log if "lost its place" in record] == []


def test_loops_of_both_kinds_in_turn(events: list[Any]) -> None:
    """An app that has run on asyncio can run on trio, and the other way round."""

    async def handler(request: Request) -> Response:
        return Response(background=BackgroundTask(events.append, 1))

    app = make_app(handler)
    for name in ("asyncio", "trio") * 2:
        gc.collect()
        exchange = anyio.run(get, app, "/handler", backend=name)
        assert exchange.error is None
    assert events == [1] * 4
