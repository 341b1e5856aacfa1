"""Lanes: one queue per key, side by side, in turn."""

from __future__ import annotations

import contextvars
import gc
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.from_thread
import pytest
from anyio import wait_all_tasks_blocked
from starlette.requests import Request
from starlette.responses import Response

from fifo_background import (
    BackgroundTasks,
    Job,
    JobState,
    SerialExecutor,
    executor_of,
)
from tests.support.apps import Work, app_of, make_app, user
from tests.support.asgi import Client, get
from tests.support.log import Log

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


async def test_side_by_side(events: list[Any]) -> None:
    """Same key: one queue. Different keys run at the same time, beside the default lane."""
    work = Work(events)
    async with SerialExecutor(drain_timeout=2) as executor:
        executor.submit_nowait(work.gated, 0)
        executor.lane("a").submit_nowait(work.gated, 1)
        executor.lane("a").submit_nowait(work.gated, 2)
        executor.lane(("b", 1)).submit_nowait(work.gated, 3)
        await wait_all_tasks_blocked()
        assert sorted(events) == ["start 0", "start 1", "start 3"]
        work.gate(1).set()
        await wait_all_tasks_blocked()
        assert events[3:] == ["end 1", "start 2"]
        for n in (0, 2, 3):
            work.gate(n).set()


async def test_none_is_the_default_lane(events: list[Any]) -> None:
    """`lane(None)` is the queue of the tasks that name no lane."""
    work = Work(events)
    async with SerialExecutor(drain_timeout=2) as executor:
        executor.lane(None).submit_nowait(work.gated, 0)
        executor.submit_nowait(work.quick, 1)
        await wait_all_tasks_blocked()
        assert events == ["start 0"]
        work.gate(0).set()
    assert events == ["start 0", "end 0", 1]


@pytest.mark.parametrize("sync", [False, True])
async def test_turns(sync: bool, events: list[Any]) -> None:
    """At most `max_lanes_running` lanes run at once, in turn: a busy key does not starve another."""
    work = Work(events)
    async with SerialExecutor(max_lanes_running=1, drain_timeout=2) as executor:
        for key in "abc":
            for n in range(3):
                executor.lane(key).submit_nowait(work.sync if sync else work.quick, f"{key}{n}")  # type: ignore[arg-type]
        await executor.join()
    assert events == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2"]


async def test_a_request_waits_for_its_turn(events: list[Any]) -> None:
    """A request whose tasks could start at once lets go first who waits for a turn already."""

    async def handle(path: str, respond: Callable[[], Awaitable[None]]) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, "the request's")
        await respond()
        app.executor.lane("other").submit_nowait(events.append, "submitted before")
        await tasks()

    app = app_of(handle, max_lanes_running=1)
    assert (await get(app, "/")).error is None
    assert events == ["submitted before", "the request's"]


async def test_at_most(events: list[Any]) -> None:
    """A lane beyond `max_lanes_running` starts when another one has ended its task, in turn."""
    work = Work(events)
    async with SerialExecutor(max_lanes_running=2, drain_timeout=2) as executor:
        for n, key in enumerate("aabbccdd"):
            executor.lane(key).submit_nowait(work.gated, n)
        await wait_all_tasks_blocked()
        assert sorted(events) == ["start 0", "start 2"]
        for n in (2, 0, 4, 6, 3, 1, 5, 7):
            work.gate(n).set()
            await wait_all_tasks_blocked()
    assert [event for event in events if event.startswith("start")][2:] == [
        f"start {n}" for n in (4, 6, 3, 1, 5, 7)
    ]
    assert executor._runner.scheduler.slots.free == 2


async def test_held_paused_and_stopped_heads_take_no_slot(events: list[Any], log: Log) -> None:
    """Only a lane in which a task runs occupies one of `max_lanes_running`."""
    work = Work(events)
    respond = anyio.Event()

    async def holds(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.lane("held").add_task(work.quick, 1)
        await respond.wait()
        return Response(background=tasks)

    async def fail() -> None:
        raise ValueError

    app = make_app(holds, max_lanes_running=1)
    async with anyio.create_task_group() as group:
        await Client(app, group).start("/holds")
        executor = executor_of(app)
        executor.lane("held").submit_nowait(work.quick, 2)
        executor.lane("paused").pause()
        executor.lane("paused").submit_nowait(work.quick, 3)
        executor.lane("stopped", after_failure="stop").submit_nowait(fail)
        executor.lane("stopped").submit_nowait(work.quick, 4)
        await wait_all_tasks_blocked()
        executor.submit_nowait(work.quick, 5)
        await wait_all_tasks_blocked()
        assert events == [5]
        assert sorted(executor._runner.scheduler.lanes.by_key) == ["held", "paused", "stopped"]
        respond.set()
        executor.lane("paused").resume()
        executor.lane("stopped").skip_head()
        await executor.join()
    assert sorted(events) == [1, 2, 3, 4, 5]
    assert executor._runner.scheduler.lanes.by_key == {}


async def test_lanes_of_a_request(events: list[Any], log: Log) -> None:
    """A request's tasks in different lanes are independent: own positions, own copies of its context."""
    work = Work(events)

    async def look(n: int) -> None:
        events.append((n, variable.get()))
        variable.set(f"by {n}")
        await work.gated(n)

    async def fail() -> None:
        raise ValueError("in lane a")

    async def handler(request: Request) -> Response:
        variable.set("request")
        tasks = BackgroundTasks()
        tasks.lane("a").add_task(fail)
        tasks.lane("a").add_task(work.quick, 0)
        tasks.lane("b").add_task(look, 1)
        tasks.lane("b").add_task(look, 2)
        tasks.add_task(look, 3)
        return Response(background=tasks)

    app = make_app(handler)
    async with anyio.create_task_group() as group:
        exchange = await Client(app, group).start("/handler")
        assert sorted(events, key=str) == [(1, "request"), (3, "request"), "start 1", "start 3"]
        assert exchange.error is None
        for n in (1, 2, 3):
            work.gate(n).set()
    assert [e for e in events[4:] if e != "end 3"] == ["end 1", (2, "by 1"), "start 2", "end 2"]
    assert str(exchange.error) == "in lane a"
    assert executor_of(app)._runner.scheduler.lanes.by_key == {}


async def test_a_position_per_lane(events: list[Any]) -> None:
    """A request has one position in each lane that it uses, taken at its first `add_task` into that lane."""
    work = Work(events)
    respond = {name: anyio.Event() for name in "xy"}
    lanes = {"x": "ab", "y": "ba"}

    async def handler(request: Request) -> Response:
        name = request.query_params["name"]
        tasks = BackgroundTasks()
        for key in lanes[name]:
            tasks.lane(key).add_task(work.quick, f"{key} {name}1")  # type: ignore[arg-type]
        await respond[name].wait()
        for key in lanes[name]:
            tasks.lane(key).add_task(work.quick, f"{key} {name}2")  # type: ignore[arg-type]
        return Response(background=tasks)

    app = make_app(handler)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        for name in "xy":
            await client.start("/handler", query_string=f"name={name}".encode())
        respond["y"].set()
        await wait_all_tasks_blocked()
        assert events == []
        respond["x"].set()
    for key in "ab":
        assert [e for e in events if e[0] == key] == [f"{key} {n}" for n in ("x1", "x2", "y1", "y2")]


async def test_lane_of_a_request(events: list[Any]) -> None:
    """The middleware's `lane_key` names the lane for a request's tasks that name none, asked once."""
    work = Work(events)
    asked: list[str] = []

    def lane(scope: Any) -> str:
        asked.append(scope["path"])
        return str(scope["query_string"], "ascii")

    async def handler(request: Request) -> Response:
        n = int(request.headers["n"])
        tasks = BackgroundTasks([])
        tasks.options(timeout=60).add_task(work.gated, n)
        tasks.add_task(work.gated, n + 1)
        return Response(background=tasks)

    async def constructed(request: Request) -> Response:
        return Response(background=BackgroundTasks(BackgroundTasks().tasks))

    app = make_app(handler, constructed, lane_key=lane)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        for n, key in ((0, b"a"), (2, b"b"), (4, b"a")):
            await client.start("/handler", query_string=key, headers=[(b"n", str(n).encode())])
        assert events == ["start 0", "start 2"]
        assert asked == ["/handler"] * 3
        for n in range(6):
            work.gate(n).set()
    assert [event for event in events if event.startswith("start")][-1] == "start 5"
    assert (await get(app, "/constructed")).error is None
    assert executor_of(app)._runner.scheduler.lanes.by_key == {}


async def test_unhashable_key(events: list[Any]) -> None:
    """A key that is not hashable is refused where it is given, and says what to use."""
    tasks = BackgroundTasks()
    async with SerialExecutor(drain_timeout=2) as executor:
        for lane in (executor.lane, tasks.lane, tasks.options(timeout=1).lane):
            with pytest.raises(TypeError, match=r"must be hashable, got \['a'\]: use a str"):
                lane(["a"])

    async def handler(request: Request) -> Response:
        return Response(background=BackgroundTasks().add_task(print))  # type: ignore[arg-type]

    exchange = await get(make_app(handler, lane_key=lambda scope: []), "/handler")
    assert isinstance(exchange.error, TypeError)


@pytest.mark.parametrize(
    "options",
    [
        {"keep": "newest"},
        {"max_waiting": 0},
        {"max_waiting": 1.5},
        {"after_failure": "halt"},
    ],
)
async def test_bad_options(options: dict[str, Any]) -> None:
    """An invalid option is refused where it is given."""
    tasks = BackgroundTasks()
    async with SerialExecutor(drain_timeout=2) as executor:
        for lane in (executor.lane, tasks.lane):
            with pytest.raises((ValueError, TypeError), match=r"use one of|give "):
                lane("a", **options)
        for given in (executor.options, tasks.options, executor.lane("a").options):
            with pytest.raises(ValueError, match="timeout=-1: give a finite number"):
                given(timeout=-1)


async def test_object_without_a_request(events: list[Any]) -> None:
    """Lanes of an object that was made outside of any request count when it is awaited, each time."""
    tasks = BackgroundTasks()
    work = Work(events)
    jobs = [tasks.lane(key).add_task(work.gated, n) for n, key in enumerate("aab")]
    for _ in range(2):
        events.clear()
        work.gates.clear()
        async with anyio.create_task_group() as group:
            group.start_soon(tasks)
            await wait_all_tasks_blocked()
            assert sorted(events) == ["start 0", "start 2"]
            for n in range(3):
                work.gate(n).set()
        assert sorted(events[2:]) == ["end 0", "end 1", "end 2", "start 1"]
    assert [job.state for job in jobs] == [JobState.SUCCEEDED] * 3


async def test_add_from_threads(events: list[Any]) -> None:
    """Lanes may be used from anyio worker threads."""
    work = Work(events)

    def add(executor: SerialExecutor) -> Job[int]:
        executor.lane("a").pause()
        job = executor.lane("a").submit_nowait(work.quick, 1)
        assert executor.lane("a").peek() is job
        executor.lane("a").resume()
        return job

    async with SerialExecutor(drain_timeout=2) as executor:
        job = await anyio.to_thread.run_sync(add, executor)
        assert await job == 1


@pytest.mark.parametrize("sync", [False, True])
async def test_idle_lanes_leave_nothing(sync: bool) -> None:
    """An idle lane leaves nothing behind."""

    async def nothing() -> None: ...

    def sync_nothing() -> None: ...

    async def use(lanes: range) -> None:
        for n in lanes:
            executor.lane(f"key {n}").submit_nowait(sync_nothing if sync else nothing)
        await executor.join()
        with anyio.fail_after(5):
            while executor._runner.scheduler.turns.occupied:  # a lane is left after its thread has left
                await anyio.sleep(0)
        assert executor._runner.scheduler.lanes.by_key == {}

    async with SerialExecutor(drain_timeout=2, history=50) as executor:
        await use(range(100))
        n, grown = 0, 50
        while grown >= 50 and n < 10:  # what others allocate, threads and tracers, settles
            gc.collect()
            before = sys.getallocatedblocks()
            await use(range(100 * n, 100 * n + 100))
            gc.collect()
            grown = sys.getallocatedblocks() - before
            n += 1
    assert grown < 50, "less than half a block of memory a lane"
    assert repr(executor.lane("a")) == "<ExecutorLane 'a'>"
    assert executor.lane("a").key == "a"


async def test_looking_changes_nothing(events: list[Any]) -> None:
    """Statistics and peeks change no order: what a running task adds to its position stays in it."""

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()

        async def grows() -> None:
            behind = app.executor.submit_nowait(events.append, "behind")
            executor = app.executor
            assert executor.statistics().waiting == 1
            assert executor.lane(None).peek() is behind
            tasks.add_task(events.append, "own")

        tasks.add_task(grows)
        await respond()
        await tasks()

    app = app_of(handle)
    assert (await get(app)).error is None
    await app.executor.join()
    assert events == ["own", "behind"]


async def test_a_thread_for_each_lane() -> None:
    """Own threads: no limit but `max_lanes_running`."""
    barrier = threading.Barrier(50)
    async with SerialExecutor(max_lanes_running=50) as executor:
        jobs = [executor.lane(n).submit_nowait(barrier.wait, 10) for n in range(50)]
        assert sorted([await job for job in jobs]) == list(range(50))


async def test_no_lane_for_nothing() -> None:
    """With order="responded" a lane whose tasks were all cancelled leaves nothing behind."""

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.lane(path).add_task(print).cancel()
        await wait_all_tasks_blocked()
        await respond()
        await tasks()

    app = app_of(handle, order="responded")
    for n in range(3):
        await get(app, f"/{n}")
    assert app.executor._runner.scheduler.lanes.by_key == {}


@pytest.mark.parametrize("sync", [False, True])
async def test_running_task_adds_to_another_lane(sync: bool, events: list[Any]) -> None:
    """A running task may add to its own object in another lane: it runs there, in the request's context."""

    async def look() -> None:
        events.append(user.get())

    def sync_look() -> None:
        events.append(user.get())

    async def handle(path: str, respond: Any) -> None:
        user.set("alice")
        tasks = BackgroundTasks()

        async def grows() -> None:
            tasks.lane("other").add_task(sync_look if sync else look)

        tasks.add_task(grows)
        await respond()
        await tasks()

    app = app_of(handle)
    assert (await get(app)).error is None
    assert events == ["alice"]
    await app.executor.aclose()


async def test_lane_that_goes_on_before_the_response(events: list[Any]) -> None:
    """A request that had not responded when its lane stopped, and went on, waits for its tasks as ever."""
    responds, gate = anyio.Event(), anyio.Event()

    async def fails() -> None:
        await gate.wait()
        raise ValueError

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, 1)
        await tasks()
        await responds.wait()
        await respond()

    app = app_of(handle, lane_after_failure="stop")
    async with anyio.create_task_group() as group:
        app.executor.submit_nowait(fails)
        exchange = await Client(app, group).start()
        gate.set()
        await wait_all_tasks_blocked()
        app.executor.lane(None).skip_head()
        await wait_all_tasks_blocked()
        responds.set()
    assert exchange.error is None
    assert events == [1]


@pytest.mark.parametrize("sync", [False, True])
async def test_added_to_another_lane_after_handing_over(sync: bool, events: list[Any]) -> None:
    """What is added after its object was handed over runs with it, in whichever lane."""

    async def append(what: str) -> None:
        events.append(what)

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(append, "task")
        await tasks()
        tasks.lane("audit").add_task(events.append if sync else append, "audit")
        await respond()

    app = app_of(handle)
    for _ in range(2):
        assert (await get(app)).error is None
    assert sorted(events) == ["audit", "audit", "task", "task"]
    await app.executor.aclose()  # waits for the thread, too
    assert (app.executor.statistics().unfinished, app.executor._runner.scheduler.slots.free) == (0, 16)
