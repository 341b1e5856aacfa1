"""No self-made deadlock: a wait that cannot end raises `WouldDeadlock` at once; others lend their slot."""

from __future__ import annotations

import asyncio
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
from fifo_background._executor import current
from fifo_background._request import TrackedRequest
from tests.apps import Work, app_of, make_app
from tests.asgi import Client, get


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


async def test_room_that_comes_from_outside_the_line(events: list[Any]) -> None:
    """`submit` waits for room that requests make which have no place in line yet."""
    responds = anyio.Event()

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        if path == "/slow":
            tasks.add_task(events.append, "slow")
            await responds.wait()
        else:
            await app.executor.submit(events.append, "submitted")
        await respond()
        await tasks()

    app = app_of(handle, order="responded", max_pending=1)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        await client.start("/slow")
        submits = await client.start("/submits")
        responds.set()
        await app.executor.join()
    assert submits.error is None
    assert events == ["slow", "submitted"]


async def test_room_that_a_request_makes(events: list[Any]) -> None:
    """A task waits for the room that a request makes which holds the head of a lane and has not responded."""
    full, responds = anyio.Event(), anyio.Event()

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, "the request's")
        await responds.wait()
        await respond()
        await tasks()

    async def submits() -> None:
        await full.wait()
        await app.executor.lane("b").submit(events.append, "submitted")

    app = app_of(handle, max_pending=1)
    async with anyio.create_task_group() as group:
        app.executor.lane("a").submit_nowait(submits)
        await wait_all_tasks_blocked()
        await Client(app, group).start()
        for event in (full, responds):
            event.set()
            await wait_all_tasks_blocked()
        await app.executor.join()
    assert sorted(events) == ["submitted", "the request's"]


async def test_request_that_adds_while_it_waits(events: list[Any]) -> None:
    """A task cannot wait for what a request has added that waits, at the same time, for the task."""
    adds = anyio.Event()

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        async with anyio.create_task_group() as group:
            group.start_soon(waits.wait)
            await wait_all_tasks_blocked()
            jobs.append(tasks.add_task(events.append, "the request's"))
            adds.set()
        await respond()
        await tasks()

    async def wait() -> None:
        await adds.wait()
        with pytest.raises(WouldDeadlock):
            await jobs[0].wait()
        events.append("told")

    jobs: list[Job[Any]] = []
    app = app_of(handle, order="responded")
    waits = app.executor.lane("a").submit_nowait(wait)
    with anyio.fail_after(5):
        assert (await get(app)).error is None
    assert events == ["told", "the request's"]


async def test_handler_without_a_place() -> None:
    """A handler that has added nothing may wait for any task, as often as it likes."""
    seen: list[Any] = []

    async def handle(path: str, respond: Any) -> None:
        seen.append(await (await app.executor.submit(len, "a")).wait())
        seen.append(await app.executor.submit_nowait(len, "ab").wait())
        await respond()

    app = app_of(handle)
    assert (await get(app)).error is None
    assert seen == [1, 2]


async def test_no_room_from_outside_the_line() -> None:
    """`submit` raises `WouldDeadlock` where only the caller's own tasks could make room."""

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(print)
        with pytest.raises(WouldDeadlock):
            await app.executor.submit(print)
        await respond()

    app = app_of(handle, order="responded", max_pending=1)
    assert (await get(app)).error is None


async def test_room_that_waits_for_who_waits(events: list[Any]) -> None:
    """The one whose wait would close a ring by way of a `submit` that waits for room gets `WouldDeadlock`."""
    may_submit, may_wait = anyio.Event(), anyio.Event()

    async def one() -> None:
        await may_submit.wait()
        await executor.submit(events.append, "submitted")

    async def two() -> None:
        await may_wait.wait()
        with pytest.raises(WouldDeadlock, match="cannot end before it does"):
            await first.wait()
        events.append("two")

    async with SerialExecutor(max_pending=1) as executor:
        first = executor.lane("x").submit_nowait(one)
        await wait_all_tasks_blocked()
        executor.lane("y").submit_nowait(two)
        await wait_all_tasks_blocked()
        executor.lane("y").submit_nowait(events.append, "behind two")  # whose start would make room
        may_submit.set()
        await wait_all_tasks_blocked()
        may_wait.set()
        await executor.join()
    assert (events[0], sorted(events)) == ("two", ["behind two", "submitted", "two"])


async def test_room_that_has_come() -> None:
    """Who has got room, and has not gone on yet, is no reason for `WouldDeadlock`."""
    gate, go_on = anyio.Event(), anyio.Event()

    async def first() -> str:
        await go_on.wait()
        await executor.lane("y").submit(print, end="")
        return "first"

    async def second() -> str:
        return await first_job.wait()

    async with SerialExecutor(max_pending=1) as executor:
        executor.lane("y").submit_nowait(gate.wait)
        await wait_all_tasks_blocked()
        first_job = executor.lane("x").submit_nowait(first)
        await wait_all_tasks_blocked()
        second_job = executor.lane("y").submit_nowait(second)
        go_on.set()
        await wait_all_tasks_blocked()
        gate.set()
        assert await second_job.wait() == "first"


async def test_app_that_asks_itself(events: list[Any]) -> None:
    """A task that awaits a request to its own app, in its own process, is told that it would deadlock."""

    async def asks() -> None:
        for path in ("/inner", "/handed"):
            inner = await get(app, path)
            assert isinstance(inner.error, WouldDeadlock)
            assert inner.status == 200
        events.append("outer")

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(asks if path == "/outer" else partial(events.append, path))
        if path == "/handed":
            await tasks()
            await respond()
        else:
            await respond()
            await tasks()

    app = app_of(handle)
    assert (await get(app, "/outer")).error is None
    await app.executor.join()
    assert events == ["outer", "/inner", "/handed"]


def test_app_that_asks_itself_under_a_task_factory(events: list[Any]) -> None:
    """A task factory that wraps the coroutines of tasks hides no ring."""

    def factory(loop: Any, coroutine: Any, **kwargs: Any) -> Any:
        async def wrapped() -> Any:
            return await coroutine

        return asyncio.Task(wrapped(), loop=loop, **kwargs)

    async def asks() -> None:
        await anyio.sleep(0)
        events.append(type((await get(app, "/inner")).error))

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(asks if path == "/" else print)
        await respond()
        await tasks()

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(factory)
        await get(app)

    app = app_of(handle)
    asyncio.run(main())
    assert events == [WouldDeadlock]


async def test_request_that_a_task_only_starts(events: list[Any]) -> None:
    """A request that a task has started and does not wait for waits for its own tasks, like any other."""

    async def starts() -> None:
        group.start_soon(ask)
        await wait_all_tasks_blocked()
        events.append("outer")

    async def ask() -> None:
        events.append((await get(app, "/inner")).error)

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        if path == "/outer":
            tasks.add_task(starts)
        else:
            tasks.add_task(events.append, "inner")
        await respond()
        await tasks()

    app = app_of(handle)
    async with anyio.create_task_group() as group:
        await get(app, "/outer")
    assert events == ["outer", "inner", None]


async def test_request_that_outlives_the_task_that_starts_it(events: list[Any]) -> None:
    """A request that a task has started waits for its own tasks when the task has long ended."""
    go_on = anyio.Event()

    async def starts() -> None:
        group.start_soon(get, app, "/inner")

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        if path == "/inner":
            await go_on.wait()
            tasks.add_task(events.append, "inner")
        else:
            tasks.add_task(starts)
        await respond()
        await tasks()

    app = app_of(handle)
    async with anyio.create_task_group() as group:
        assert (await get(app)).error is None
        go_on.set()
    assert events == ["inner"]


async def test_slot_of_a_task_that_asks_its_app(events: list[Any]) -> None:
    """A task that awaits a request to its own app lends its slot to the tasks of that request."""

    async def asks() -> None:
        events.append((await get(app, "/inner")).error)

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        if path == "/outer":
            tasks.lane("a").add_task(asks)
        else:
            tasks.lane("b").add_task(events.append, "inner")
        await respond()
        await tasks()

    app = app_of(handle, max_lanes_running=1)
    assert (await get(app, "/outer")).error is None
    assert events == ["inner", None]
    assert app.executor.line.slots == 1


async def test_ring_of_tasks_that_ask_their_app() -> None:
    """Of tasks that await requests whose tasks stand behind each other, one gets `WouldDeadlock`."""
    errors: dict[str, Any] = {}

    async def asks(path: str) -> None:
        errors[path] = (await get(app, path)).error

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        if path == "/1":
            tasks.lane("a").add_task(asks, "/2")
        elif path == "/2":
            tasks.lane("b").add_task(asks, "/3")
        else:
            tasks.lane("a").add_task(print, end="")
        await respond()
        await tasks()

    app = app_of(handle)
    assert (await get(app, "/1")).error is None
    await app.executor.join()
    assert [type(error) for error in errors.values()].count(WouldDeadlock) == 1
    assert list(errors.values()).count(None) == 1
    assert app.executor.line.unfinished == 0


async def test_requests_that_start_requests() -> None:
    """A request that is made inside another one does not keep that one in memory."""
    kept: list[Any] = []

    async def handle(path: str, respond: Any) -> None:
        request = current.get()
        assert isinstance(request, TrackedRequest)
        kept.append(request.inside)
        await respond()
        if path == "/outer":
            group.start_soon(get, app, "/inner")

    app = app_of(handle)
    async with anyio.create_task_group() as group:
        await get(app, "/outer")
    assert kept == [None, None]


async def test_waiting_for_what_the_request_forgot() -> None:
    """A task that waits for a task which its own request drops only after it gets `WouldDeadlock`."""

    async def handle(path: str, respond: Any) -> None:
        tasks, forgotten = BackgroundTasks(), BackgroundTasks()
        job = forgotten.lane("b").add_task(print)

        async def waits() -> None:
            with pytest.raises(WouldDeadlock):
                await job.wait()

        tasks.add_task(waits)
        await respond()
        await tasks()

    assert (await get(app_of(handle))).error is None


async def test_waiting_for_a_task_of_an_open_request(events: list[Any]) -> None:
    """A task may wait for one of a request that has not responded."""
    responds = anyio.Event()
    jobs: list[Job[Any]] = []

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        jobs.append(tasks.lane("b").add_task(events.append, 1))
        await responds.wait()
        await respond()
        await tasks()

    async def waits() -> None:
        await jobs[0].wait()
        events.append(2)

    app = app_of(handle)
    async with anyio.create_task_group() as group:
        await Client(app, group).start()
        job = app.executor.submit_nowait(waits)
        await wait_all_tasks_blocked()
        responds.set()
        await job.wait()
    assert events == [1, 2]


async def test_room_that_is_inside_a_task_behind(events: list[Any]) -> None:
    """The tasks of an object that stands behind who waits for room make none."""

    async def handle(path: str, respond: Any) -> None:
        inner, tasks = BackgroundTasks(), BackgroundTasks()
        tasks.add_task(wants_room)
        inner.add_task(events.append, "inside")
        tasks.tasks.append(inner)
        await respond()
        await tasks()

    async def wants_room() -> None:
        with pytest.raises(WouldDeadlock):
            await app.executor.submit(events.append, "never")

    app = app_of(handle, max_pending=2)
    assert (await get(app)).error is None
    assert events == ["inside"]
