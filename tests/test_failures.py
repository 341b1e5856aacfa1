"""Failures stay where they happen, and what is dropped is said."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import traceback
import weakref
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio import wait_all_tasks_blocked
from starlette.requests import Request
from starlette.responses import Response

from fifo_background import (
    BackgroundTask,
    BackgroundTasks,
    Job,
    JobState,
    SerialExecutor,
    executor_of,
)
from tests.support.apps import Work, app_of, make_app, user
from tests.support.asgi import Client, get
from tests.support.log import Log
from tests.support.loops import LOOPS

SKIPPED_AFTER = " failed (GET /handler); skipped after it: 1 task: list.append 3-… in the default lane"


@pytest.mark.parametrize("sync", [False, True])
async def test_skip_rest(sync: bool, events: list[Any], log: Log) -> None:
    """`rest_after_failure="skip"`: the first failure skips the rest of the request, and is raised."""

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
    assert record.levelname == "WARNING"
    assert log[0].endswith(("fail_sync" if sync else "fail") + SKIPPED_AFTER)
    assert not record.exc_info


async def test_run_all(events: list[Any], log: Log) -> None:
    """`rest_after_failure="run"`: all run, the failure that came first is raised, each other is logged."""

    async def fail(error: Exception) -> None:
        raise error

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        for error in errors:
            tasks.add_task(fail, error)
            tasks.add_task(events.append, str(error))
        return Response(background=tasks)

    errors = [ValueError("1"), KeyError("2"), OSError("3")]
    exchange = await get(make_app(handler, rest_after_failure="run"), "/handler")
    assert exchange.error is errors[0]
    assert vars(exchange.error) == {}
    assert events == ["1", "'2'", "3"]
    assert log == ["ERROR test_run_all.<locals>.fail failed (GET /handler)"] * 2
    for record, error in zip(log.records, errors[1:], strict=True):
        assert record.exc_info is not None
        assert record.exc_info[1] is error
        assert record.exc_info[2] is not None


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
    """Two tasks that raise one and the same error are two failures: one is raised, the other logged."""

    def fail() -> None:
        raise error

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(fail)
        tasks.add_task(fail)
        return Response(background=tasks)

    error = ValueError()
    exchange = await get(make_app(handler, rest_after_failure="run"), "/handler")
    assert exchange.error is error
    assert vars(error) == {}
    (record,) = log.records
    assert record.exc_info is not None
    assert record.exc_info[1] is error


@pytest.mark.parametrize("order", ["added", "responded"])
async def test_handler_raises(order: str, events: list[Any], log: Log) -> None:
    """A handler that raises after `add_task` runs no task; they are named, and the queue moves at once."""

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        jobs.append(tasks.add_task(events.append, 1))
        jobs.append(tasks.add_task(events.append, 2))
        raise ValueError("handler")

    async def fine(request: Request) -> Response:
        return Response(background=BackgroundTask(Work(events).quick, 3))

    jobs: list[Job[Any]] = []
    app = make_app(handler, fine, hold_timeout=1000, order=order)
    exchange = await get(app, "/handler")
    assert isinstance(exchange.error, ValueError)
    assert (await get(app, "/fine")).error is None
    assert events == [3]
    await wait_all_tasks_blocked()
    assert executor_of(app)._runner.scheduler.lanes.default.first is None
    assert executor_of(app).statistics().unfinished == 0
    assert [job.state for job in jobs] == [JobState.DROPPED, JobState.DROPPED]
    assert log == [
        "WARNING GET /handler ended without running 2 tasks: list.append 1-…, list.append 2-… "
        "in the default lane: it raised ValueError('handler')"
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
        "WARNING GET /handler ended without running 1 task: list.append 1-… in the default lane: "
        "its response did not carry them. The response had a background of its own, or was not given "
        "`background=tasks`, or an exception (HTTPException) became the response"
    ]


async def test_error_that_cannot_be_changed() -> None:
    """An error whose class forbids attributes is raised as any other: nothing is set on it."""

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

    exchange = await get(app_of(handle, rest_after_failure="run"))
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

    error = (await get(app_of(handle))).error
    assert isinstance(error, Errors)
    assert not error


class Hostile(Exception):
    """No attribute of it can be looked at, or set."""

    def __getattribute__(self, name: str) -> Any:
        raise ZeroDivisionError(name)

    def __setattr__(self, name: str, value: object) -> None:
        raise ZeroDivisionError(name)


@pytest.mark.parametrize("sync", [False, True])
async def test_error_that_forbids_attributes(
    sync: bool, events: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a foreign exception no attribute is looked at or set: it is raised, and the queue moves."""
    error = Hostile()
    with pytest.raises(ZeroDivisionError):
        error.args  # noqa: B018
    with pytest.raises(ZeroDivisionError):
        error.args = ()

    async def fail() -> None:
        raise error

    def fail_sync() -> None:
        raise error

    executor = SerialExecutor()
    job = executor.submit_nowait(fail_sync if sync else fail)
    with anyio.move_on_after(1):
        try:
            await job
        except Hostile as caught:
            events.append(caught is error)
        assert await executor.submit_nowait(Work(events).quick, 1) == 1
    assert (job.state, events) == (JobState.FAILED, [True, 1])
    assert job.exception() is error


@pytest.mark.parametrize("sync", [False, True])
async def test_wait_does_not_report(sync: bool, log: Log) -> None:
    """`job.wait()` does not count as a report: the failure is logged, and a later `await job` raises it."""

    async def fail() -> None:
        raise ValueError("mine")

    def fail_sync() -> None:
        raise ValueError("mine")

    async with SerialExecutor() as executor:
        job = executor.submit_nowait(fail_sync if sync else fail)
        assert await job.wait() is JobState.FAILED
        with pytest.raises(ValueError, match="mine"):
            await job
        assert isinstance(job.exception(), ValueError)
    assert len(log) == 1
    assert log[0].startswith("ERROR test_wait_does_not_report.<locals>.fail")


async def test_logged_in_the_context_of_the_request(log: Log) -> None:
    """A failure that is logged is logged in the context of its request."""
    seen: list[str] = []

    class Look(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(f"{record.levelname} {user.get()}")

    async def fail() -> None:
        raise ValueError

    async def handler(request: Request) -> Response:
        user.set(request.query_params["n"])
        tasks = BackgroundTasks()
        tasks.add_task(fail)
        tasks.add_task(print)
        return Response(background=tasks)

    logger, look = logging.getLogger("fifo_background"), Look()
    logger.addHandler(look)
    try:
        app = make_app(handler, wait=False)
        for name in ("alice", "bob"):
            assert (await get(app, "/handler", query_string=f"n={name}".encode())).error is None
        await executor_of(app).join()
    finally:
        logger.removeHandler(look)
    assert seen == ["ERROR alice", "WARNING alice", "ERROR bob", "WARNING bob"]
    assert log == [
        line
        for number in (2, 4)
        for line in (
            "ERROR test_logged_in_the_context_of_the_request.<locals>.fail failed (GET /handler)",
            "WARNING test_logged_in_the_context_of_the_request.<locals>.fail failed (GET /handler); "
            f"skipped after it: 1 task: print {number}-… in the default lane",
        )
    ]


@pytest.mark.parametrize("awaited", [False, True])
async def test_what_servers_drop_is_logged(awaited: bool, log: Log) -> None:
    """A cancellation or GeneratorExit that nobody asked for is a failure, and is logged even if raised."""

    async def fail() -> None:
        raise kind

    for kind in [GeneratorExit, *([asyncio.CancelledError] if not _on_trio() else [])]:
        async with SerialExecutor() as executor:
            job = executor.submit_nowait(fail)
            if awaited:
                with pytest.raises(kind):
                    await job
        assert job.state is JobState.FAILED
        assert isinstance(job.exception(), kind)
        assert log == ["ERROR test_what_servers_drop_is_logged.<locals>.fail failed"]
        del log[:]


async def test_job_that_cancels_itself(log: Log, events: list[Any]) -> None:
    """A job that cancels its own asyncio task has failed; the next one runs."""
    if _on_trio():
        return

    async def fail() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await anyio.sleep(1)

    async with SerialExecutor() as executor:
        job = executor.submit_nowait(fail)
        assert await executor.submit_nowait(Work(events).quick, 1) == 1
    assert job.state is JobState.FAILED
    assert log == ["ERROR test_job_that_cancels_itself.<locals>.fail failed"]


def _on_trio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False


class Big: ...


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("how", ["plain", "timeout", "latest"])
async def test_logged_failure_keeps_nothing(how: str, sync: bool, log: Log) -> None:
    """A failure that was only logged keeps its lines, and nothing that its frames held."""
    refs: list[weakref.ref[Any]] = []

    async def fail(argument: Big) -> None:
        big = Big()
        refs.extend((weakref.ref(big), weakref.ref(argument)))
        raise ValueError

    def fail_sync(argument: Big) -> None:
        big = Big()
        refs.extend((weakref.ref(big), weakref.ref(argument)))
        raise ValueError

    async with SerialExecutor() as executor:
        where = {
            "plain": executor,
            "timeout": executor.options(timeout=60.0),
            "latest": executor.lane("a", keep="latest"),
        }[how]
        job = where.submit_nowait(fail_sync if sync else fail, Big())
        await job.wait()
        await executor.join()
    gc.collect()
    assert [ref() for ref in refs] == [None, None]
    error = job.exception()
    assert error is not None
    lines = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    assert "raise ValueError" in lines


# -- done callbacks ------------------------------------------------------------------------------------------


class Unusual(BaseException): ...


@pytest.mark.parametrize("kind", [ValueError, asyncio.CancelledError, GeneratorExit, Unusual])
async def test_callback_that_raises(kind: type[BaseException], events: list[Any], log: Log) -> None:
    """What a done callback raises, whatever it is, is logged, and ends nothing: the next one is called."""

    def fails(job: Job[Any]) -> None:
        events.append("called")
        raise kind

    async with SerialExecutor() as executor:
        job = executor.submit_nowait(Work(events).quick, 1)
        job.add_done_callback(fails)
        called = anyio.Event()
        job.add_done_callback(lambda job: called.set())
        await called.wait()
        assert await executor.submit_nowait(Work(events).quick, 2) == 2
    assert events == [1, "called", 2]
    assert [line.split("<")[0] for line in log] == ["ERROR a done callback of Work.quick failed: "]
    info = log.records[0].exc_info
    assert info is not None
    assert isinstance(info[1], kind)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_callback_that_asks_for_the_result(kind: type[BaseException], log: Log) -> None:
    """The failure of a sync job that its callback raises again by `result()` is logged, and ends nothing."""

    def fail() -> None:
        raise kind

    def ask(job: Job[Any]) -> None:
        called.set()
        job.result()

    called = anyio.Event()
    async with SerialExecutor() as executor:
        job = executor.submit_nowait(fail)
        job.add_done_callback(ask)
        await called.wait()
        assert await executor.submit_nowait(Work([]).quick, 1) == 1
    assert isinstance(job.exception(), kind)
    assert [line.split(":")[0].split(" of ")[0] for line in log] == [
        "ERROR test_callback_that_asks_for_the_result.<locals>.fail failed",
        "ERROR a done callback",
    ]


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_callback_that_exits(kind: type[BaseException], name: str, log: Log) -> None:
    """A KeyboardInterrupt or SystemExit of a done callback's own is logged, and raised by the event loop."""

    def exits(job: Job[Any]) -> None:
        raise kind

    async def main() -> None:
        async with SerialExecutor() as executor:
            job = executor.submit_nowait(Work([]).quick, 1)
            job.add_done_callback(exits)
            with anyio.fail_after(60):  # it would wait for ever if the exception did not reach it
                await anyio.sleep_forever()

    options = {"use_uvloop": True} if name == "uvloop" else {}
    with pytest.raises(KeyboardInterrupt if name == "trio" else kind):
        anyio.run(main, backend="trio" if name == "trio" else "asyncio", backend_options=options)
    assert log[0].split("<")[0] == "ERROR a done callback of Work.quick failed: "
