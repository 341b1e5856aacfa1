"""Edges at the end of runs, waits and submits: what comes in just then, and what is left behind."""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked

from fifo_background import BackgroundTasks, Job, JobState, SerialExecutor
from tests.support.apps import app_of, check_idle, user
from tests.support.asgi import Client, get
from tests.support.log import Log

S = JobState
Respond = Callable[[], Awaitable[None]]


async def fails() -> None:
    raise ValueError("it fails")


# -- the next run ------------------------------------------------------------------------------------------


@contextmanager
def when_logged(text: str, act: Callable[[], object]) -> Iterator[None]:
    """Call `act` once, in a handler of the logger, at the first record, which has `text`."""

    class Acts(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            assert text in record.getMessage()
            logger.removeHandler(self)
            act()

    logger, handler = logging.getLogger("fifo_background"), Acts()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


async def test_logging_handler_adds_as_a_run_ends(events: list[Any]) -> None:
    """What a handler of the logger adds as the last task of a position ends runs next, in its context."""
    gate = anyio.Event()
    objects: list[BackgroundTasks] = []

    async def sets_and_fails() -> None:
        user.set("of the task")
        await anyio.sleep(0)
        raise ValueError("it fails")

    async def after(n: int) -> None:
        events.append((n, user.get()))

    def add() -> None:
        for n in range(3):
            objects[0].add_task(after, n)

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        objects.append(tasks)
        tasks.lane("other").add_task(gate.wait)  # the object's tasks have not ended
        tasks.add_task(sets_and_fails)
        await respond()
        await tasks()

    app = app_of(handle, wait=False, rest_after_failure="run")
    with when_logged("sets_and_fails failed", add):
        assert (await get(app)).error is None
        await wait_all_tasks_blocked()
    assert events == [(n, "of the task") for n in range(3)]
    gate.set()
    await app.executor.join()
    assert app.executor.is_open
    check_idle(app.executor)


async def test_task_cannot_be_started(monkeypatch: pytest.MonkeyPatch, anyio_backend_name: str) -> None:
    """A RecursionError where the loop starts a task fails that job, and is not taken for the loop's end."""
    async with SerialExecutor() as executor:
        assert await executor.submit_nowait(anyio.sleep, 0) is None

        def refuses(*args: Any, **options: Any) -> Any:
            raise RecursionError("maximum recursion depth exceeded")

        with monkeypatch.context() as patch:
            if anyio_backend_name == "trio":
                patch.setattr("trio.lowlevel.spawn_system_task", refuses)
            else:
                patch.setattr("fifo_background._run.backends.asyncio._start", refuses)
            job = executor.submit_nowait(anyio.sleep, 0)
            assert await job.wait() is S.FAILED
        assert type(job.exception()) is RecursionError
        assert executor.is_open
        assert await executor.submit_nowait(anyio.sleep, 0) is None
    check_idle(executor)


# -- a wait that waits for its slot ------------------------------------------------------------------------


async def test_cancelled_while_it_waits_for_its_slot(log: Log) -> None:
    """A task whose job has failed, and which is cancelled as it waits for its slot, leaves it to the log."""
    gate, failing = anyio.Event(), anyio.Event()

    async def fails_then() -> None:
        await failing.wait()
        await fails()

    async def waits() -> None:
        job = executor.lane("b").submit_nowait(fails_then)
        executor.lane("c").submit_nowait(gate.wait)
        with scope:
            await job

    async with SerialExecutor(max_lanes_running=1) as executor:
        scope = anyio.CancelScope()
        job = executor.lane("a").submit_nowait(waits)
        await wait_all_tasks_blocked()
        failing.set()
        await wait_all_tasks_blocked()
        assert executor.statistics().lanes["c"].running == "Event.wait"
        assert log == [], "the wait has it still"
        scope.cancel()
        await wait_all_tasks_blocked()
        assert [said.split("<locals>.")[-1] for said in log] == ["fails_then failed"]
        gate.set()
        assert await job.wait() is S.SUCCEEDED
    assert len(log) == 1
    check_idle(executor)


async def test_request_leaves_while_a_task_waits_for_its_slot(events: list[Any], log: Log) -> None:
    """A failure that a task will raise once it has its slot is not logged by the request that leaves."""
    gate, failing, waiting = anyio.Event(), anyio.Event(), anyio.Event()

    async def fails_then() -> None:
        await failing.wait()
        await fails()

    async def waits(job: Job[Any]) -> None:
        waiting.set()
        try:
            await job
        except ValueError as error:
            events.append(str(error))

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        job = tasks.lane("b").add_task(fails_then)
        tasks.lane("d").add_task(gate.wait)  # the request waits for this one, too
        app.executor.lane("a").submit_nowait(waits, job)
        app.executor.lane("c").submit_nowait(gate.wait)
        await waiting.wait()
        await respond()
        await tasks()

    app = app_of(handle, max_lanes_running=2)
    async with anyio.create_task_group() as group:
        exchange = await Client(app, group).start()
        await wait_all_tasks_blocked()
        failing.set()
        await wait_all_tasks_blocked()
        exchange.cancel_scope.cancel()
        await exchange.ended.wait()
        gate.set()
    await app.executor.join()
    assert events == ["it fails"]
    assert not [said for said in log if "failed" in said], "it is told once"
    check_idle(app.executor)


# -- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("why", ["wrong arguments", "cancelled", "pause in another thread"])
async def test_refused_leaves_no_lane(why: str) -> None:
    """Of a key for which nothing could be done nothing is kept."""

    def takes_one(n: int) -> None: ...

    async with SerialExecutor() as executor:
        await executor.submit_nowait(anyio.sleep, 0)
        lane = executor.lane("k")
        if why == "wrong arguments":
            with pytest.raises(TypeError):
                lane.submit_nowait(takes_one)  # type: ignore[call-arg]
            with pytest.raises(TypeError):
                await lane.submit(takes_one)  # type: ignore[call-arg]
        elif why == "cancelled":
            with anyio.CancelScope() as scope:
                scope.cancel()
                await lane.submit(takes_one, 1)
        else:
            refused: list[BaseException] = []

            def pause() -> None:
                try:
                    lane.pause()
                except RuntimeError as error:
                    refused.append(error)

            thread = threading.Thread(target=pause)
            thread.start()
            thread.join()
            assert len(refused) == 1
            await executor.submit_nowait(anyio.sleep, 0)
        assert executor._runner.scheduler.lanes.by_key == {}
    check_idle(executor)


async def test_wait_goes_on_where_the_lane_has_stopped(events: list[Any]) -> None:
    """Who waits for a request's task whose lane stops is told of its end alone, and not of the stop."""
    failing, waiting = anyio.Event(), anyio.Event()

    async def fails_then() -> None:
        await failing.wait()
        await fails()

    async def waits(job: Job[Any]) -> None:
        waiting.set()
        events.append(await job.wait())

    async def handle(path: str, respond: Respond) -> None:
        lane = app.executor.lane("k", after_failure="stop")
        lane.submit_nowait(fails_then)
        tasks = BackgroundTasks()
        job = tasks.lane("k").add_task(events.append, "ran")
        app.executor.lane("a").submit_nowait(waits, job)
        await waiting.wait()
        await respond()
        await tasks()

    app = app_of(handle)
    async with anyio.create_task_group() as group:
        exchange = await Client(app, group).start()
        failing.set()
        await exchange.ended.wait()
        await wait_all_tasks_blocked()
        assert events == []
        assert app.executor.lane("k").skip_head() is not None
    await app.executor.join()
    assert events == ["ran", S.SUCCEEDED]
    check_idle(app.executor)


async def test_failure_passed_over_by_its_request(log: Log) -> None:
    """A failure that a request left to another wait is logged, if that is cancelled later."""
    go = anyio.Event()
    jobs: dict[str, Job[Any]] = {}

    async def fails_later() -> None:
        await go.wait()
        raise ValueError("the second failure")

    async def waits() -> None:
        await jobs["second"]

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(fails)
        jobs["second"] = tasks.add_task(fails_later)
        jobs["waits"] = app.executor.lane("waits").submit_nowait(waits)
        await respond()
        with pytest.raises(ValueError, match="it fails"):
            await tasks()

    app = app_of(handle, rest_after_failure="run", max_lanes_running=1)
    async with anyio.create_task_group() as group:
        await Client(app, group).start()
        blocker = app.executor.lane("blocks").submit_nowait(anyio.sleep, 0.2)
        await wait_all_tasks_blocked()
        go.set()
        await jobs["second"].wait()
        await wait_all_tasks_blocked()
        assert jobs["waits"].cancel()
        await blocker
    await app.executor.join()
    assert [record for record in log if "fails_later failed" in record] != []
