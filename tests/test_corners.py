"""Corners in which a defect was found once: each docstring is what the contract says of it."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import gc
import pickle
import threading
import weakref
from collections.abc import Awaitable, Callable
from contextvars import Context, ContextVar
from functools import partial
from typing import Any

import anyio
import pytest
import starlette.background
from anyio import wait_all_tasks_blocked
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from fifo_background import (
    BackgroundTask,
    BackgroundTasks,
    ExecutorClosed,
    Job,
    JobState,
    OrderedBackgroundMiddleware,
    QueueFull,
    SerialExecutor,
    WouldDeadlock,
    _call,
    executor_of,
)
from fifo_background._executor import current
from fifo_background._request import TrackedRequest
from tests.asgi import Client, Exchange, get
from tests.conftest import Log
from tests.loops import LOOPS, run

user: ContextVar[str] = ContextVar("user", default="nobody")


def app_of(handle: Callable[[str, Callable[[], Awaitable[None]]], Awaitable[None]], **settings: Any) -> Any:
    """An ASGI app in our middleware; `handle(path, respond)` is its handler."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def respond() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        await handle(scope["path"], respond)

    return OrderedBackgroundMiddleware(app, **settings)


# -- contexts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS)
def test_empty_context(loop: str) -> None:
    """No task sees another's context, even if its own is empty."""
    seen: list[str] = []

    async def sets() -> None:
        user.set("alice")
        await anyio.lowlevel.checkpoint()

    async def looks() -> None:
        seen.append(user.get())

    async def main() -> None:
        async with SerialExecutor() as executor:
            executor.submit_nowait(sets)
            executor.submit_nowait(looks)

    Context().run(run, loop, main)
    assert seen == ["nobody"]


async def test_retry_by_a_task_of_another_lane(events: list[Any]) -> None:
    """A task of another lane may retry what has failed, in the turn of the loop in which it failed."""

    async def repair() -> None:
        executor.lane("orders").retry_head()

    async def work() -> None:
        events.append(user.get())
        await anyio.lowlevel.checkpoint()
        if len(events) == 1:
            executor.lane("repair").submit_nowait(repair)
            raise ValueError

    user.set("alice")
    async with SerialExecutor() as executor:
        executor.lane("orders", after_failure="stop").submit_nowait(work)
        await executor.join()
    assert events == ["alice", "alice"]


# -- lanes ------------------------------------------------------------------------------------------------


@pytest.mark.virtual_clock
async def test_timer_of_a_lane_that_is_gone(events: list[Any]) -> None:
    """A lane whose held head was called off leaves nothing behind that a later lane of its key could meet."""

    async def call_off() -> None:
        held.cancel()

    async def slow(n: int) -> None:
        events.append(f"start {n}")
        await anyio.sleep(4)
        events.append(f"end {n}")

    async def handle(path: str, respond: Any) -> None:
        nonlocal held
        tasks = BackgroundTasks()
        if path == "/held":
            held = tasks.lane("x").add_task(events.append, "never")
            await anyio.sleep(1)
        else:
            tasks.lane("x").add_task(call_off)
            tasks.lane("y").add_task(call_off)
        await respond()
        await tasks()

    held: Any = None
    app = app_of(handle, hold=2)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        await client.start("/held")
        await client.start("/other")
    executor = app.executor
    executor.lane("x").submit_nowait(slow, 1)
    await anyio.sleep(3)
    executor.lane("x").submit_nowait(slow, 2)
    await executor.join()
    assert events == ["start 1", "end 1", "start 2", "end 2"]
    assert list(executor.line.lanes) == [None]


@pytest.mark.virtual_clock
async def test_each_head_has_its_own_time(events: list[Any], log: Log) -> None:
    """A head that is held is lost in its own time, however long the one before it might have stayed."""
    responds = anyio.Event()

    async def looks() -> None:
        events.append(round(anyio.current_time() - begin, 1))

    async def handle(path: str, respond: Any) -> None:
        tasks, never_awaited = BackgroundTasks(), BackgroundTasks()
        if path == "/ready":
            tasks.add_task(looks)
        elif path == "/second":
            tasks.add_task(anyio.sleep, 0)
            await responds.wait()
        else:
            tasks.add_task(anyio.sleep, 0.8)  # after it `hold` begins anew, up to 1.8
            never_awaited.add_task(anyio.sleep, 0)
        await respond()
        await tasks()
        if path == "/first":
            await anyio.sleep(0.1)

    app = app_of(handle, hold=1)
    begin = anyio.current_time()
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        for path in ("/first", "/second", "/ready"):
            await client.start(path)
        await anyio.sleep(5)
        responds.set()
    assert len(events) == 1
    assert 1.0 <= events[0] < 1.5  # not 1.8
    assert ["GET /second lost its place" in line for line in log] == [False, True]


async def test_looking_changes_nothing(events: list[Any]) -> None:
    """Statistics and peeks change no order: what a running task adds to its place stays in its place."""

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


# -- what a task may be -----------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [None, 5.0])
async def test_plain_list_as_an_entry(timeout: float | None, events: list[Any]) -> None:
    """One of Starlette's own lists as an entry runs inline, in that entry's place."""

    async def later(n: int) -> None:
        await anyio.lowlevel.checkpoint()
        events.append(n)

    async def handle(path: str, respond: Any) -> None:
        plain = starlette.background.BackgroundTasks()
        plain.add_task(events.append, 1)
        plain.add_task(later, 2)
        tasks = BackgroundTasks([plain])
        tasks.add_task(events.append, 3)
        await respond()
        await tasks()

    app = app_of(handle, timeout=timeout)
    assert [(await get(app)).error for _ in range(2)] == [None, None]
    assert events == [1, 2, 3] * 2
    assert app.executor.line.unfinished == 0


@pytest.mark.parametrize("timeout", [None, 5.0])
async def test_entries_of_all_kinds(timeout: float | None, events: list[Any]) -> None:
    """What is no plain task fails, if it must, as a task: the line goes on."""

    class OwnCall(starlette.background.BackgroundTask):
        def __init__(self) -> None: ...

        async def __call__(self) -> None:
            events.append("own call")

    class Bare(starlette.background.BackgroundTask):
        def __init__(self) -> None: ...

    async def handle(path: str, respond: Any) -> None:
        entries: list[Any] = [OwnCall()] if path == "/own" else [Bare()]
        if path == "/nested":
            entries = [BackgroundTasks([OwnCall()])]
        await respond()
        await BackgroundTasks(entries)()

    app = app_of(handle, timeout=timeout)
    assert (await get(app, "/own")).error is None
    assert isinstance((await get(app, "/bare")).error, AttributeError)
    assert (await get(app, "/nested")).error is None
    assert events == ["own call", "own call"]
    assert app.executor.line.unfinished == 0


class _Wrapper:
    """As wrapt does it: every look at the attribute gives another object."""

    def __init__(self, wrapped: Any) -> None:
        self.wrapped = wrapped

    def __get__(self, instance: Any, owner: Any) -> Any:
        return _Wrapper(self.wrapped.__get__(instance, owner))

    def __call__(self, *args: Any) -> Any:
        return self.wrapped(*args)


async def test_wrapped_by_descriptors(events: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """An instrumentation that wraps `BackgroundTask.__call__` in a descriptor changes nothing."""
    task_class = starlette.background.BackgroundTask
    monkeypatch.setattr(task_class, "__call__", _Wrapper(task_class.__call__))
    started, go_on = threading.Event(), threading.Event()

    def sync() -> int:
        events.append("start")
        started.set()
        go_on.wait(5)
        events.append("end")
        return 1

    tasks = BackgroundTasks()
    first, second = tasks.add_task(sync), tasks.add_task(events.append, "second")
    async with anyio.create_task_group() as group:
        group.start_soon(tasks)
        while not started.is_set():
            await anyio.lowlevel.checkpoint()
        assert not first.cancel()
        limiter = anyio.to_thread.current_default_thread_limiter()
        assert limiter.borrowed_tokens == 0
        go_on.set()
    assert events == ["start", "end", "second"]
    assert (first.result(), second.state) == (1, JobState.SUCCEEDED)


# -- event loops ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keyword", [False, True])
def test_task_factories(keyword: bool, log: Log) -> None:
    """A task factory need not know `context=`; one that raises fails the task, and the line goes on."""

    def factory(loop: Any, coroutine: Any, **more: Any) -> Any:
        if broken:
            raise ZeroDivisionError
        return asyncio.Task(coroutine, loop=loop, **more)

    async def work() -> str:
        return user.get()

    async def main() -> None:
        nonlocal broken
        loop = asyncio.get_running_loop()
        plain: Any = lambda loop, coroutine: factory(loop, coroutine)  # noqa: E731
        async with SerialExecutor() as executor:
            user.set("alice")
            loop.set_task_factory(factory if keyword else plain)
            assert await executor.submit_nowait(work).wait() == "alice"
            broken = True
            failed = executor.submit_nowait(work)
            await asyncio.sleep(0)
            broken = False
            loop.set_task_factory(None)
            assert await executor.submit_nowait(work).wait() == "alice"
            assert isinstance(failed.exception(), ZeroDivisionError)

    broken = False
    asyncio.run(main())
    assert [line.split(":")[0] for line in log] == ["ERROR test_task_factories.<locals>.work failed"]


@pytest.mark.skipif("sys.version_info < (3, 11)", reason="Python 3.10 cannot tell who has cancelled a task")
def test_cancelled_by_itself(log: Log) -> None:
    """A task that raises CancelledError ends no line, whatever else is being cancelled."""
    events: list[Any] = []

    async def raises() -> None:
        await asyncio.sleep(0)
        raise asyncio.CancelledError

    async def main() -> None:
        executor = SerialExecutor()
        executor.submit_nowait(raises)
        for n in range(3):
            executor.submit_nowait(events.append, n)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(0)
        await executor.join()
        assert executor.is_open
        executor.submit_nowait(raises)
        executor.submit_nowait(events.append, 3)
        await executor.aclose()

    asyncio.run(main())
    assert events == [0, 1, 2, 3]
    assert [line.rsplit(" ", 2)[-1] for line in log] == ["cancelled", "cancelled"]


# -- room and the end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("paused", [False, True])
async def test_closing_while_many_wait_for_room(paused: bool) -> None:
    """However many `submit`s wait for room when the executor is closed, each gets `ExecutorClosed`."""
    executor = SerialExecutor(max_pending=1)
    gate = anyio.Event()
    refused: list[Any] = []

    async def submit() -> None:
        try:
            await executor.submit(gate.wait)
        except ExecutorClosed as error:
            refused.append(error)

    async with anyio.create_task_group() as group:
        if paused:
            executor.lane("a").pause()
            executor.lane("a").submit_nowait(gate.wait)
        else:
            executor.submit_nowait(gate.wait)
            await wait_all_tasks_blocked()
            executor.submit_nowait(gate.wait)
        for _ in range(400):
            group.start_soon(submit)
        await wait_all_tasks_blocked()
        group.start_soon(executor.aclose)
        await wait_all_tasks_blocked()
        gate.set()
    assert len(refused) == 400
    assert (executor.line.unfinished, executor.line.waiting, list(executor.line.lanes)) == (0, 0, [None])


async def test_many_that_replace_one_another() -> None:
    """A `submit` that is let in and replaces an older task makes room for the next one, without end."""
    gate = anyio.Event()
    jobs: list[Job[Any]] = []

    async def work() -> None:
        await gate.wait()

    async def submit() -> None:
        jobs.append(await executor.lane("a", keep="latest").submit(work))

    async with SerialExecutor(max_pending=2) as executor:
        lane = executor.lane("a", keep="latest")
        lane.submit_nowait(work)
        await wait_all_tasks_blocked()
        jobs.append(lane.submit_nowait(work))
        executor.lane("b").pause()
        executor.lane("b").submit_nowait(work)
        async with anyio.create_task_group() as group:
            for _ in range(400):
                group.start_soon(submit)
            await wait_all_tasks_blocked()
            executor.lane("b").clear()
        gate.set()
    states = [job.state for job in jobs]
    assert (states.count(JobState.SUPERSEDED), states.count(JobState.SUCCEEDED)) == (400, 1)


async def test_who_gives_up_waits_no_more() -> None:
    """A `submit` that was called off does not stand in the way of others."""
    async with SerialExecutor() as executor:
        executor.lane("a").pause()
        lane = executor.lane("a", max_pending=1)
        lane.submit_nowait(print)
        with anyio.move_on_after(0):
            await lane.submit(print)
        async with anyio.create_task_group() as group:
            group.start_soon(lane.submit, print)
            await wait_all_tasks_blocked()
            with pytest.raises(QueueFull):
                executor.lane("a", max_pending=10).submit_nowait(print)
            group.cancel_scope.cancel()
        executor.lane("a", max_pending=10).submit_nowait(print)
        assert executor.line.waiting == 2
        executor.lane("a").clear()


@pytest.mark.parametrize("paused", [False, True])
def test_submit_that_is_cancelled_natively(paused: bool) -> None:
    """A `submit` that is cancelled, however, leaves no task behind that has not begun."""
    events: list[Any] = []

    async def append(n: int) -> None:
        events.append(n)

    async def main() -> None:
        async with SerialExecutor() as executor:
            lane = executor.lane("a")
            if paused:
                lane.pause()
            submit = asyncio.ensure_future(lane.submit(append, 1))
            await asyncio.sleep(0)
            submit.cancel()
            with pytest.raises(asyncio.CancelledError):
                await submit
            assert executor.line.waiting == 0
            lane.resume()
            await lane.submit(append, 2)

    asyncio.run(main())
    assert events == ([2] if paused else [1, 2])


async def test_closing_twice(events: list[Any]) -> None:
    """Whoever closes an executor that is being closed waits until it is."""
    gate = anyio.Event()
    executor = SerialExecutor()

    async def close() -> None:
        await executor.aclose()
        events.append("closed")

    executor.submit_nowait(gate.wait)
    async with anyio.create_task_group() as group:
        group.start_soon(close)
        group.start_soon(close)
        await wait_all_tasks_blocked()
        assert events == []
        gate.set()
    await close()
    assert events == ["closed"] * 3


async def test_join_and_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """`join` does not miss the end of the last task, which a thread reports between two looks."""
    started, go_on = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        go_on.wait(5)

    async with SerialExecutor() as executor:
        job = executor.submit_nowait(work)
        while not started.is_set():
            await anyio.lowlevel.checkpoint()
        waiter = executor._loop.waiter

        def slow_waiter() -> Any:
            made = waiter()
            go_on.set()
            while not job.state.ended:
                pass
            return made

        with monkeypatch.context() as patch:
            patch.setattr(executor._loop, "waiter", slow_waiter)
            with anyio.fail_after(5):
                await executor.join()


async def test_closed_before_it_responded(events: list[Any], log: Log) -> None:
    """What was awaited, but has no place when the executor is closed, is dropped, and the log says why."""
    responds = anyio.Event()

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, 1)
        await tasks()
        await responds.wait()
        await respond()

    app = app_of(handle, order="responded")
    async with anyio.create_task_group() as group:
        await Client(app, group).start()
        await app.executor.aclose()
        responds.set()
    assert events == []
    assert log[-1].endswith("ended without running 1 task: list.append: the executor was closed")


# -- deadlocks --------------------------------------------------------------------------------------------


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
        with pytest.raises(WouldDeadlock, match="waits for room behind it"):
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


# -- requests and their objects ---------------------------------------------------------------------------


@pytest.mark.virtual_clock
async def test_lost_until_the_response(events: list[Any], log: Log) -> None:
    """A place that was lost is taken again when the response has ended, not by the next `add_task`."""

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, path)
        if path == "/slow":
            for _ in range(3):
                await anyio.sleep(3)
                tasks.add_task(events.append, path)
        await respond()
        await tasks()

    app = app_of(handle, hold=1)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        await client.start("/slow")
        for n in range(4):
            await client.start(f"/{n}")
            await anyio.sleep(2.4)
    assert events == ["/0", "/1", "/2", "/3", *["/slow"] * 4]
    assert len(log) == 1


@pytest.mark.virtual_clock
async def test_lost_before_any_task(log: Log) -> None:
    """A place that was taken on arrival and lost before any task is named without tasks."""

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        if path == "/slow":
            await anyio.sleep(3)
        tasks.add_task(print)
        await respond()
        await tasks()

    app = app_of(handle, order="arrived", arrives=lambda scope: True, hold=1)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        await client.start("/slow")
        await client.start("/ready")
    assert len(log) == 1
    assert log[0].endswith("when its response has ended it takes a new one")


async def test_object_in_a_task_of_another_executor(events: list[Any]) -> None:
    """A task of another executor that awaits a request's object runs its tasks; both books are closed."""

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        job = tasks.add_task(events.append, 1)
        await respond()
        await own.submit_nowait(tasks).wait()
        assert job.state is JobState.SUCCEEDED

    app = app_of(handle)
    async with SerialExecutor() as own:
        assert (await get(app)).error is None
        lines = own.line, app.executor.line
        assert [(line.unfinished, line.ready, line.waiting) for line in lines] == [(0, 0, 0)] * 2
        await app.executor.join()
    assert events == [1]


@pytest.mark.parametrize("wait", [False, True])
async def test_nested_object_extends_itself(wait: bool, events: list[Any]) -> None:
    """An object that runs inside a task may get more tasks from there, after its request, too."""

    async def handle(path: str, respond: Any) -> None:
        inner = BackgroundTasks()

        async def grows() -> None:
            await anyio.lowlevel.checkpoint()
            inner.add_task(events.append, "more")

        inner.add_task(grows)
        await respond()
        await BackgroundTasks([inner])()

    app = app_of(handle, wait=wait)
    assert (await get(app)).error is None
    await app.executor.join()
    assert events == ["more"]


async def test_running_task_adds_to_another_lane(events: list[Any]) -> None:
    """A running task may add to its own object in another lane: it runs there, in the request's context."""

    async def look() -> None:
        events.append(user.get())

    async def handle(path: str, respond: Any) -> None:
        user.set("alice")
        tasks = BackgroundTasks()

        async def grows() -> None:
            tasks.lane("other").add_task(look)

        tasks.add_task(grows)
        await respond()
        await tasks()

    assert (await get(app_of(handle))).error is None
    assert events == ["alice"]


async def test_called_off_stays_called_off(events: list[Any]) -> None:
    """A cancelled entry stays away, however often a task awaits its object."""
    inner = BackgroundTasks()
    inner.add_task(events.append, "called off").cancel()
    inner.add_task(events.append, "runs")

    async def outer() -> None:
        await inner()
        await inner()

    async with SerialExecutor() as executor:
        await executor.submit_nowait(outer).wait()
    assert events == ["runs", "runs"]


async def test_added_between_two_awaits(events: list[Any]) -> None:
    """Awaiting again runs the list again; what was added in between, and not awaited yet, runs once."""

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, 1)
        await tasks()
        tasks.add_task(events.append, 2)
        await respond()
        await tasks()

    app = app_of(handle)
    assert (await get(app)).error is None
    assert sorted(events) == [1, 1, 2]


async def test_object_made_after_the_request(events: list[Any]) -> None:
    """What a handler has left running may make objects of its own when the request has ended."""
    go_on = anyio.Event()

    async def worker() -> None:
        await go_on.wait()
        tasks = BackgroundTasks()
        tasks.add_task(events.append, "worker")
        await tasks()

    async with anyio.create_task_group() as group:

        async def handle(path: str, respond: Any) -> None:
            group.start_soon(worker)
            await respond()

        await get(app_of(handle))
        go_on.set()
    assert events == ["worker"]


async def test_executor_of_an_ended_request() -> None:
    """A task finds the executor by its request when that has ended, in a mounted app, too."""
    found: list[Any] = []
    ended = anyio.Event()

    async def look(request: Request) -> None:
        await ended.wait()
        found.append(executor_of(request))

    async def endpoint(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(look, request)
        return Response(background=tasks)

    app = Starlette(routes=[Mount("/inner", app=Starlette(routes=[Route("/", endpoint)]))])
    app.add_middleware(OrderedBackgroundMiddleware, wait=False)
    with pytest.raises(LookupError, match="has not been started yet"):
        executor_of(app)
    exchange = await Exchange(app, "/inner/").run()
    assert exchange.error is None
    ended.set()
    await executor_of(app).join()
    assert found == [executor_of(app)]
    outside_of_ours = HTTPConnection({"type": "http", "app": app})
    assert executor_of(outside_of_ours) is executor_of(app)


async def test_executor_of_a_connection_that_is_kept() -> None:
    """What keeps the scope of a request that has ended finds the executor by it."""
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        assert executor_of(HTTPConnection(scope)) is middleware.executor

    middleware = OrderedBackgroundMiddleware(app)
    await get(middleware)
    assert executor_of(HTTPConnection(scopes[0])) is middleware.executor


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


async def test_copies(events: list[Any]) -> None:
    """A copy of an object has its tasks and no part in the request: it runs in a place of its own."""

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(print, end="")
        copies = [copy.copy(tasks), copy.deepcopy(tasks), pickle.loads(pickle.dumps(tasks))]
        assert [[task.func for task in one.tasks] for one in copies] == [[print]] * 3
        assert [one._request for one in copies] == [None] * 3
        tasks.add_task(events.append, 1)
        await respond()
        await copies[1]()
        await tasks()

    app = app_of(handle)
    assert (await get(app)).error is None
    assert events == [1]
    assert app.executor.line.unfinished == 0


# -- errors -----------------------------------------------------------------------------------------------


async def test_result_keeps_nobody() -> None:
    """However often the result of a failed task is asked for, its error keeps none of those who asked."""

    class Big: ...

    kept: list[Any] = []

    async def fails() -> None:
        raise ValueError

    async def ask() -> None:
        big = Big()
        kept.append(weakref.ref(big))
        with contextlib.suppress(ValueError):
            job.result()
        with contextlib.suppress(ValueError):
            await job.wait()

    async with SerialExecutor() as executor:
        job = executor.submit_nowait(fails)
        await executor.join()
        for _ in range(10):
            await ask()
        with contextlib.suppress(ValueError):
            job.result()
    gc.collect()
    assert [ref() for ref in kept[:-1]] == [None] * 9


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


# -- what the rest of the tests would not see ---------------------------------------------------------------


async def test_a_thread_for_each_lane() -> None:
    """Own threads: no limit but `max_lanes_running`."""
    barrier = threading.Barrier(50)
    async with SerialExecutor(max_lanes_running=50) as executor:
        jobs = [executor.lane(n).submit_nowait(barrier.wait, 10) for n in range(50)]
        assert sorted([await job.wait() for job in jobs]) == list(range(50))


async def test_event_loop_inside_a_sync_task() -> None:
    """A sync task may run an event loop of its own."""
    async with SerialExecutor() as executor:
        await executor.submit_nowait(anyio.run, anyio.sleep, 0).wait()


async def test_each_await_has_its_context(events: list[Any]) -> None:
    """A request's tasks see the context in which it awaits them, each object that of its own await."""

    async def look() -> None:
        events.append(user.get())

    async def handle(path: str, respond: Any) -> None:
        one, two = BackgroundTasks(), BackgroundTasks()
        one.add_task(look)
        two.add_task(look)
        await respond()
        for name, tasks in (("first", one), ("second", two)):
            user.set(name)
            await tasks()

    assert (await get(app_of(handle))).error is None
    assert events == ["first", "second"]


async def test_handed_over_together() -> None:
    """Of two objects that were awaited before the response, the first failure reaches the server."""

    def fails() -> None:
        raise ZeroDivisionError

    async def handle(path: str, respond: Any) -> None:
        one, two = BackgroundTasks(), BackgroundTasks()
        one.add_task(fails)
        two.lane("other").add_task(print, end="")
        await one()
        await two()
        await respond()

    assert isinstance((await get(app_of(handle))).error, ZeroDivisionError)


async def test_websocket_that_fails(events: list[Any], log: Log) -> None:
    """A websocket endpoint that raises owes its tasks no more than a handler that does."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        BackgroundTasks().add_task(events.append, 1)
        raise ZeroDivisionError

    exchange = await get(OrderedBackgroundMiddleware(app), type="websocket")
    assert isinstance(exchange.error, ZeroDivisionError)
    assert events == []
    assert len(log) == 1


async def test_context_of_a_retry(events: list[Any]) -> None:
    """A retried task of a request sees the context of the request, as the first time."""

    async def work() -> None:
        events.append(user.get())
        if len(events) == 1:
            raise ValueError

    async def handle(path: str, respond: Any) -> None:
        user.set("alice")
        tasks = BackgroundTasks()
        tasks.lane("a", after_failure="stop").add_task(work)
        await respond()
        await tasks()

    app = app_of(handle)
    async with anyio.create_task_group() as group:
        await Client(app, group).start()
        user.set("bob")
        app.executor.lane("a").retry_head()
        await app.executor.join()
    assert events == ["alice", "alice"]


async def test_retry_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """`QueueFull.retry_after` is what the client is told."""
    monkeypatch.setattr(QueueFull, "retry_after", 7)

    async def handle(path: str, respond: Any) -> None:
        BackgroundTasks().add_task(print)
        BackgroundTasks().add_task(print)

    exchange = await get(app_of(handle, max_pending=1))
    assert exchange.status == 503
    assert (b"retry-after", b"7") in exchange.messages[0]["headers"]


async def test_handle_keeps_nothing() -> None:
    """Whoever keeps the handle of a task that has ended keeps neither its request nor other tasks by it."""
    kept: list[Job[Any]] = []
    refs: list[Any] = []

    async def handle(path: str, respond: Any) -> None:
        request = current.get()
        assert request is not None
        refs.append(weakref.ref(request))
        tasks = BackgroundTasks()
        kept.append(tasks.add_task(anyio.sleep, 0))
        refs.append(weakref.ref(tasks.add_task(anyio.sleep, 0)))
        await respond()
        await tasks()

    app = app_of(handle)
    await get(app)
    await wait_all_tasks_blocked()
    gc.collect()
    assert [ref() for ref in refs] == [None, None]
    assert kept[0].state is JobState.SUCCEEDED


async def test_single_task_is_what_it_was_made(events: list[Any]) -> None:
    """The single form keeps `is_async` and the request in which it was made."""

    async def later() -> None:
        await anyio.lowlevel.checkpoint()
        events.append("awaited")

    def returns_a_coroutine() -> Any:
        return later()

    async def handle(path: str, respond: Any) -> None:
        task = BackgroundTask(returns_a_coroutine)
        task.is_async = True
        ordered = BackgroundTask(events.append, "task")
        token = current.set(None)
        await ordered()
        await task()
        current.reset(token)
        events.append("handler")
        await respond()

    assert (await get(app_of(handle))).error is None
    assert events == ["handler", "task", "awaited"]


async def test_around_a_retry(events: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What FastAPI opens around a task is there again when it is retried."""

    class Spans(starlette.background.BackgroundTasks):
        async def __call__(self) -> None:
            events.append("span")
            await super().__call__()

    async def work() -> None:
        events.append("work")
        if len(events) == 2:
            raise ValueError

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.lane("a", after_failure="stop").add_task(work)
        await respond()
        await tasks()

    monkeypatch.setattr(_call, "around_here", lambda: Spans)
    app = app_of(handle)
    await get(app)
    app.executor.lane("a").retry_head()
    await app.executor.join()
    assert events == ["span", "work", "span", "work"]


def test_cancel_when_nothing_else_runs() -> None:
    """To call the only task off, in a loop in which nothing else runs, ends no line."""
    loop = asyncio.new_event_loop()
    turns = iter(range(20))
    jobs: list[Job[Any]] = []
    executor = SerialExecutor()

    def turn() -> None:
        n = next(turns, None)
        if n is None:
            loop.stop()
            return
        if n in (0, 10):
            jobs.append(executor.submit_nowait(asyncio.sleep, 3600))
        elif n in (5, 15):
            assert jobs[-1].cancel()
        loop.call_soon(turn)

    loop.call_soon(turn)
    loop.run_forever()
    assert [job.state for job in jobs] == [JobState.CANCELLED] * 2
    assert executor.is_open
    loop.close()


# -- a second hunt ------------------------------------------------------------------------------------------


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
    assert (app.executor.line.unfinished, app.executor.line.slots) == (0, 16)


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


async def test_join_while_a_task_is_given_away() -> None:
    """`join` ends when the last task has gone to another executor."""
    responded = anyio.Event()

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(print, end="")
        await respond()
        responded.set()
        await wait_all_tasks_blocked()
        await own.submit_nowait(tasks).wait()

    async def join() -> None:
        await responded.wait()
        await app.executor.join()

    app = app_of(handle)
    async with SerialExecutor() as own, anyio.create_task_group() as group:
        group.start_soon(join)
        assert (await get(app)).error is None


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


async def test_no_lane_for_nothing() -> None:
    """With order="responded" a lane whose tasks were all called off leaves nothing behind."""

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.lane(path).add_task(print).cancel()
        await wait_all_tasks_blocked()
        await respond()
        await tasks()

    app = app_of(handle, order="responded")
    for n in range(3):
        await get(app, f"/{n}")
    assert list(app.executor.line.lanes) == [None]


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


async def test_websocket_task_extends_its_list(events: list[Any]) -> None:
    """A websocket's running task may extend its own list, too."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tasks = BackgroundTasks()

        def grows() -> None:
            tasks.add_task(events.append, "more")

        tasks.add_task(grows)

    exchange = await get(OrderedBackgroundMiddleware(app), type="websocket")
    assert exchange.error is None
    assert events == ["more"]


def test_closing_again_after_a_cancel() -> None:
    """If whoever closes the executor is cancelled, the next one closes it."""
    events: list[Any] = []

    async def main() -> None:
        executor = SerialExecutor()
        gate = asyncio.Event()
        executor.submit_nowait(gate.wait)
        executor.submit_nowait(events.append, 1)
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(executor.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        again = asyncio.ensure_future(executor.aclose())
        await asyncio.sleep(0)
        assert not again.done()
        gate.set()
        await again
        assert repr(executor) == "<SerialExecutor closed, 0 unfinished, 0 running>"

    asyncio.run(main())
    assert events == [1]


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

    app = app_of(handle, after_failure="stop")
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
