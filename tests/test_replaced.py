"""`add_task` or `__call__` of Starlette's class, replaced by an agent or a mock."""

from __future__ import annotations

import functools
import threading
from typing import Any

import anyio
import anyio.to_thread
import pytest
import starlette.background
from starlette.requests import Request
from starlette.responses import Response

from fifo_background import (
    BackgroundTask,
    BackgroundTasks,
    Job,
    JobState,
    OrderedBackgroundTasks,
    QueueFull,
    executor_of,
)
from tests.support.apps import app_of, make_app
from tests.support.asgi import get
from tests.support.log import Log

StarlettesTasks = starlette.background.BackgroundTasks
_add_task = StarlettesTasks.add_task


def _traced(self: Any, func: Any, *args: Any, **kwargs: Any) -> None:
    """As agents do: another function stands for the user's."""

    async def traced(*args: Any, **kwargs: Any) -> None:
        func(*args, **kwargs)

    _add_task(self, traced, *args, **kwargs)


async def test_refused_task_does_not_run(events: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that is refused with `QueueFull` leaves the list, also where `add_task` is replaced."""
    monkeypatch.setattr(StarlettesTasks, "add_task", _traced)

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, 1)
        with pytest.raises(QueueFull):
            tasks.add_task(events.append, 2)
        assert len(tasks.tasks) == 1
        return Response(background=tasks)

    assert (await get(make_app(handler, max_waiting=1), "/handler")).error is None
    assert events == [1]


@pytest.mark.parametrize("how", ["awaited again", "awaited by a task", "retried"])
async def test_names_of_later_runs(how: str, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that runs again has the name of the user's function, not of what an agent has put around it."""
    monkeypatch.setattr(StarlettesTasks, "add_task", _traced)
    ran: list[Any] = []

    def refresh() -> None:
        ran.append(1)
        raise ValueError

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        (tasks.lane("k", after_failure="stop") if how == "retried" else tasks).add_task(refresh)
        await respond()
        await tasks()
        if how == "awaited again":
            await tasks()
        elif how == "awaited by a task":
            await app.executor.submit_nowait(tasks).wait()

    app = app_of(handle, wait=False, rest_after_failure="run")
    assert (await get(app)).error is None
    await app.executor.join()
    if how == "retried":
        app.executor.lane("k").retry_head()
        await app.executor.join()
        app.executor.lane("k").clear()
    assert len(ran) == 2
    names = {record.name for record in await app.executor.jobs()}
    assert {name.rpartition(".")[2] for name in names} <= {"refresh", "__call__"}
    assert not [record for record in log if "traced" in record]


async def test_keep_latest_knows_the_function(events: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With `keep="latest"` the user's function counts, not what an agent has put around it; so do names."""
    monkeypatch.setattr(StarlettesTasks, "add_task", _traced)
    jobs: list[Job[Any]] = []

    def refresh(n: int) -> None:
        events.append(n)

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        jobs.extend(tasks.lane("k", keep="latest", max_waiting=1).add_task(refresh, n) for n in range(3))
        assert {job.name for job in jobs} == {refresh.__qualname__}
        return Response(background=tasks)

    assert (await get(make_app(handler), "/handler")).error is None
    assert events == [2]
    assert [job.state for job in jobs] == [JobState.SUPERSEDED, JobState.SUPERSEDED, JobState.SUCCEEDED]
    assert {job.name for job in jobs} == {refresh.__qualname__}


async def test_wrapper_that_changes_the_list(
    events: list[Any], log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrapper may put the new entry anywhere, and take others out: each entry has one job, its own."""
    jobs: list[Job[Any]] = []

    def put_first(self: Any, func: Any, *args: Any, **kwargs: Any) -> None:
        _add_task(self, func, *args, **kwargs)
        self.tasks.insert(0, self.tasks.pop())
        if args == (2,):
            del self.tasks[1]

    monkeypatch.setattr(StarlettesTasks, "add_task", put_first)

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        jobs.extend(tasks.add_task(events.append, n) for n in range(3))
        return Response(background=tasks)

    await get(make_app(handler), "/handler")
    assert events == [2, 0]
    assert [job.state for job in jobs] == [JobState.SUCCEEDED, JobState.DROPPED, JobState.SUCCEEDED]
    assert [record.split(":")[0] for record in log] == ["WARNING GET /handler ended without running 1 task"]


async def test_replaced_constructor(events: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Who replaces the constructor of Starlette's class sees the arguments, and may change what is called."""
    original = starlette.background.BackgroundTask.__init__

    def carry(state: str, func: Any, *args: Any, **kwargs: Any) -> None:
        events.append(state)
        func(*args, **kwargs)

    def init(self: Any, func: Any, *args: Any, **kwargs: Any) -> None:
        seen.append((args, kwargs))
        original(self, carry, "state", func, *args, **kwargs)

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks([BackgroundTask(work, 1, key=2)])
        tasks.add_task(work, 3, key=4)
        tasks.lane("a", keep="latest").add_task(work, 5)
        tasks.lane("a", keep="latest").add_task(work, 6)
        executor_of(request).submit_nowait(work, 7)
        return Response(background=tasks)

    def work(*args: Any, **kwargs: Any) -> None:
        events.append((args, kwargs))

    seen: list[Any] = []
    monkeypatch.setattr(starlette.background.BackgroundTask, "__init__", init)
    app = make_app(handler, max_lanes_running=1)
    assert (await get(app, "/handler")).error is None
    await executor_of(app).join()
    given = [((1,), {"key": 2}), ((3,), {"key": 4}), ((5,), {}), ((6,), {}), ((7,), {})]
    assert seen == given
    assert events.count("state") == 4
    ran = [event for event in events if event != "state"]
    assert sorted(ran, key=str) == [one for one in given if one[0] != (5,)]


def test_wrapper_that_appends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a wrapper appends the entry, as Starlette does, the others in the list are not looked at."""

    class Watched(list[Any]):
        looks = 0

        def __iter__(self) -> Any:
            self.looks += 1
            return super().__iter__()

    monkeypatch.setattr(StarlettesTasks, "add_task", _traced)
    tasks = BackgroundTasks()
    tasks.tasks = watched = Watched()
    jobs = [tasks.add_task(print, n) for n in range(3)]
    assert watched.looks == 0
    assert [entry._fifo_job for entry in tasks.tasks] == jobs


async def test_threads_through_a_wrapper(
    events: list[Any], log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that add at once, through a slow wrapper, get the job of their own task each."""
    both_added = threading.Barrier(2)
    jobs: dict[int, Job[Any]] = {}

    def slow(self: Any, func: Any, *args: Any, **kwargs: Any) -> None:
        _add_task(self, func, *args, **kwargs)
        both_added.wait(5)

    monkeypatch.setattr(StarlettesTasks, "add_task", slow)

    def work(n: int) -> int:
        events.append(n)
        return n

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()

        def add(n: int) -> None:
            jobs[n] = tasks.add_task(work, n)

        async with anyio.create_task_group() as group:
            for n in range(2):
                group.start_soon(anyio.to_thread.run_sync, add, n)
        return Response(background=tasks)

    await get(make_app(handler), "/handler")
    assert sorted(events) == [0, 1]
    assert {n: job.result() for n, job in jobs.items()} == {0: 0, 1: 1}
    assert log == []


@pytest.mark.parametrize("sync", [False, True])
async def test_call_that_is_replaced_after_add_task(
    sync: bool, events: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `__call__` that is replaced between `add_task` and the end of the response sees the task."""
    call = starlette.background.BackgroundTask.__call__

    async def seen(self: Any) -> None:
        events.append("seen")
        await call(self)

    async def work() -> None:
        events.append("work")

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        job = tasks.add_task(functools.partial(events.append, "work") if sync else work)
        monkeypatch.setattr(starlette.background.BackgroundTask, "__call__", seen)
        await respond()
        await tasks()
        assert job.state is JobState.SUCCEEDED

    assert (await get(app_of(handle))).error is None
    assert events == ["seen", "work"]


@pytest.mark.parametrize("owner", [starlette.background, anyio.to_thread])
async def test_threads_that_are_mocked(
    owner: Any, events: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the call into a thread is mocked, the task fails, and says so; the lane goes on."""

    async def mock(*args: Any, **kwargs: Any) -> None:
        events.append("mock")

    name = "run_in_threadpool" if owner is starlette.background else "run_sync"
    monkeypatch.setattr(owner, name, mock)

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(print)
        tasks.add_task(print)
        return Response(background=tasks)

    exchange = await get(make_app(handler), "/handler")
    assert "did not run the function that it was given" in str(exchange.error)
    assert events == ["mock"]


async def test_object_of_many_requests(events: list[Any]) -> None:
    """An object that is made in a request and kept serves the next ones, each time with its whole list."""
    kept: list[OrderedBackgroundTasks] = []

    async def handler(request: Request) -> Response:
        if not kept:
            kept.append(BackgroundTasks())
        kept[0].add_task(events.append, request.headers["n"])
        return Response(background=kept[0])

    app = make_app(handler)
    for n in (b"1", b"2", b"3"):
        exchange = await get(app, "/handler", headers=[(b"n", n)])
        assert exchange.error is None
    assert events == ["1", "1", "2", "1", "2", "3"]


async def test_object_of_an_ended_request(events: list[Any]) -> None:
    """Outside of any request an object of one that has ended refuses more tasks."""
    kept: list[OrderedBackgroundTasks] = []

    async def handler(request: Request) -> Response:
        kept.append(BackgroundTasks())
        return Response()

    await get(make_app(handler), "/handler")
    with pytest.raises(RuntimeError, match="had ended"):
        kept[0].add_task(print)


async def test_object_that_was_never_awaited(events: list[Any]) -> None:
    """An object that a request has made, and not awaited, takes the tasks of the next one."""
    kept: list[OrderedBackgroundTasks] = []

    async def handler(request: Request) -> Response:
        if not kept:
            kept.append(BackgroundTasks())
            return Response()
        kept[0].add_task(events.append, 1)
        return Response(background=kept[0])

    app = make_app(handler)
    for _ in range(2):
        assert (await get(app, "/handler")).error is None
    assert events == [1]


async def test_part_of_an_ended_request(events: list[Any]) -> None:
    """An object that ran inside a task of a request which has ended refuses more tasks."""
    kept: list[OrderedBackgroundTasks] = []

    async def handler(request: Request) -> Response:
        tasks, inner = BackgroundTasks(), BackgroundTasks()
        kept.append(inner)
        inner.add_task(events.append, 1)
        tasks.add_task(inner)
        return Response(background=tasks)

    assert (await get(make_app(handler), "/handler")).error is None
    with pytest.raises(RuntimeError, match="print was added after the tasks of GET /handler had ended"):
        kept[0].add_task(print)
    assert events == [1]


async def test_object_awaited_before_the_injected_one(events: list[Any]) -> None:
    """Tasks that a handler awaits itself run before those that are added, and awaited, after them."""

    async def handler(request: Request) -> Response:
        own, later = BackgroundTasks(), BackgroundTasks()
        own.add_task(events.append, "own")
        await own()
        later.add_task(events.append, "later")
        return Response(background=later)

    await get(make_app(handler), "/handler")
    assert events == ["own", "later"]


async def test_tasks_that_append_to_the_list(events: list[Any]) -> None:
    """Entries that tasks append to `.tasks` run, as in Starlette, and so does what these append."""

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()

        def step(n: int) -> None:
            events.append(n)
            if n < 4:
                tasks.tasks.append(BackgroundTask(step, n + 1))
            if n == 2:
                tasks.add_task(events.append, "joined")

        tasks.add_task(step, 1)
        return Response(background=tasks)

    await get(make_app(handler), "/handler")
    assert [n for n in events if n != "joined"] == [1, 2, 3, 4]
    assert events.count("joined") == 1
