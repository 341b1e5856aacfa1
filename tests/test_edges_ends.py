"""Edges at the end of runs, waits and submits: what comes in just then, and what is left behind."""

from __future__ import annotations

import logging
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
    """Call `act` once, in a handler of the logger, at the first record with `text`."""

    class Acts(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if text in record.getMessage():
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
