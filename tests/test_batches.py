"""Sync tasks go to a thread in batches, in the order of the queue, whatever is added or cancelled."""

from __future__ import annotations

import gc
import threading
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio import wait_all_tasks_blocked

from fifo_background import BackgroundTasks, Job, JobState, SerialExecutor
from fifo_background._core.invariants import check
from tests.support.apps import Work, app_of
from tests.support.asgi import Client, get


async def test_added_by_a_running_sync_task(events: list[Any]) -> None:
    """A sync task adds to its own list: the new task runs before tasks that the thread has in hand."""
    seen, added = threading.Event(), threading.Event()

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()

        def first() -> None:
            events.append(f"{path} first")
            if path == "/a":
                tasks.add_task(events.append, "/a added")
                added.set()
                assert seen.wait(10)

        tasks.add_task(first)
        await respond()
        await tasks()

    async def see() -> None:
        await anyio.to_thread.run_sync(added.wait, 10)
        await wait_all_tasks_blocked()  # the loop has heard of the new task
        seen.set()

    app = app_of(handle)
    gate = threading.Event()
    app_executor: SerialExecutor = app.executor
    app_executor.submit_nowait(gate.wait, 10)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        for path in ("/a", "/b", "/c"):
            await client.start(path)
        group.start_soon(see)
        gate.set()
    assert events == ["/a first", "/a added", "/b first", "/c first"]


async def test_nothing_is_given_past_an_async_task(events: list[Any]) -> None:
    """A sync task that becomes ready while a thread runs does not overtake an async one before it."""
    work = Work(events)
    jobs: list[Job[Any]] = []

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        if path == "/first":
            tasks.add_task(work.thread_gated, 0)
            jobs.append(tasks.add_task(work.sync, 1))
            tasks.add_task(work.quick, 2)
        else:
            tasks.add_task(work.sync, 3)
        await respond()
        await tasks()

    app = app_of(handle)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        await client.start("/first")
        assert jobs[0].cancel()
        await client.start("/second")
        work.thread_gate(0).set()
    assert events == ["start 0", "end 0", 2, 3]


@pytest.mark.parametrize("kind", ["pause", "fail", "cancel"])
async def test_batch_is_stopped(kind: str, events: list[Any]) -> None:
    """A pause, a failure or a cancel in the middle of a batch is seen by the thread that runs it."""
    work = Work(events)
    jobs: list[Job[Any]] = []

    def first() -> None:
        work.thread_gated(0)
        if kind == "fail":
            raise ValueError

    async with SerialExecutor(drain_timeout=5) as executor:
        lane = executor.lane("a", after_failure="stop" if kind == "fail" else "continue")
        jobs += [
            lane.submit_nowait(first),
            lane.submit_nowait(work.sync, 1),
            lane.submit_nowait(work.sync, 2),
        ]
        while jobs[0].state is not JobState.RUNNING:  # its thread may take its time
            await anyio.sleep(0)
        if kind == "pause":
            lane.pause()
        elif kind == "cancel":
            assert jobs[1].cancel()
        work.thread_gate(0).set()
        await jobs[0].wait()
        await wait_all_tasks_blocked()
        if kind == "cancel":
            await jobs[2]
            assert events == ["start 0", "end 0", 2]
        else:
            assert events == ["start 0", "end 0"]
            lane.resume() if kind == "pause" else lane.skip_head()
            await jobs[2]
            assert events == ["start 0", "end 0", 1, 2]


async def test_requests_that_arrive_and_add_nothing(events: list[Any]) -> None:
    """A request that arrived and added nothing leaves nothing in the queue behind a busy head."""
    work = Work(events)

    async def handle(path: str, respond: Any) -> None:
        await respond()

    app = app_of(handle, order="arrived", may_add_tasks=lambda scope: True)
    app.executor.submit_nowait(work.gated, 0)
    await wait_all_tasks_blocked()
    for _ in range(50):
        await get(app)
    await wait_all_tasks_blocked()
    gc.collect()
    scheduler = app.executor._runner.scheduler
    assert sum(1 for _ in scheduler.lanes.default) <= 1
    work.gate(0).set()
    await app.executor.join()
    check(scheduler)
