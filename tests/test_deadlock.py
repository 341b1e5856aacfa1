"""No self-made deadlock: a wait that cannot end raises `WouldDeadlock` at once; others lend their slot."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import anyio.from_thread
import pytest
from anyio import wait_all_tasks_blocked
from starlette.requests import Request
from starlette.responses import Response

from fifo_background import (
    BackgroundTask,
    BackgroundTasks,
    Job,
    JobDropped,
    JobState,
    SerialExecutor,
    WouldDeadlock,
    executor_of,
)
from tests.asgi import Client, get
from tests.test_executor import Work
from tests.test_middleware import make_app


@pytest.mark.parametrize("sync", [False, True])
async def test_waiting_for_what_is_behind(sync: bool, events: list[Any]) -> None:
    """A task that waits for itself, or for a task behind it in its lane, gets `WouldDeadlock` at once."""
    jobs: list[Job[Any]] = []

    async def waits() -> None:
        for job in jobs:
            with pytest.raises(
                WouldDeadlock, match=r"waits would wait for ever: .* cannot end before it does"
            ):
                await job.wait()
        events.append("went on")

    def sync_waits() -> None:
        for job in jobs:
            with pytest.raises(WouldDeadlock):
                anyio.from_thread.run(job.wait)
        events.append("went on")

    async with SerialExecutor(drain_timeout=2) as executor:
        lane = executor.lane("a")
        jobs += [lane.submit_nowait(sync_waits if sync else waits), lane.submit_nowait(Work(events).quick, 1)]
    assert events == ["went on", 1]


async def test_across_two_lanes(events: list[Any]) -> None:
    """The second of two tasks that wait for what is behind the other one gets `WouldDeadlock`."""
    jobs: dict[str, Job[Any]] = {}

    async def waits(name: str, other: str) -> None:
        try:
            await jobs[f"behind {other}"].wait()
            events.append(f"{name} waited")
        except WouldDeadlock:
            events.append(f"{name} would deadlock")

    async with SerialExecutor(drain_timeout=2) as executor:
        for name, other in ("ab", "ba"):
            jobs[name] = executor.lane(name).submit_nowait(waits, name, other)
            jobs[f"behind {name}"] = executor.lane(name).submit_nowait(events.append, name)  # type: ignore[arg-type]
    assert sorted(events) in (
        ["a", "a waited", "b", "b would deadlock"],
        ["a", "a would deadlock", "b", "b waited"],
    )


@pytest.mark.parametrize("sync", [False, True])
async def test_a_waiting_task_lends_its_slot(sync: bool, events: list[Any]) -> None:
    """A task that waits for a job of another lane lends its slot: `max_lanes_running=1` is no deadlock."""

    async def parent(depth: int) -> int:
        if depth == 3:
            return 0
        job = executor.lane(depth + 1).submit_nowait(sync_parent if sync else parent, depth + 1)  # type: ignore[arg-type]
        return int(await job.wait()) + 1

    def sync_parent(depth: int) -> int:
        return anyio.from_thread.run(parent, depth)

    async with SerialExecutor(max_lanes_running=1, drain_timeout=5) as executor:
        job = executor.lane(0).submit_nowait(sync_parent if sync else parent, 0)
        assert await job.wait() == 3
        await executor.join()
        await wait_all_tasks_blocked()
        assert executor.line.slots == 1


async def test_its_own_lane_stays_closed(events: list[Any]) -> None:
    """While a task lends its slot, nothing else of its lane starts, and it goes on when a slot is free."""
    work = Work(events)

    async def parent() -> None:
        events.append("parent")
        with pytest.raises(JobDropped):
            await jobs[0].wait()
        events.append("parent goes on")
        await work.gated(9)

    async with SerialExecutor(max_lanes_running=1, drain_timeout=2) as executor:
        executor.lane("a").submit_nowait(parent)
        executor.lane("a").submit_nowait(work.quick, 1)
        jobs = [executor.lane(key).submit_nowait(work.gated, n) for n, key in ((2, "b"), (3, "c"))]
        await wait_all_tasks_blocked()
        assert events == ["parent", "start 2"]
        jobs[0].cancel()
        await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        assert events[2:] == ["start 3"]  # and the parent waits for its slot
        work.gate(3).set()
        await wait_all_tasks_blocked()
        assert events[3:] == ["end 3", "parent goes on", "start 9"]
        assert executor.line.slots == 0
        work.gate(9).set()
    assert events[-2:] == ["end 9", 1]
    assert executor.line.slots == 1


async def test_cancelled_on_the_way_back(events: list[Any]) -> None:
    """A task that is cancelled while it waits for its slot cleans up in a slot too many, for that long."""
    work = Work(events)

    async def parent() -> None:
        try:
            await jobs[0].wait()
        finally:
            events.append("parent")

    async with SerialExecutor(max_lanes_running=1, drain_timeout=2) as executor:
        first = executor.lane("a").submit_nowait(parent)
        jobs = [executor.lane(key).submit_nowait(work.gated, n) for n, key in ((2, "b"), (3, "c"))]
        await wait_all_tasks_blocked()
        jobs[0].cancel()
        await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        assert events == ["start 2", "start 3"]
        first.cancel()
        await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        assert events[2:] == ["parent"]
        work.gate(3).set()
        await executor.join()
        assert executor.line.slots == 1
    assert first.state is JobState.CANCELLED


async def test_two_waits_at_once(events: list[Any]) -> None:
    """A task that waits for two jobs has lent its slot until it has both."""
    work = Work(events)

    async def parent() -> None:
        async with anyio.create_task_group() as group:
            for key in "bc":
                group.start_soon(executor.lane(key).submit_nowait(work.quick, key).wait)  # type: ignore[arg-type]
        events.append("parent")

    async with SerialExecutor(max_lanes_running=1, drain_timeout=2) as executor:
        await executor.lane("a").submit_nowait(parent).wait()
        await wait_all_tasks_blocked()
        assert executor.line.slots == 1
    assert events == ["b", "c", "parent"]


async def test_wait_that_outlives_its_task(events: list[Any]) -> None:
    """A wait that a task leaves behind when it ends keeps no slot and gives none back twice."""
    work = Work(events)

    async def parent() -> None:
        group.start_soon(jobs[0].wait)
        await anyio.sleep(0)
        await anyio.sleep(0)

    async with (
        anyio.create_task_group() as group,
        SerialExecutor(max_lanes_running=1, drain_timeout=2) as executor,
    ):
        executor.lane("a").submit_nowait(parent)
        jobs = [executor.lane("b").submit_nowait(work.gated, 1)]
        executor.lane("a").submit_nowait(work.quick, 2)
        await wait_all_tasks_blocked()
        work.gate(1).set()
        await executor.join()
        await wait_all_tasks_blocked()
        assert executor.line.slots == 1
    assert sorted(events, key=str) == [2, "end 1", "start 1"]


async def test_join_inside(events: list[Any]) -> None:
    """`join` and `aclose` inside a task, and `join` in a request whose own tasks wait, would never end."""

    later: list[Job[Any]] = []

    async def joins() -> None:
        for wait in (executor.join, executor.aclose):
            with pytest.raises(WouldDeadlock, match="it is one of the tasks that"):
                await wait()
        events.append("task")

    async def handler(request: Request) -> Response:
        executor = executor_of(request)
        await executor.join()  # nothing of it is waiting
        tasks = BackgroundTasks()
        job = tasks.add_task(events.append, "request")
        with pytest.raises(WouldDeadlock, match="GET /handler would wait for ever: its own place"):
            await executor.join()
        with pytest.raises(WouldDeadlock, match=r"list\.append cannot end before it does"):
            await job.wait()
        behind = executor.submit_nowait(events.append, "behind")
        with pytest.raises(WouldDeadlock):
            await behind.wait()
        beside = executor.lane("a").submit_nowait(events.append, "beside")
        await beside.wait()
        later.append(behind)
        return Response(background=tasks)

    async with SerialExecutor(drain_timeout=2) as executor:
        await executor.submit_nowait(joins).wait()
    assert (await get(make_app(handler), "/handler")).error is None
    await later[0].wait()
    assert events == ["task", "beside", "request", "behind"]


async def test_ahead_is_no_deadlock(events: list[Any]) -> None:
    """A handler that holds a place may wait for what is ahead of it."""
    work = Work(events)

    async def handler(request: Request) -> Response:
        ahead = executor_of(request).submit_nowait(work.gated, 0)
        tasks = BackgroundTasks()
        tasks.add_task(work.quick, 1)
        await ahead.wait()
        return Response(background=tasks)

    app = make_app(handler)
    async with anyio.create_task_group() as group:
        exchange = await Client(app, group).start("/handler")
        work.gate(0).set()
    assert exchange.error is None
    assert events == ["start 0", "end 0", 1]


async def test_by_way_of_a_request(events: list[Any]) -> None:
    """A task and a request that wait for what the other one keeps back: the second one is told."""
    jobs: dict[str, Job[Any]] = {}
    begun = anyio.Event()

    async def task() -> None:
        begun.set()
        await jobs["behind the request"].wait()

    async def handler(request: Request) -> Response:
        executor = executor_of(request)
        tasks = BackgroundTasks()
        tasks.lane("a").add_task(events.append, "request's")
        jobs["behind the request"] = executor.lane("a").submit_nowait(events.append, "behind")
        job = executor.lane("b").submit_nowait(task)
        await begun.wait()
        await wait_all_tasks_blocked()
        with pytest.raises(WouldDeadlock):
            await job.wait()
        events.append("request")
        return Response(background=tasks)

    assert (await get(make_app(handler), "/handler")).error is None
    await jobs["behind the request"].wait()
    assert events == ["request", "request's", "behind"]


async def test_submit_waiting_for_room(events: list[Any]) -> None:
    """`submit` raises where there cannot be room before the task that waits has ended; else it lends."""

    async def full(lane_limit: bool) -> None:
        executor.lane("a").submit_nowait(events.append, "behind")
        lane = executor.lane("a", max_pending=1 if lane_limit else None)
        with pytest.raises(WouldDeadlock, match=r"there is no room for list\.append before it ends"):
            await lane.submit(events.append, "never")
        events.append("full")

    async def room_comes() -> None:
        executor.lane("b").submit_nowait(events.append, "beside")
        await executor.lane("a").submit(events.append, "last")
        events.append("room came")

    for work, max_pending in ((partial(full, False), 1), (partial(full, True), 9), (room_comes, 1)):
        async with SerialExecutor(max_pending=max_pending, max_lanes_running=1, drain_timeout=2) as executor:
            await executor.lane("a").submit_nowait(work).wait()
    assert events == ["full", "behind", "full", "behind", "beside", "room came", "last"]


async def test_request_waiting_for_room(events: list[Any]) -> None:
    """`submit` raises in a request whose own place keeps back what would make room."""

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, "request's")
        with pytest.raises(WouldDeadlock):
            await executor_of(request).submit(events.append, "never")
        return Response(background=tasks)

    assert (await get(make_app(handler, max_pending=1), "/handler")).error is None
    assert events == ["request's"]


async def test_room_that_another_takes(events: list[Any]) -> None:
    """`submit` raises as soon as the room that it waits for is behind it, because another got it first."""
    busy = anyio.Event()

    async def wants_room() -> None:
        await busy.wait()
        with pytest.raises(WouldDeadlock, match=r"no room for list\.append"):
            await executor.lane("c").submit(events.append, "never")
        events.append("told")

    async with SerialExecutor(max_pending=1) as executor, anyio.create_task_group() as group:
        gate = anyio.Event()
        for key, task in (("a", wants_room), ("b", gate.wait)):
            executor.lane(key).submit_nowait(task)
            await wait_all_tasks_blocked()
        executor.lane("b").submit_nowait(events.append, "makes room")
        group.start_soon(executor.lane("a").submit, events.append, "behind")  # the first to wait for it
        await wait_all_tasks_blocked()
        busy.set()
        await wait_all_tasks_blocked()
        gate.set()
        await executor.join()
    assert sorted(events) == ["behind", "makes room", "told"]
    assert events.index("told") < events.index("behind")


async def test_room_behind_each_other(events: list[Any]) -> None:
    """Of two tasks that wait for room which only the other one's end can make, one gets `WouldDeadlock`."""

    async def wants_room(key: str) -> None:
        await gates[key].wait()
        try:
            await executor.lane("c").submit(events.append, "submitted")
        except WouldDeadlock:
            events.append(f"{key} is told")

    gates = {"a": anyio.Event(), "b": anyio.Event()}
    async with SerialExecutor(max_pending=2) as executor:
        for key in gates:
            executor.lane(key).submit_nowait(wants_room, key)
            await wait_all_tasks_blocked()
        for key in gates:
            executor.lane(key).submit_nowait(events.append, f"behind {key}")
        for gate in gates.values():
            gate.set()
            await wait_all_tasks_blocked()
        await executor.join()
    assert events[0] == "b is told"
    assert sorted(events[1:]) == ["behind a", "behind b", "submitted"]


async def test_room_behind_who_awaits_a_request(events: list[Any]) -> None:
    """A task that awaits a request to its own app closes no ring by way of one who waits for room."""
    asks, submits = anyio.Event(), anyio.Event()

    async def asks_app() -> None:
        await asks.wait()
        events.append(type((await get(app, "/handler")).error))

    async def wants_room() -> None:
        await submits.wait()
        with pytest.raises(WouldDeadlock):  # the request's task, which could not be refused, has taken it
            await executor.lane("c").submit(events.append, "never")
        events.append("no room")

    async def handler(request: Request) -> Response:
        return Response(background=BackgroundTasks([BackgroundTask(events.append, "the request's")]))

    app = make_app(handler, max_pending=1)
    await get(app, "/handler")
    executor = executor_of(app)
    for key, task in (("a", asks_app), (None, wants_room)):
        executor.lane(key).submit_nowait(task)
        await wait_all_tasks_blocked()
    executor.lane("a").submit_nowait(events.append, "makes room")
    for event in (submits, asks):
        event.set()
        await wait_all_tasks_blocked()
    with anyio.fail_after(5):
        await executor.join()
    assert events[:2] == ["the request's", WouldDeadlock]
    assert sorted(events[2:]) == ["makes room", "no room", "the request's"]
