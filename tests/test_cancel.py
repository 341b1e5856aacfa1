"""Accepted tasks run: disconnects and cancels stop the waiting, not the tasks, and never let two overlap."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio import wait_all_tasks_blocked
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from fifo_background import (
    BackgroundTask,
    BackgroundTasks,
    Job,
    JobState,
    SerialExecutor,
    executor_of,
)
from fifo_background._run.groups import GROUPS
from tests.support.apps import Work, app_of, check_idle, make_app
from tests.support.asgi import Client, Exchange, get
from tests.support.log import Log


async def test_disconnect_and_cancel(events: list[Any]) -> None:
    """Accepted tasks run: once `await tasks()` is reached, a cancelled request only stops waiting."""
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
    """If only the waiting was interrupted, a later failure is logged, and raised to nobody."""
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
    assert log == [
        "WARNING GET /handler ended without running 1 task: list.append 1-… in the default lane: "
        "response interrupted"
    ]
    assert executor_of(app).statistics().unfinished == 0


async def test_streaming_client_leaves(events: list[Any]) -> None:
    """A stream whose client leaves, on ASGI 2.3, runs its tasks: its background is reached."""

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


async def test_native_cancel_in_mid_thread(events: list[Any]) -> None:
    """A task cancelled natively in mid-thread never overlaps the next one."""
    if "trio" in str(anyio.get_current_task()).lower() or not _on_asyncio():
        return  # trio has no native cancel
    before = asyncio.all_tasks()
    work = Work(events)
    executor = SerialExecutor()
    executor.submit_nowait(work.thread_gated, 0)
    last = executor.submit_nowait(work.sync, 1)
    while "start 0" not in events:
        await asyncio.sleep(0)
    for _ in range(3):
        for task in asyncio.all_tasks() - before:
            task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert events == ["start 0"]
    work.thread_gate(0).set()
    assert await last == 1
    assert events == ["start 0", "end 0", 1]


def _on_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def test_native_cancel_of_async_task(events: list[Any], log: Log) -> None:
    """An async task that is cancelled natively fails, and is logged although awaited; the next one runs."""
    if not _on_asyncio():
        return  # trio has no native cancel
    before = asyncio.all_tasks()
    work = Work(events)
    executor = SerialExecutor()
    first = executor.submit_nowait(work.gated, 0)
    last = executor.submit_nowait(work.quick, 1)
    await wait_all_tasks_blocked()
    for task in asyncio.all_tasks() - before:
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await last == 1
    assert (first.state, events) == (JobState.FAILED, ["start 0", 1])
    assert isinstance(first.exception(), asyncio.CancelledError)
    assert log == ["ERROR Work.gated failed"]


async def test_failure_as_the_wait_is_cancelled(log: Log) -> None:
    """A wait that had the failure and leaves by a cancel logs it, once."""

    async def fail() -> None:
        scope.cancel()
        raise ValueError("lost")

    async with SerialExecutor() as executor:
        with anyio.CancelScope() as scope:
            await executor.submit_nowait(fail)  # raises ValueError, if it is not cancelled
        await executor.join()
    assert log == ["ERROR test_failure_as_the_wait_is_cancelled.<locals>.fail failed"]
    info = log.records[0].exc_info
    assert info is not None
    assert str(info[1]) == "lost"


async def test_failure_as_the_request_is_cancelled(log: Log) -> None:
    """A request that had its task's failure and leaves by a cancel logs it, once, and names itself."""

    async def fail() -> None:
        await anyio.lowlevel.checkpoint()  # the request waits
        exchanges[0].cancel_scope.cancel()
        raise ValueError("lost")

    async def handler(request: Request) -> Response:
        return Response(background=BackgroundTask(fail))

    app = make_app(handler)
    exchanges = [Exchange(app, "/handler")]
    await exchanges[0].run()
    assert exchanges[0].error is None
    await executor_of(app).join()
    assert log == ["ERROR test_failure_as_the_request_is_cancelled.<locals>.fail failed (GET /handler)"]


class Cancellations(GROUPS[0]):  # type: ignore[misc]
    """A group of somebody's own, as libraries make them."""


@pytest.mark.parametrize("only", [True, False])
async def test_group_of_cancellations(only: bool, log: Log) -> None:
    """A cancelled task that raises a group, of its own class, of nothing but cancellations, was cancelled.

    With any other error in the group it has failed.
    """

    async def task() -> None:
        try:
            await anyio.sleep_forever()
        except BaseException as error:
            others: list[BaseException] = [] if only else [ValueError()]
            raise Cancellations("of two", [Cancellations("of one", [error]), *others]) from None

    async with SerialExecutor() as executor:
        job = executor.submit_nowait(task)
        await wait_all_tasks_blocked()
        assert job.cancel()
        assert await job.wait() is (JobState.CANCELLED if only else JobState.FAILED)
        assert await executor.submit_nowait(Work([]).quick, 1) == 1
    name = "test_group_of_cancellations.<locals>.task"
    assert log == [
        f"WARNING {name} 1-… in the default lane was cancelled" if only else f"ERROR {name} failed"
    ]


@pytest.mark.parametrize("inline", [False, True])
async def test_cancelled_part(inline: bool, events: list[Any]) -> None:
    """A part of a job that is cancelled before its turn tells who waits for it, and its callbacks."""
    work = Work(events)
    parts: list[Job[Any]] = []
    called: list[JobState] = []
    inner = BackgroundTasks()

    def add() -> None:
        parts.extend([inner.add_task(work.gated, 1), inner.add_task(work.quick, 2)])

    async def runs_inline() -> None:
        add()
        await inner()

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        if inline:
            tasks.add_task(runs_inline)
        else:
            add()
            tasks.add_task(inner)
        await respond()
        await tasks()

    async def wait() -> None:
        events.append(await parts[1].wait())

    app = app_of(handle)
    async with anyio.create_task_group() as group:
        exchange = await Client(app, group).start()
        assert events == ["start 1"]
        parts[1].add_done_callback(lambda job: called.append(job.state))
        group.start_soon(wait)
        await wait_all_tasks_blocked()
        assert parts[1].cancel()
        await wait_all_tasks_blocked()
        assert (events, called) == (["start 1", JobState.CANCELLED], [JobState.CANCELLED])
        work.gate(1).set()
    assert exchange.error is None
    assert events == ["start 1", JobState.CANCELLED, "end 1"]
    check_idle(app.executor)


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("when", ["added before", "added by it"])
async def test_job_that_cancels_itself_as_its_last_act(when: str, later: bool, events: list[Any]) -> None:
    """A job that cancels its own asyncio task and returns has succeeded; the next of its request runs on."""
    if not _on_asyncio():
        return  # trio has no native cancel
    jobs: list[Job[Any]] = []

    async def handle(path: str, respond: Any) -> None:
        async def cancels_itself() -> None:
            if later:
                await asyncio.sleep(0)
            if when == "added by it":
                jobs.append(tasks.add_task(goes_on))
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

        async def goes_on() -> None:
            await asyncio.sleep(0)
            events.append("went on")

        tasks = BackgroundTasks()
        jobs.append(tasks.add_task(cancels_itself))
        if when == "added before":
            jobs.append(tasks.add_task(goes_on))
        await respond()
        await tasks()

    app = app_of(handle)
    assert (await get(app)).error is None
    assert [job.state for job in jobs] == [JobState.SUCCEEDED] * 2
    assert events == ["went on"]
    check_idle(app.executor)
