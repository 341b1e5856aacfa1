"""No self-deadlock: `WouldDeadlock` at once; rings are told; a task that waits lends its slot."""

from __future__ import annotations

import asyncio
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
    JobNoResult,
    JobState,
    QueueFull,
    SerialExecutor,
    WouldDeadlock,
    executor_of,
)
from fifo_background._run.rings import blockers
from tests.support.apps import Work, app_of, check_idle, make_app
from tests.support.asgi import Client, get
from tests.support.log import Log

# -- refused at once -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("how", ["await", "wait", "child"])
async def test_waiting_for_what_is_behind(how: str, sync: bool, events: list[Any]) -> None:
    """A task that waits for itself, or for one behind it in its lane, gets `WouldDeadlock` at once."""
    jobs: list[Job[Any]] = []
    why = ["it would wait for itself", r"Work\.quick stands behind it in its lane"]

    async def wait(job: Job[Any]) -> Any:
        return await (job.wait() if how == "wait" else job)

    async def waits() -> None:
        for job, reason in zip(jobs, why, strict=True):
            with pytest.raises(
                WouldDeadlock, match=rf"waits(_in_child)? would wait forever: {reason}.*executor_of"
            ):
                await wait(job)
        events.append("went on")

    async def waits_in_child() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(waits)

    def sync_waits() -> None:
        for job, reason in zip(jobs, why, strict=True):
            with pytest.raises(WouldDeadlock, match=reason):
                anyio.from_thread.run(wait, job)
        events.append("went on")

    async with SerialExecutor(drain_timeout=2) as executor:
        lane = executor.lane("a")
        task: Any = sync_waits if sync else waits_in_child if how == "child" else waits
        jobs += [lane.submit_nowait(task), lane.submit_nowait(Work(events).quick, 1)]
    assert events == ["went on", 1]


@pytest.mark.parametrize("inline", [False, True])
async def test_waiting_for_a_part(inline: bool, events: list[Any]) -> None:
    """A task that waits for a part of itself, one that runs or one that comes later, gets `WouldDeadlock`."""
    jobs: list[Job[Any]] = []

    async def waits() -> None:
        for job in jobs:
            with pytest.raises(WouldDeadlock):
                await job
        events.append("went on")

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()

        async def outer() -> None:
            inner = BackgroundTasks()
            jobs.extend([inner.add_task(waits), inner.add_task(events.append, "later")])
            await inner()

        if inline:
            tasks.add_task(outer)
        else:
            inner = BackgroundTasks()
            jobs.extend([inner.add_task(waits), inner.add_task(events.append, "later")])
            tasks.add_task(inner)
        await respond()
        await tasks()

    with anyio.fail_after(5):
        assert (await get(app_of(handle))).error is None
    assert events == ["went on", "later"]


async def test_join_inside(events: list[Any]) -> None:
    """`join` and `aclose` inside a task are refused, also in a thread."""

    async def joins() -> None:
        for wait in (executor.join, executor.aclose):
            with pytest.raises(WouldDeadlock, match="joins would wait forever: it is one of the tasks that"):
                await wait()
        events.append("task")

    def sync_joins() -> None:
        for wait in (executor.join, executor.aclose):
            with pytest.raises(WouldDeadlock):
                anyio.from_thread.run(wait)
        events.append("sync task")

    async with SerialExecutor(drain_timeout=2) as executor:
        await executor.submit_nowait(joins)
        await executor.submit_nowait(sync_joins)
    assert events == ["task", "sync task"]


async def test_request_that_waits_for_itself(events: list[Any]) -> None:
    """A request is refused to wait for its own tasks, for one behind its position, and to join."""
    later: list[Job[Any]] = []

    async def handler(request: Request) -> Response:
        executor = executor_of(request)
        await executor.join()  # no task of it waits
        tasks = BackgroundTasks()
        job = tasks.add_task(events.append, "request")
        with pytest.raises(WouldDeadlock, match="GET /handler would wait forever: its own tasks are among"):
            await executor.join()
        for wait in (job.wait(), job):
            with pytest.raises(WouldDeadlock, match=r"list\.append is its own task, and starts after"):
                await wait
        behind = executor.submit_nowait(events.append, "behind")
        with pytest.raises(WouldDeadlock, match=r"list\.append stands behind the position that it holds"):
            await behind
        beside = executor.lane("a").submit_nowait(events.append, "beside")
        await beside
        later.append(behind)
        return Response(background=tasks)

    assert (await get(make_app(handler), "/handler")).error is None
    await later[0]
    assert events == ["beside", "request", "behind"]


@pytest.mark.parametrize("order", ["added", "arrived", "responded"])
async def test_request_that_waits_for_its_own_task(order: str, events: list[Any]) -> None:
    """With each order a request is refused to wait for its own task, awaited before the response or not."""

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        job = tasks.add_task(events.append, "task")
        with pytest.raises(WouldDeadlock):
            await job
        await tasks()
        with pytest.raises(WouldDeadlock):
            await job
        await respond()

    may: Any = {"may_add_tasks": lambda scope: True} if order == "arrived" else {}
    with anyio.fail_after(5):
        assert (await get(app_of(handle, order=order, **may))).error is None
    assert events == ["task"]


async def test_request_that_arrived_and_waits(events: list[Any]) -> None:
    """With order="arrived" a request that has added nothing holds a position, too."""

    async def handle(path: str, respond: Any) -> None:
        behind = app.executor.submit_nowait(events.append, "behind")
        with pytest.raises(WouldDeadlock, match="stands behind the position that it holds"):
            await behind
        await respond()

    app = app_of(handle, order="arrived", may_add_tasks=lambda scope: True)
    assert (await get(app)).error is None
    await app.executor.join()
    assert events == ["behind"]


async def test_ahead_is_no_deadlock(events: list[Any]) -> None:
    """A request that holds a position may wait for a task that is ahead of it."""
    work = Work(events)

    async def handler(request: Request) -> Response:
        ahead = executor_of(request).submit_nowait(work.gated, 0)
        tasks = BackgroundTasks()
        tasks.add_task(work.quick, 1)
        await ahead
        return Response(background=tasks)

    app = make_app(handler)
    async with anyio.create_task_group() as group:
        exchange = await Client(app, group).start("/handler")
        work.gate(0).set()
    assert exchange.error is None
    assert events == ["start 0", "end 0", 1]


@pytest.mark.parametrize("lane_limit", [False, True])
@pytest.mark.parametrize("sync", [False, True])
async def test_submit_inside_a_task(sync: bool, lane_limit: bool, events: list[Any]) -> None:
    """`await submit` inside a task never waits: it raises `QueueFull` where there is no capacity."""
    executor = SerialExecutor(max_waiting=None if lane_limit else 1, drain_timeout=2)
    lane = executor.lane("b", max_waiting=1 if lane_limit else None)

    async def submits() -> None:
        await lane.submit(events.append, "submitted")
        with pytest.raises(QueueFull, match=r"list\.append was refused: 1 task waits already"):
            await lane.submit(events.append, "never")
        events.append("went on")

    def sync_submits() -> None:
        anyio.from_thread.run(submits)

    async with executor:
        lane.pause()
        with anyio.fail_after(5):
            await executor.lane("a").submit_nowait(sync_submits if sync else submits)
        lane.resume()
    assert events == ["went on", "submitted"]


async def test_capacity_that_a_request_makes(events: list[Any]) -> None:
    """A request may wait in `submit` for capacity that another request makes, which holds no position yet."""
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

    app = app_of(handle, order="responded", max_waiting=1)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        await client.start("/slow")
        submits = await client.start("/submits")
        responds.set()
        await app.executor.join()
    assert submits.error is None
    assert events == ["slow", "submitted"]


async def test_handler_without_a_position() -> None:
    """A request that has added nothing may wait for any task, as often as it likes."""
    seen: list[Any] = []

    async def handle(path: str, respond: Any) -> None:
        seen.append(await (await app.executor.submit(len, "a")))
        seen.append(await app.executor.submit_nowait(len, "ab"))
        await respond()

    app = app_of(handle)
    assert (await get(app)).error is None
    assert seen == [1, 2]


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
        await jobs[0]
        events.append(2)

    app = app_of(handle)
    async with anyio.create_task_group() as group:
        await Client(app, group).start()
        job = app.executor.submit_nowait(waits)
        await wait_all_tasks_blocked()
        responds.set()
        await job
    assert events == [1, 2]


# -- requests to the own app ---------------------------------------------------------------------------------


@pytest.mark.parametrize("lane", [None, "b"])
async def test_app_that_asks_itself(lane: str | None, events: list[Any]) -> None:
    """A request that a running task makes to its own app does not wait for its tasks: they run in turn."""

    async def asks() -> None:
        for path in ("/inner", "/handed"):
            inner = await get(app, path)
            assert inner.error is None
            assert inner.status == 200
        events.append("outer")

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        if path == "/outer":
            tasks.add_task(asks)
        else:
            tasks.lane(lane).add_task(events.append, path)
        if path == "/handed":
            await tasks()
            await respond()
        else:
            await respond()
            await tasks()

    app = app_of(handle, max_lanes_running=1)
    with anyio.fail_after(5):
        assert (await get(app, "/outer")).error is None
        await app.executor.join()
    assert events == ["outer", "/inner", "/handed"]


def test_app_that_asks_itself_under_a_task_factory(events: list[Any]) -> None:
    """A task factory that wraps the coroutines of tasks changes nothing of that."""

    def factory(loop: Any, coroutine: Any, **kwargs: Any) -> Any:
        async def wrapped() -> Any:
            return await coroutine

        return asyncio.Task(wrapped(), loop=loop, **kwargs)

    async def asks() -> None:
        await anyio.sleep(0)
        events.append((await get(app, "/inner")).error)

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        if path == "/":
            tasks.add_task(asks)
        else:
            tasks.add_task(events.append, "inner")
        await respond()
        await tasks()

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(factory)
        with anyio.fail_after(5):
            await get(app)
            await app.executor.join()

    app = app_of(handle)
    asyncio.run(main())
    assert events == [None, "inner"]


async def test_request_that_a_task_only_starts(events: list[Any]) -> None:
    """A request that a running task starts without waiting for it does not wait for its tasks."""

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
        await app.executor.join()
    assert events == [None, "outer", "inner"]


async def test_request_that_outlives_the_task_that_starts_it(events: list[Any]) -> None:
    """A request that a task has started waits for its own tasks where the task has ended before."""
    go_on, gate = anyio.Event(), anyio.Event()

    async def starts() -> None:
        group.start_soon(ask)

    async def ask() -> None:
        await get(app, "/inner")
        events.append("let go")

    async def inner() -> None:
        await gate.wait()
        events.append("inner")

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        if path == "/inner":
            await go_on.wait()
            tasks.add_task(inner)
        else:
            tasks.add_task(starts)
        await respond()
        await tasks()

    app = app_of(handle)
    async with anyio.create_task_group() as group:
        assert (await get(app)).error is None
        go_on.set()
        await wait_all_tasks_blocked()
        assert events == []
        gate.set()
    assert events == ["inner", "let go"]


async def test_tasks_that_ask_their_app_in_a_ring() -> None:
    """Tasks that make requests whose tasks make requests, in each other's lanes, all end."""
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
            tasks.lane("a").add_task(asks, "/4" if path == "/3" else "")
        await respond()
        if path not in ("/4", ""):
            await tasks()

    app = app_of(handle)
    with anyio.fail_after(5):
        assert (await get(app, "/1")).error is None
        await app.executor.join()
    assert errors == {"/2": None, "/3": None, "/4": None}
    assert app.executor.statistics().unfinished == 0


# -- slots ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", [False, True])
async def test_a_waiting_task_lends_its_slot(sync: bool, events: list[Any]) -> None:
    """A task that waits for a job of another lane lends its slot: `max_lanes_running=1` is no deadlock."""

    async def parent(depth: int) -> int:
        if depth == 3:
            return 0
        job = executor.lane(depth + 1).submit_nowait(sync_parent if sync else parent, depth + 1)  # type: ignore[arg-type]
        return int(await job) + 1

    def sync_parent(depth: int) -> int:
        return anyio.from_thread.run(parent, depth)

    async with SerialExecutor(max_lanes_running=1, drain_timeout=5) as executor:
        job = executor.lane(0).submit_nowait(sync_parent if sync else parent, 0)
        assert await job == 3
    assert executor._runner.scheduler.slots.free == 1


async def test_its_own_lane_stays_closed(events: list[Any]) -> None:
    """While a task lends its slot, nothing else of its lane starts, and it goes on when a slot is free."""
    work = Work(events)

    async def parent() -> None:
        events.append("parent")
        with pytest.raises(JobNoResult):
            await jobs[0]
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
        assert executor._runner.scheduler.slots.free == 0
        work.gate(9).set()
    assert events[-2:] == ["end 9", 1]
    assert executor._runner.scheduler.slots.free == 1


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
        assert executor._runner.scheduler.slots.free == 1
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
        await executor.lane("a").submit_nowait(parent)
        await wait_all_tasks_blocked()
        assert executor._runner.scheduler.slots.free == 1
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
        assert executor._runner.scheduler.slots.free == 1
    assert sorted(events, key=str) == [2, "end 1", "start 1"]


async def test_slot_for_a_wait_that_outlives_its_task(events: list[Any]) -> None:
    """A wait that gets the slot of its task back when that has ended passes it on."""
    work = Work(events)

    async def parent() -> None:
        group.start_soon(jobs[0].wait)
        await work.gate(0).wait()
        events.append("parent")

    async with (
        anyio.create_task_group() as group,
        SerialExecutor(max_lanes_running=1, drain_timeout=2) as executor,
    ):
        scheduler = executor._runner.scheduler
        executor.lane("a").submit_nowait(parent)
        jobs = [executor.lane(key).submit_nowait(work.gated, n) for n, key in enumerate("bcd", 1)]
        await wait_all_tasks_blocked()
        work.gate(1).set()
        await wait_all_tasks_blocked()
        assert events == ["start 1", "end 1", "start 2"]
        assert len(scheduler.slots.returning) == 1
        work.gate(0).set()
        await wait_all_tasks_blocked()
        assert events[3:] == ["parent"], "the slot is still taken"
        work.gate(2).set()
        await wait_all_tasks_blocked()
        assert events[4:] == ["end 2", "start 3"]
        work.gate(3).set()
        await executor.join()
        await wait_all_tasks_blocked()
        assert (scheduler.slots.free, len(scheduler.slots.returning)) == (1, 0)
        check_idle(executor)


async def test_two_waits_for_one_job(events: list[Any]) -> None:
    """A task may wait for one job twice: it is shown as waiting until the last wait has ended."""
    work = Work(events)

    async def parent() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(job.wait)
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as inner:
                    inner.start_soon(job.wait)
                    await wait_all_tasks_blocked()
                    scope.cancel()
            assert executor.statistics().lanes["a"].running_waits_for == ("Work.gated",)
            work.gate(1).set()
        assert executor.statistics().lanes["a"].running_waits_for == ()
        events.append("parent")

    async with SerialExecutor(drain_timeout=2) as executor:
        job = executor.lane("b").submit_nowait(work.gated, 1)
        await executor.lane("a").submit_nowait(parent)
    assert events == ["start 1", "end 1", "parent"]


async def test_request_inside_a_request(events: list[Any]) -> None:
    """A handler that holds a position may ask its own app, also by way of another app or of its task.

    The inner request does not wait for its tasks: they stand behind the outer one's.
    """

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, path)
        if path != "/inner":
            way: Any = {"/direct": app, "/by an app": other, "/by a task": other}[path]
            exchange = await get(way, "/inner" if way is app else path)
            assert (exchange.status, exchange.error) == (200, None)
            events.append("asked")
        await respond()
        await tasks()

    async def pass_on(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        if path == "/by a task":
            tasks.add_task(get, app, "/inner")
        else:
            await get(app, "/inner")
        await respond()
        await tasks()

    app, other = app_of(handle), app_of(pass_on)
    for path in ("/direct", "/by an app", "/by a task"):
        events.clear()
        with anyio.fail_after(3):
            assert (await get(app, path)).error is None
            await app.executor.join()
        assert events == ["asked", path, "/inner"], path
    check_idle(app.executor)


async def test_request_that_a_task_of_another_executor_makes(events: list[Any]) -> None:
    """A request that a task of an executor of its own makes waits for its tasks, as usual."""

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(Work(events).quick, 1)
        await respond()
        await tasks()

    async def asks() -> None:
        await get(app)
        events.append("asked")

    app = app_of(handle)
    async with SerialExecutor() as executor:
        await executor.submit_nowait(asks)
    assert events == [1, "asked"]


async def test_join_while_its_own_task_runs(events: list[Any]) -> None:
    """`join` in a request whose own detached task runs would wait for that, and is refused."""
    work = Work(events)

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(work.gated, 1)
        await respond()
        await tasks()
        await wait_all_tasks_blocked()
        assert events == ["start 1"]
        with pytest.raises(WouldDeadlock, match="its own tasks are among those that `join` waits for"):
            await app.executor.join()
        work.gate(1).set()

    app = app_of(handle, wait=False)
    assert (await get(app)).error is None
    await app.executor.join()
    assert events == ["start 1", "end 1"]


# -- rings ---------------------------------------------------------------------------------------------------


def of_rings(log: Log) -> list[str]:
    return [line for line in log if "wait for each other" in line]


RING = "WARNING tasks wait for each other, for 5 s now, and none of them can end: "


@pytest.mark.virtual_clock
async def test_ring_of_two_tasks(log: Log) -> None:
    """After `hold_timeout` one record tells of two tasks that wait for each other; `statistics` shows it."""
    jobs: dict[str, Job[Any]] = {}

    async def one() -> Any:
        return await jobs["two"]

    async def two() -> Any:
        return await jobs["one"]

    async with SerialExecutor(max_lanes_running=1) as executor:
        jobs["one"] = executor.lane("a").submit_nowait(one)
        jobs["two"] = executor.lane("b").submit_nowait(two)
        await anyio.sleep(4.9)
        assert log == []
        lanes = executor.statistics().lanes
        name = "test_ring_of_two_tasks.<locals>."
        assert lanes["a"].running_waits_for == (f"{name}two",)
        assert lanes["b"].running_waits_for == (f"{name}one",)
        await anyio.sleep(10)
        (said,) = of_rings(log)
        assert said in (
            f"{RING}{name}one waits for {name}two; {name}two waits for {name}one",
            f"{RING}{name}two waits for {name}one; {name}one waits for {name}two",
        )
        assert [job.state for job in jobs.values()] == [JobState.RUNNING] * 2
        assert jobs["one"].cancel()
        with pytest.raises(JobNoResult):
            await jobs["two"]
        assert executor.statistics().lanes == {}
    assert of_rings(log) == [said]


@pytest.mark.virtual_clock
async def test_ring_across_two_lanes(log: Log) -> None:
    """Tasks that wait for tasks behind one another are such a ring; the record says what is behind what."""
    jobs: dict[str, Job[Any]] = {}

    async def waits(other: str) -> None:
        await jobs[f"behind {other}"]

    async def behind() -> None: ...

    async with SerialExecutor() as executor:
        for name, other in ("ab", "ba"):
            jobs[name] = executor.lane(name).submit_nowait(waits, other)
            jobs[f"behind {name}"] = executor.lane(name).submit_nowait(behind)
        await anyio.sleep(20)
        (said,) = of_rings(log)
        inside = "test_ring_across_two_lanes.<locals>."
        step = f"{inside}waits waits for {inside}behind, which is behind {inside}waits"
        assert said == f"{RING}{step}; {step}"
        assert jobs["a"].cancel()
    assert [jobs[name].state for name in ("a", "b")] == [JobState.CANCELLED, JobState.SUCCEEDED]


@pytest.mark.virtual_clock
async def test_long_wait_is_no_ring(log: Log) -> None:
    """Nothing is said of a wait that only takes long, also where many wait for one."""

    async def waits() -> None:
        await slow

    async with SerialExecutor() as executor:
        slow = executor.lane("slow").submit_nowait(anyio.sleep, 100)
        for key in range(10):
            executor.lane(key).submit_nowait(waits)
        await anyio.sleep(50)
        assert executor.statistics().lanes[3].running_waits_for == ("sleep",)
        await executor.join()
        assert executor._runner.waits.rings.of_jobs == {}
    assert log == []


@pytest.mark.virtual_clock
async def test_ring_by_way_of_a_held_position(events: list[Any], log: Log) -> None:
    """A task and a request that wait for what the other one keeps back: the request loses its position."""
    jobs: dict[str, Job[Any]] = {}
    begun = anyio.Event()

    async def task() -> None:
        begun.set()
        await jobs["behind the request"]
        events.append("task")

    async def handler(request: Request) -> Response:
        executor = executor_of(request)
        tasks = BackgroundTasks()
        tasks.lane("a").add_task(events.append, "request's")
        jobs["behind the request"] = executor.lane("a").submit_nowait(events.append, "behind")
        job = executor.lane("b").submit_nowait(task)
        await begun.wait()
        await job
        return Response(background=tasks)

    assert (await get(make_app(handler), "/handler")).error is None
    assert events == ["behind", "task", "request's"]
    assert [line for line in log if "lost its position" in line]


@pytest.mark.virtual_clock
async def test_ring_by_way_of_its_own_request(log: Log) -> None:
    """A task that waits for one which its request drops only after it is told in one record."""
    jobs: list[Job[Any]] = []

    async def handle(path: str, respond: Any) -> None:
        tasks, forgotten = BackgroundTasks(), BackgroundTasks()
        jobs.append(forgotten.lane("b").add_task(print))

        async def waits() -> None:
            with pytest.raises(JobNoResult):
                await jobs[0]

        tasks.add_task(waits)
        await respond()
        await tasks()

    app = app_of(handle)
    async with anyio.create_task_group() as group:
        exchange = await Client(app, group).start()
        await anyio.sleep(20)
        told = of_rings(log)
        jobs[0].cancel()
    assert exchange.error is None
    assert len(told) == 1
    assert "waits waits for print" in told[0]


@pytest.mark.virtual_clock
async def test_ring_that_is_cut(log: Log) -> None:
    """A wait in a ring that is cut before `hold_timeout`, by a timeout of its own, is no ring."""
    jobs: dict[str, Job[Any]] = {}

    async def patient() -> None:
        await jobs["impatient"]

    async def impatient() -> None:
        with anyio.move_on_after(3):
            await jobs["patient"]
        await anyio.sleep(10)

    async with SerialExecutor() as executor:
        for name, task in (("patient", patient), ("impatient", impatient)):
            jobs[name] = executor.lane(name).submit_nowait(task)
        await executor.join()
    assert [job.state for job in jobs.values()] == [JobState.SUCCEEDED] * 2
    assert log == []


@pytest.mark.virtual_clock
async def test_ring_by_way_of_the_task_that_asks(events: list[Any], log: Log) -> None:
    """A request that waits for what stands behind the task that asked for it is told in one record."""

    async def asks() -> None:
        assert (await get(app, "/inner")).error is None
        events.append("asked")

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        if path == "/outer":
            tasks.add_task(asks)
        else:
            job = app.executor.submit_nowait(Work(events).quick, "behind")  # type: ignore[arg-type]
            with anyio.move_on_after(20):
                await job
        await respond()
        await tasks()

    app = app_of(handle)
    assert (await get(app, "/outer")).error is None
    await app.executor.join()
    name = "test_ring_by_way_of_the_task_that_asks.<locals>.asks"
    assert of_rings(log) == [
        f"{RING}GET /inner waits for Work.quick, which is behind {name}; {name} made GET /inner"
    ]
    assert events == ["asked", "behind"]


async def test_ended_blocks_nobody() -> None:
    """A job that has ended by the time at which rings are looked for is behind nothing."""
    async with SerialExecutor() as executor:
        job = executor.submit_nowait(Work([]).quick, 1)
        await job
        assert list(blockers(job)) == []


async def test_waiting_for_another_executor(events: list[Any]) -> None:
    """A task that waits for a job of another executor lends its slot, too."""

    async def first() -> int:
        return await other.submit_nowait(second) + 1

    async def second() -> int:
        return await executor.lane("b").submit_nowait(third) + 1

    async def third() -> int:
        return 1

    async with SerialExecutor(max_lanes_running=1) as executor, SerialExecutor(max_lanes_running=1) as other:
        assert await executor.lane("a").submit_nowait(first) == 3


@pytest.mark.virtual_clock
async def test_ring_through_a_request_that_a_task_made(events: list[Any], log: Log) -> None:
    """A task asks its own app, and the handler waits for a task behind it: one record says so."""

    async def ask() -> None:
        with anyio.move_on_after(10):
            await get(app, "/inner")

    async def handle(path: str, respond: Any) -> None:
        if path == "/inner":
            await get(app, "/innermost")
        elif path == "/innermost":
            await app.executor.submit_nowait(Work(events).quick, 1)
        else:
            tasks = BackgroundTasks()
            tasks.add_task(ask)
            await respond()
            await tasks()

    app = app_of(handle, hold_timeout=1.0)
    await get(app, "/outer")
    await app.executor.join()
    (record,) = [line for line in log if "wait for each other" in line]
    assert "GET /innermost waits for Work.quick, which is behind" in record
    assert record.endswith("ask made GET /innermost")
