"""The queue always moves: which request loses its position, when, and which does not."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio import wait_all_tasks_blocked
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from fifo_background import (
    BackgroundTask,
    BackgroundTasks,
)
from tests.support.apps import Buffers, Handlers, Work, app_of, check_idle, make_app, start
from tests.support.asgi import Client
from tests.support.log import Log


@pytest.mark.virtual_clock
async def test_hold(events: list[Any], log: Log) -> None:
    """The queue always moves: a handler that stalls delays ready tasks by at most `hold_timeout`, once."""
    handlers = Handlers(Work(events))
    handlers.second = handlers.work.quick  # virtual time does not wait for threads
    app = make_app(handlers.slow, hold_timeout=2.0)
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
        "WARNING GET /slow lost its position: it kept ready tasks waiting for more than 2 s without "
        "responding or running its own tasks. It takes a new position when its response has ended, "
        "for 1 task: Work.quick"
    ]


@pytest.mark.virtual_clock
async def test_late_requests_keep_their_position(events: list[Any], log: Log) -> None:
    """A busy lane never reorders the requests in its queue, however late they respond."""
    work = Work(events)
    handlers = Handlers(work)
    handlers.second = handlers.work.quick  # virtual time does not wait for threads
    app = make_app(handlers.slow, handlers.gated, hold_timeout=1.0)
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
    """A position that keeps no ready task waiting is never lost."""
    handlers = Handlers(Work(events))
    handlers.second = handlers.work.quick  # virtual time does not wait for threads
    app = make_app(handlers.slow, hold_timeout=1.0)
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


async def test_zero_hold(events: list[Any], log: Log) -> None:
    """With `hold_timeout=0` a request that has not responded never keeps a ready task waiting."""
    handlers = Handlers(Work(events))
    app = make_app(handlers.slow, hold_timeout=0)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        await start(client, "/slow", "a")
        handlers.respond["b"].set()
        await start(client, "/slow", "b")
        await handlers.jobs["b"]
        handlers.respond["a"].set()
    assert events == ["b0", "b1", "a0", "a1"]
    assert len(log) == 1


@pytest.mark.virtual_clock
async def test_own_background_keeps_the_position(events: list[Any], log: Log) -> None:
    """A request that runs a long task in its position is not stalling: it does not lose the position."""
    work = Work(events)

    async def handler(request: Request) -> Response:
        BackgroundTasks().add_task(events.append, "dropped")
        return Response(background=BackgroundTask(work.gated, 0))

    async def behind(request: Request) -> Response:
        return Response(background=BackgroundTask(work.quick, 1))

    app = make_app(handler, behind, inside=[Middleware(Buffers)], hold_timeout=1)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        await client.start("/handler")
        await client.start("/behind")
        await anyio.sleep(10)
        work.gate(0).set()
    assert events == ["start 0", "end 0", 1]
    assert [record for record in log if "lost its position" in record] == []


@pytest.mark.virtual_clock
async def test_each_head_has_its_own_time(events: list[Any], log: Log) -> None:
    """A head that is held is lost in its own time, however long the one before it might have stayed."""
    responds = anyio.Event()

    async def looks() -> None:
        events.append(round(anyio.current_time() - begin, 1))

    async def handle(path: str, respond: Any) -> None:
        tasks, never_awaited = BackgroundTasks(), BackgroundTasks()
        if path == "/ready":
            tasks.add_task(looks)
        elif path == "/second":
            tasks.add_task(anyio.sleep, 0)
            await responds.wait()
        else:
            tasks.add_task(anyio.sleep, 0.8)  # after it `hold_timeout` begins anew, up to 1.8
            never_awaited.add_task(anyio.sleep, 0)
        await respond()
        await tasks()
        if path == "/first":
            await anyio.sleep(0.1)

    app = app_of(handle, hold_timeout=1)
    begin = anyio.current_time()
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        for path in ("/first", "/second", "/ready"):
            await client.start(path)
        await anyio.sleep(5)
        responds.set()
    assert len(events) == 1
    assert 1.0 <= events[0] < 1.5  # not 1.8
    assert ["GET /second lost its position" in line for line in log] == [False, True]


@pytest.mark.virtual_clock
async def test_timer_of_a_lane_that_is_gone(events: list[Any]) -> None:
    """A lane whose held head was cancelled leaves no timer behind that a later lane of its key could meet."""

    async def cancel() -> None:
        held.cancel()

    async def slow(n: int) -> None:
        events.append(f"start {n}")
        await anyio.sleep(4)
        events.append(f"end {n}")

    async def handle(path: str, respond: Any) -> None:
        nonlocal held
        tasks = BackgroundTasks()
        if path == "/held":
            held = tasks.lane("x").add_task(events.append, "never")
            await anyio.sleep(1)
        else:
            tasks.lane("x").add_task(cancel)
            tasks.lane("y").add_task(cancel)
        await respond()
        await tasks()

    held: Any = None
    app = app_of(handle, hold_timeout=2)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        await client.start("/held")
        await client.start("/other")
    executor = app.executor
    executor.lane("x").submit_nowait(slow, 1)
    await anyio.sleep(3)
    executor.lane("x").submit_nowait(slow, 2)
    await executor.join()
    assert events == ["start 1", "end 1", "start 2", "end 2"]
    check_idle(executor)
    assert not executor._runner.scheduler.lanes.by_key


@pytest.mark.virtual_clock
async def test_lost_until_the_response(events: list[Any], log: Log) -> None:
    """A lost position is taken again when the response has ended, not by the next `add_task`."""

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, path)
        if path == "/slow":
            for _ in range(3):
                await anyio.sleep(3)
                tasks.add_task(events.append, path)
        await respond()
        await tasks()

    app = app_of(handle, hold_timeout=1)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        await client.start("/slow")
        for n in range(4):
            await client.start(f"/{n}")
            await anyio.sleep(2.4)
    assert events == ["/0", "/1", "/2", "/3", *["/slow"] * 4]
    assert len(log) == 1


@pytest.mark.virtual_clock
async def test_lost_before_any_task(log: Log) -> None:
    """A position that was taken on arrival and lost before any task is named without tasks."""

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        if path == "/slow":
            await anyio.sleep(3)
        tasks.add_task(print)
        await respond()
        await tasks()

    app = app_of(handle, order="arrived", may_add_tasks=lambda scope: True, hold_timeout=1)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        await client.start("/slow")
        await client.start("/ready")
    assert len(log) == 1
    assert log[0].endswith("It takes a new position when its response has ended")
