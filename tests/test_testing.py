"""`fifo_background.testing`: wait until every task has run, or record tasks instead of running them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.testclient import TestClient

from fifo_background import (
    BackgroundTasks,
    JobState,
    OrderedBackgroundMiddleware,
    SerialExecutor,
    executor_of,
)
from fifo_background.testing import RecordedTask, drained, draining, recorded
from tests.support.apps import Work, make_app
from tests.support.asgi import get
from tests.support.engine import ListEngine

pytest_plugins = ["fifo_background.testing.plugin"]
Drained = Callable[[Any], Any]
Recorded = Callable[[Any], list[RecordedTask]]


def app_of(work: Work, **settings: Any) -> Any:
    """Each request adds an async and a sync task."""

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(work.quick, 1)
        tasks.lane("a").add_task(work.sync, n=2)
        return Response(background=tasks)

    return make_app(handler, **settings)


async def test_drained(events: list[Any]) -> None:
    """`await drained(app)`: every task that was added has run."""
    app = app_of(Work(events), wait=False)
    await get(app, "/handler")
    await drained(app)
    assert sorted(events) == [1, 2]


def test_drained_in_a_sync_test(events: list[Any], drained: Drained) -> None:
    """`client.portal.call(drained, app)`, or `drained(client)` with the fixture."""
    from fifo_background.testing import drained as function

    app = app_of(Work(events), wait=False)
    with TestClient(app) as client:
        for wait in (lambda: client.portal.call(function, app), lambda: drained(client)):  # type: ignore[union-attr]
            client.get("/handler")
            assert wait() is None
            assert sorted(events) == [1, 2]
            events.clear()


async def test_drained_by_the_fixture(events: list[Any], drained: Drained) -> None:
    """The fixture gives an async test the function."""
    async with SerialExecutor() as executor:
        executor.submit_nowait(Work(events).quick, 1)
        await drained(executor)
        assert events == [1]


def test_drained_without_with(drained: Drained) -> None:
    """A `TestClient` without `with` has nothing to wait in: the error says what to write."""
    with pytest.raises(RuntimeError, match=r"without `with TestClient\(app\) as client:`"):
        drained(TestClient(app_of(Work([]))))


def test_drained_before_the_start(events: list[Any]) -> None:
    """An app that has not been started has no executor to wait for."""
    with pytest.raises(LookupError, match="has not been started yet"):
        anyio.run(drained, app_of(Work(events)))


async def test_drained_in_another_loop(events: list[Any]) -> None:
    """The tasks of an app that runs in the loop of a `TestClient` can be waited for only there."""
    app = app_of(Work(events), wait=False)

    def serve() -> None:
        with TestClient(app) as client:
            client.get("/handler")
            served.set()
            may_end.wait(10)

    served, may_end = threading.Event(), threading.Event()
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert served.wait(10)
        with pytest.raises(RuntimeError, match=r"write `client\.portal\.call\(drained, app\)`"):
            await drained(app)
        await get(app, "/handler")  # from here on the app runs in this loop, too
        await drained(app)
    finally:
        may_end.set()
        thread.join()
    assert sorted(events) == [1, 1, 2, 2]
    await drained(app)


@pytest.mark.virtual_clock
async def test_drained_says_what_is_left() -> None:
    """What does not end is named after `timeout` seconds, with the reason."""

    async def fail() -> None:
        raise ValueError

    async def noop() -> None: ...

    async def slow(request: Request) -> Response:
        BackgroundTasks().lane("held").add_task(noop)
        await released.wait()
        return Response()

    released, gate = anyio.Event(), anyio.Event()
    app = make_app(slow, max_lanes_running=1, hold_timeout=1000)
    async with anyio.create_task_group() as group:
        group.start_soon(get, app, "/slow")
        await anyio.wait_all_tasks_blocked()
        executor = executor_of(app)
        executor.lane("paused").pause()
        await executor.lane("stopped", after_failure="stop").submit_nowait(fail).wait()
        executor.submit_nowait(gate.wait)
        for key in ("paused", "stopped", None, "slot"):
            executor.lane(key).submit_nowait(noop)
        with pytest.raises(TimeoutError) as raised:
            await drained(app, timeout=3)
        assert str(raised.value).replace("test_drained_says_what_is_left.<locals>.", "") == (
            "after 3 s these tasks have not ended: noop in lane 'held' (GET /slow has not responded); "
            "Event.wait in the default lane (it runs); noop in lane 'paused' (the lane is paused); "
            "noop in lane 'stopped' (the lane has stopped, because fail failed); "
            "noop in the default lane (Event.wait runs); noop in lane 'slot' (max_lanes_running lanes run)"
        )
        gate.set()
        executor.lane("paused").resume()
        executor.lane("stopped").skip_head()
        released.set()
    await drained(app)


async def test_drained_in_no_time() -> None:
    """However little time it has, `drained` raises only while there is a task that it can name."""
    said: list[str] = []
    async with SerialExecutor() as executor:
        for _ in range(10):
            executor.submit_nowait(Work([]).quick, 1)
            for _ in range(3):
                try:
                    await drained(executor, timeout=0)
                except TimeoutError as error:
                    said.append(str(error))
    assert all("Work.quick" in text for text in said)


@pytest.mark.one_loop
async def test_what_is_left_may_start() -> None:
    """Of a task that nothing is in the way of, `drained` says so."""
    async with SerialExecutor() as executor:
        executor.submit_nowait(Work([]).quick, 1)
        (job,) = await executor.jobs()
        assert draining._in_words(job) == "Work.quick in the default lane (it was about to start)"


async def test_recorded(events: list[Any], recorded: Recorded) -> None:
    """Tasks are recorded instead of run, in the order in which they would have run, and succeed."""
    work = Work(events)
    async with SerialExecutor() as executor:
        tasks = recorded(executor)
        lane = executor.lane("a")
        lane.pause()
        jobs = [
            lane.submit_nowait(work.quick, 1),
            executor.submit_nowait(work.sync, n=2),
            executor.options(timeout=1).submit_nowait(work.quick, 3),
        ]
        assert await jobs[2] is None
        lane.resume()
        await drained(executor)
        assert [job.state for job in jobs] == [JobState.SUCCEEDED] * 3
    assert tasks == [
        (work.sync, (), {"n": 2}, None),
        (work.quick, (3,), {}, None),
        RecordedTask(work.quick, (1,), {}, "a"),
    ]
    assert events == []


async def test_recorded_app(events: list[Any]) -> None:
    """An app may be given before its start; other apps run their tasks; after the block it runs its own."""
    work = Work(events)
    app, other = app_of(work), app_of(work)
    with recorded(app) as tasks:
        await get(app, "/handler")
        assert events == []
        await get(other, "/handler")
        assert sorted(events) == [1, 2]
    by_lane = {task.lane: task for task in tasks}  # which of two lanes is first is left open
    assert by_lane == {None: (work.quick, (1,), {}, None), "a": (work.sync, (), {"n": 2}, "a")}
    events.clear()
    await get(app, "/handler")
    assert sorted(events) == [1, 2]
    assert len(tasks) == 2


def test_recorded_without_the_middleware(events: list[Any]) -> None:
    """Tasks of an app without the middleware would run: the error says so."""
    for app in (Starlette(), object()):
        with pytest.raises(LookupError, match=r"no OrderedBackgroundMiddleware found in .*: its tasks would"):
            recorded(app).__enter__()
    app = Starlette()
    app.add_middleware(OrderedBackgroundMiddleware)
    with recorded(app) as tasks:
        assert tasks == []


@pytest.mark.parametrize("is_started", [True, False])
def test_recorded_with_an_engine(is_started: bool) -> None:
    """An engine would store the tasks, and none would be recorded: the error says so."""
    app = Starlette()
    app.add_middleware(OrderedBackgroundMiddleware, engine=ListEngine())
    if is_started:
        TestClient(app).get("/")
    with pytest.raises(RuntimeError, match=r"stored by its engine.*without `engine=`"):
        recorded(app).__enter__()


async def test_recorded_retry(events: list[Any]) -> None:
    """A failed task that is to run again is recorded, too."""

    async def fail() -> None:
        events.append(1)
        raise ValueError

    async with SerialExecutor(lane_after_failure="stop") as executor:
        await executor.submit_nowait(fail).wait()
        with recorded(executor) as tasks:
            job = executor.lane(None).retry_head()
            assert await job.wait() is JobState.SUCCEEDED
    assert tasks == [(fail, (), {}, None)]
    assert events == [1]


async def test_recorded_held_back(events: list[Any]) -> None:
    """A task that its handler awaits before the response is recorded once."""
    work = Work(events)

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(work.quick, 1)
        await tasks()
        tasks.add_task(work.quick, 2)
        return Response()

    app = make_app(handler)
    with recorded(app) as tasks:
        await get(app, "/handler")
    assert [task.args for task in tasks] == [(1,), (2,)]


async def test_recorded_request_that_fails(events: list[Any]) -> None:
    """What would not have run is not recorded."""
    work = Work(events)

    async def handler(request: Request) -> Response:
        BackgroundTasks().add_task(work.quick, 1)
        raise ValueError

    app = make_app(handler)
    with recorded(app) as tasks:
        await get(app, "/handler")
    assert tasks == events == []


async def test_recorded_cancelled(events: list[Any]) -> None:
    """A task that a thread cancels at the moment at which it becomes ready is not recorded."""
    async with SerialExecutor() as executor:
        runner = executor._runner
        with recorded(executor) as tasks:
            job = executor.submit_nowait(Work(events).quick, 1)
            assert job.cancel()
            runner.look_at(job)
        await drained(executor)
    assert tasks == events == []


async def test_recorded_from_threads(events: list[Any]) -> None:
    """Tasks that threads submit are recorded, too."""
    async with SerialExecutor() as executor:
        with recorded(executor) as tasks:
            await anyio.to_thread.run_sync(executor.submit_nowait, Work(events).sync, 1)
            thread = threading.Thread(target=executor.submit_nowait, args=(Work(events).sync, 2))
            thread.start()
            thread.join()
            await drained(executor)
    assert [task.args for task in tasks] == [(1,), (2,)]


async def test_recorded_object(events: list[Any]) -> None:
    """What a task adds is not recorded, as the task does not run; an object is recorded as it was given."""

    class Own:
        async def __call__(self) -> None: ...

    own = Own()
    async with SerialExecutor() as executor:
        with recorded(executor) as tasks:
            await executor.submit_nowait(own)
    assert tasks == [(own, (), {}, None)]


@pytest.mark.version_free
def test_without_pytest() -> None:
    """Neither the package nor its helpers import pytest or OpenTelemetry."""
    program = (
        "import fifo_background.testing, fifo_background.status, sys;"
        "print(sorted({'pytest', 'opentelemetry'} & {name.partition('.')[0] for name in sys.modules}))"
    )
    root = Path(__file__).parent.parent
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout in ("[]\n", "['opentelemetry']\n")  # newer FastAPI imports the latter
