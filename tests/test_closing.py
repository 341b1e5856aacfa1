"""A clean end: closing, joining, and who is in the middle of something."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio import wait_all_tasks_blocked

from fifo_background import (
    BackgroundTasks,
    ExecutorClosed,
    SerialExecutor,
    executor_of,
)
from tests.apps import Handlers, Work, app_of, make_app, start
from tests.asgi import Client, get
from tests.conftest import Log


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


async def test_closed_before_it_responded(events: list[Any], log: Log) -> None:
    """What was awaited, but has no place when the executor is closed, is dropped, and the log says why."""
    responds = anyio.Event()

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, 1)
        await tasks()
        await responds.wait()
        await respond()

    app = app_of(handle, order="responded")
    async with anyio.create_task_group() as group:
        await Client(app, group).start()
        await app.executor.aclose()
        responds.set()
    assert events == []
    assert log[-1].endswith("ended without running 1 task: list.append: the executor was closed")


async def test_closing_twice(events: list[Any]) -> None:
    """Whoever closes an executor that is being closed waits until it is."""
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
    """If whoever closes the executor is cancelled, the next one closes it."""
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
async def test_closing_while_many_wait_for_room(paused: bool) -> None:
    """However many `submit`s wait for room when the executor is closed, each gets `ExecutorClosed`."""
    executor = SerialExecutor(max_pending=1)
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
    assert (executor.line.unfinished, executor.line.waiting, list(executor.line.lanes)) == (0, 0, [None])


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
        waiter = executor._loop.waiter

        def slow_waiter() -> Any:
            made = waiter()
            go_on.set()
            while not job.state.ended:
                pass
            return made

        with monkeypatch.context() as patch:
            patch.setattr(executor._loop, "waiter", slow_waiter)
            with anyio.fail_after(5):
                await executor.join()


async def test_join_while_a_task_is_given_away() -> None:
    """`join` ends when the last task has gone to another executor."""
    responded = anyio.Event()

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(print, end="")
        await respond()
        responded.set()
        await wait_all_tasks_blocked()
        await own.submit_nowait(tasks).wait()

    async def join() -> None:
        await responded.wait()
        await app.executor.join()

    app = app_of(handle)
    async with SerialExecutor() as own, anyio.create_task_group() as group:
        group.start_soon(join)
        assert (await get(app)).error is None
