"""The request's context: copied once, where the request awaits its tasks."""

from __future__ import annotations

import contextvars
from contextvars import Context
from typing import Any

import anyio
import anyio.to_thread
import pytest
from starlette.requests import Request
from starlette.responses import Response

from fifo_background import (
    BackgroundTasks,
    SerialExecutor,
)
from tests.apps import app_of, make_app, user
from tests.asgi import Client, get
from tests.loops import LOOPS, run

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


@pytest.mark.parametrize("loop", LOOPS)
def test_empty_context(loop: str) -> None:
    """No task sees another's context, even if its own is empty."""
    seen: list[str] = []

    async def sets() -> None:
        user.set("alice")
        await anyio.lowlevel.checkpoint()

    async def looks() -> None:
        seen.append(user.get())

    async def main() -> None:
        async with SerialExecutor() as executor:
            executor.submit_nowait(sets)
            executor.submit_nowait(looks)

    Context().run(run, loop, main)
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
