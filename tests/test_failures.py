"""Failures stay where they happen, and what is dropped is said."""

from __future__ import annotations

import dataclasses
from typing import Any

import anyio
import anyio.to_thread
import pytest
from starlette.requests import Request
from starlette.responses import Response

from fifo_background import (
    BackgroundTask,
    BackgroundTasks,
    Job,
    JobState,
    executor_of,
)
from tests.apps import Work, app_of, make_app
from tests.asgi import Client, get
from tests.conftest import Log


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


@pytest.mark.parametrize("order", ["added", "responded"])
async def test_handler_raises(order: str, events: list[Any], log: Log) -> None:
    """A handler that raises after `add_task` runs no task; they are named, and the line moves at once."""

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        jobs.append(tasks.add_task(events.append, 1))
        jobs.append(tasks.add_task(events.append, 2))
        raise ValueError("handler")

    async def fine(request: Request) -> Response:
        return Response(background=BackgroundTask(events.append, 3))

    jobs: list[Job[Any]] = []
    app = make_app(handler, fine, hold=1000, order=order)
    exchange = await get(app, "/handler")
    assert isinstance(exchange.error, ValueError)
    assert (await get(app, "/fine")).error is None
    assert events == [3]
    assert not executor_of(app).line.lane(None).outside
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


async def test_error_that_cannot_be_changed() -> None:
    """`.others` is left out where the class of the first error forbids it."""

    @dataclasses.dataclass(frozen=True)
    class Frozen(Exception):
        n: int

    def fails(n: int) -> None:
        raise Frozen(n)

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(fails, 1)
        tasks.add_task(fails, 2)
        await respond()
        await tasks()

    exchange = await get(app_of(handle, on_error="run_all"))
    assert isinstance(exchange.error, Frozen)
    assert exchange.error.n == 1


async def test_error_that_is_false() -> None:
    """An error reaches the server whatever its truth value is."""

    class Errors(Exception):
        def __len__(self) -> int:
            return 0

    def fails() -> None:
        raise Errors

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(fails)
        await respond()
        await tasks()

    assert isinstance((await get(app_of(handle))).error, Errors)
