"""The request's context: copied once, where the request awaits its tasks."""

from __future__ import annotations

import contextvars
import gc
import weakref
from contextvars import Context
from typing import Any

import anyio
import anyio.to_thread
import pytest
from starlette.requests import Request
from starlette.responses import Response

from fifo_background import (
    BackgroundTasks,
    OrderedBackgroundMiddleware,
    SerialExecutor,
)
from tests.support.apps import app_of, make_app, user
from tests.support.asgi import Client, Exchange, Send, get
from tests.support.log import Log

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


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


async def test_each_await_has_its_context(events: list[Any]) -> None:
    """A request's tasks see the context in which it awaits them, each object that of its own await."""

    async def look() -> None:
        events.append(user.get())

    async def handle(path: str, respond: Any) -> None:
        one, two = BackgroundTasks(), BackgroundTasks()
        one.add_task(look)
        two.add_task(look)
        await respond()
        for name, tasks in (("first", one), ("second", two)):
            user.set(name)
            await tasks()

    assert (await get(app_of(handle))).error is None
    assert events == ["first", "second"]


async def test_empty_context() -> None:
    """No task sees another's context, even if its own is empty."""
    seen: list[str] = []

    async def sets() -> None:
        user.set("alice")
        await anyio.lowlevel.checkpoint()

    async def looks() -> None:
        seen.append(user.get())

    async with SerialExecutor() as executor:
        for task in (sets, looks):
            Context().run(executor.submit_nowait, task)
    assert seen == ["nobody"]


async def test_context_of_a_retry(events: list[Any]) -> None:
    """A retried task of a request sees the context of the request, as the first time."""

    async def work() -> None:
        events.append(user.get())
        if len(events) == 1:
            raise ValueError

    async def handle(path: str, respond: Any) -> None:
        user.set("alice")
        tasks = BackgroundTasks()
        tasks.lane("a", after_failure="stop").add_task(work)
        await respond()
        await tasks()

    app = app_of(handle)
    async with anyio.create_task_group() as group:
        await Client(app, group).start()
        user.set("bob")
        app.executor.lane("a").retry_head()
        await app.executor.join()
    assert events == ["alice", "alice"]


async def test_retry_by_a_task_of_another_lane(events: list[Any]) -> None:
    """A task of another lane may retry what has failed, in the turn of the loop in which it failed."""

    async def repair() -> None:
        executor.lane("orders").retry_head()

    async def work() -> None:
        events.append(user.get())
        await anyio.lowlevel.checkpoint()
        if len(events) == 1:
            executor.lane("repair").submit_nowait(repair)
            raise ValueError

    user.set("alice")
    async with SerialExecutor() as executor:
        executor.lane("orders", after_failure="stop").submit_nowait(work)
        await executor.join()
    assert events == ["alice", "alice"]


async def request(app: Any, send: Send) -> None:
    """A request whose messages go to `send`."""
    exchange = Exchange(OrderedBackgroundMiddleware(app))
    await exchange.app(exchange.scope, exchange.receive, send)


async def test_server_keeps_a_context(events: list[Any]) -> None:
    """A context that a server keeps from the last `send`, as uvicorn's timers do, keeps no request alive."""
    kept: list[Context] = []
    requests: list[weakref.ref[Any]] = []

    async def task() -> None:
        events.append("task")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        requests.append(weakref.ref(scope["fifo_background"]))
        tasks = BackgroundTasks()
        tasks.add_task(task)
        await Response(b"", background=tasks)(scope, receive, send)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            user.set("by the server")
            kept.append(contextvars.copy_context())

    await request(app, send)
    assert events == ["task"]
    await anyio.wait_all_tasks_blocked()  # what the loop has yet to call has a context, too
    gc.collect()
    assert requests[0]() is None
    assert kept[0][user] == "by the server"


@pytest.mark.parametrize("fails", [False, True])
async def test_request_is_found_after_last_message(fails: bool, events: list[Any], log: Log) -> None:
    """What is made after the last message, sent or not, belongs to the request."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        try:
            await send({"type": "http.response.body"})
        except OSError:
            events.append("not sent")
        BackgroundTasks().add_task(events.append, "never")

    async def send(message: Any) -> None:
        if fails and message["type"] == "http.response.body":
            raise OSError("gone")

    await request(app, send)
    assert events == (["not sent"] if fails else [])
    assert [line[:52] for line in log] == ["WARNING GET / ended without running 1 task: list.app"]


async def test_last_message_from_another_task(events: list[Any]) -> None:
    """A response whose last message a task of the handler sends, in a context of its own."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, "task")
        await send({"type": "http.response.start", "status": 200})
        async with anyio.create_task_group() as group:
            group.start_soon(send, {"type": "http.response.body"})
        await tasks()
        BackgroundTasks().add_task(events.append, "never")

    async def send(message: Any) -> None:
        events.append(message["type"])

    await request(app, send)
    assert events == ["http.response.start", "http.response.body", "task"]


async def test_last_message_within_last_message(events: list[Any]) -> None:
    """A last message that is sent while another one is being passed on, in one context: both pass."""
    passed: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, "task")
        passed.append(send)
        await send({"type": "http.response.body"})
        await tasks()

    async def send(message: Any) -> None:
        events.append(message["type"])
        if len(events) == 1:
            await passed[0]({"type": "http.response.body"})

    await request(app, send)
    assert events == ["http.response.body", "http.response.body", "task"]
