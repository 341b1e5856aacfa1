"""A clean end: closing, joining, and who is in the middle of something."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio import wait_all_tasks_blocked
from starlette.requests import Request
from starlette.responses import Response

from fifo_background import (
    BackgroundTasks,
    ExecutorClosed,
    SerialExecutor,
    WouldDeadlock,
    executor_of,
)
from fifo_background._core.invariants import check
from tests.support.apps import Handlers, Work, app_of, make_app, start
from tests.support.asgi import Client, get
from tests.support.log import Log


@pytest.mark.parametrize("second", [True, False])
async def test_closing_gives_up_positions(second: bool, events: list[Any], log: Log) -> None:
    """Closing gives up held positions, in the queue or not, and refuses what is added or awaited later."""
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
    record = (
        "WARNING shutdown: dropped, as open requests or paused or stopped lanes held them: "
        "1 task: Work.quick 1-… in the default lane (GET /slow)"
    )
    assert log == [record, record]
    assert [executor_of(app).statistics().unfinished for app in apps] == [0, 0]


@pytest.mark.virtual_clock
@pytest.mark.parametrize("in_time", [True, False])
@pytest.mark.parametrize("order", ["added", "responded"])
async def test_closed_before_it_responded(order: str, in_time: bool, events: list[Any], log: Log) -> None:
    """Accepted tasks run: closing waits for the response of a request that has awaited its tasks."""
    responds = anyio.Event()

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(Work(events).quick, 1)
        await tasks()
        await responds.wait()
        await respond()

    async def close() -> None:
        await executor.aclose()
        events.append("closed")

    app = app_of(handle, order=order, drain_timeout=3)
    async with anyio.create_task_group() as group:
        exchange = await Client(app, group).start("/late")
        executor = app.executor
        group.start_soon(close)
        await anyio.sleep(2 if in_time else 4)
        assert events == ([] if in_time else ["closed"])
        responds.set()
    assert exchange.error is None
    if in_time:
        assert events == [1, "closed"]
        assert not any("dropped" in line for line in log)
    else:
        assert events == ["closed"]
        assert "WARNING shutdown: dropped 1 task: Work.quick 1-… in the default lane (GET /late)" in log
    assert executor.statistics().unfinished == 0


async def test_closing_twice(events: list[Any]) -> None:
    """A second call that closes an executor waits until the first one has closed it."""
    gate = anyio.Event()
    executor = SerialExecutor()

    async def close() -> None:
        await executor.aclose()
        events.append("closed")

    executor.submit_nowait(gate.wait)
    async with anyio.create_task_group() as group:
        group.start_soon(close)
        group.start_soon(close)
        await wait_all_tasks_blocked()
        assert events == []
        gate.set()
    await close()
    assert events == ["closed"] * 3


def test_closing_again_after_a_cancel() -> None:
    """If the call that closes the executor is cancelled, the next one closes it."""
    events: list[Any] = []

    async def main() -> None:
        executor = SerialExecutor()
        gate = asyncio.Event()
        executor.submit_nowait(gate.wait)
        executor.submit_nowait(events.append, 1)
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(executor.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        again = asyncio.ensure_future(executor.aclose())
        await asyncio.sleep(0)
        assert not again.done()
        gate.set()
        await again
        assert repr(executor) == "<SerialExecutor closed, 0 unfinished, 0 running>"

    asyncio.run(main())
    assert events == [1]


@pytest.mark.parametrize("paused", [False, True])
async def test_closing_while_many_wait_for_capacity(paused: bool) -> None:
    """However many `submit`s wait for capacity when the executor is closed, each gets `ExecutorClosed`."""
    executor = SerialExecutor(max_waiting=1)
    gate = anyio.Event()
    refused: list[Any] = []

    async def submit() -> None:
        try:
            await executor.submit(gate.wait)
        except ExecutorClosed as error:
            refused.append(error)

    async with anyio.create_task_group() as group:
        if paused:
            executor.lane("a").pause()
            executor.lane("a").submit_nowait(gate.wait)
        else:
            executor.submit_nowait(gate.wait)
            await wait_all_tasks_blocked()
            executor.submit_nowait(gate.wait)
        for _ in range(400):
            group.start_soon(submit)
        await wait_all_tasks_blocked()
        group.start_soon(executor.aclose)
        await wait_all_tasks_blocked()
        gate.set()
    assert len(refused) == 400
    statistics = executor.statistics()
    assert (statistics.unfinished, statistics.waiting, statistics.lanes) == (0, 0, {})
    assert executor._runner.scheduler.lanes.by_key == {}
    check(executor._runner.scheduler)


async def test_join_and_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """`join` does not miss the end of the last task, which a thread reports between two looks."""
    started, go_on = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        go_on.wait(5)

    async with SerialExecutor() as executor:
        job = executor.submit_nowait(work)
        while not started.is_set():
            await anyio.lowlevel.checkpoint()
        waiter = executor._runner.backend.waiter

        def slow_waiter() -> Any:
            made = waiter()
            go_on.set()
            while not job.done():
                pass
            return made

        with monkeypatch.context() as patch:
            patch.setattr(executor._runner.backend, "waiter", slow_waiter)
            with anyio.fail_after(5):
                await executor.join()


async def test_join_while_a_task_runs_elsewhere() -> None:
    """`join` ends when the last task runs inside a task of another executor."""
    responded = anyio.Event()

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(print, end="")
        await respond()
        responded.set()
        await wait_all_tasks_blocked()
        await own.submit_nowait(tasks)

    async def join() -> None:
        await responded.wait()
        await app.executor.join()

    app = app_of(handle)
    async with SerialExecutor() as own, anyio.create_task_group() as group:
        group.start_soon(join)
        assert (await get(app)).error is None


async def test_closing_says_what_it_drains(
    events: list[Any], log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    """Closing says at INFO how many tasks it drains, and for how long at most; nothing if there are none."""
    caplog.set_level(logging.INFO, "fifo_background")
    async with SerialExecutor(drain_timeout=7.5) as executor:
        for n in range(3):
            executor.submit_nowait(Work(events).quick, n)
    assert events == [0, 1, 2]
    assert log == ["INFO shutdown: draining 3 tasks, for at most 7.5 s (drain_timeout)"]
    async with SerialExecutor():
        pass
    assert len(log) == 1


async def test_closing_names_lanes_and_requests(events: list[Any], log: Log) -> None:
    """What closing drops is logged by name, lane and request; one paused while it closes is dropped, too."""
    work = Work(events)
    executors: list[SerialExecutor] = []

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.lane("a").add_task(work.quick, 1)
        tasks.lane("a").add_task(work.quick, 2)
        tasks.lane("b").add_task(work.gated, 3)
        tasks.lane("b").add_task(work.sync, 4)
        return Response(background=tasks)

    app = make_app(handler, rest_after_failure="run")
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        await client.start("/none")
        executors.append(executor_of(app))
        executors[0].lane("a").pause()
        exchange = await client.start("/handler")
        assert events == ["start 3"]
        group.start_soon(executors[0].aclose)
        await wait_all_tasks_blocked()
        executors[0].lane("b").pause()
        work.gate(3).set()
    assert exchange.error is None
    assert events == ["start 3", "end 3"]
    assert log == [
        "WARNING shutdown: dropped, as open requests or paused or stopped lanes held them: "
        "2 tasks: Work.quick 1-…, Work.quick 2-… in lane 'a' (GET /handler)",
        "WARNING shutdown: a paused or stopped lane dropped 1 task: Work.sync 4-… in lane 'b' (GET /handler)",
    ]


@pytest.mark.parametrize("call", ["aclose", "join"])
async def test_closing_inside_a_task(call: str) -> None:
    """`aclose` and `join` inside a task are refused at once: they would wait for that task."""

    async def task() -> None:
        await getattr(executor, call)()

    async with SerialExecutor() as executor:
        with anyio.fail_after(5), pytest.raises(WouldDeadlock, match=f"`{call}` waits for"):
            await executor.submit_nowait(task)
        assert executor.is_open
    assert not executor.is_open
