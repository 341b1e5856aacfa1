"""Edges of awaiting an object: who adds to it meanwhile, who is told of failures, what the list holds."""

from __future__ import annotations

import gc
import threading
from collections.abc import Awaitable, Callable
from typing import Any
from unittest import mock

import anyio
import pytest
from anyio import wait_all_tasks_blocked

from fifo_background import BackgroundTasks, Job, JobState, SerialExecutor
from fifo_background._core.job import Job as RealJob
from fifo_background._request import TrackedRequest
from fifo_background._run.awaited_jobs import AwaitedJobs
from tests.support.apps import Work, app_of, check_idle
from tests.support.asgi import Client, get
from tests.support.log import Log

S = JobState
Respond = Callable[[], Awaitable[None]]


async def fails() -> None:
    raise ValueError("it fails")


async def nothing() -> None: ...


# -- the context ---------------------------------------------------------------------------------------------


async def test_back_to_the_first_lane(events: list[Any]) -> None:
    """A task adds one to another lane, which adds one to the first lane again: all of them run."""

    async def first(tasks: BackgroundTasks) -> None:
        await anyio.sleep(0)
        tasks.lane("k").add_task(second, tasks)
        events.append("first")

    async def second(tasks: BackgroundTasks) -> None:
        tasks.add_task(third)
        events.append("second")

    async def third() -> None:
        events.append("third")

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(first, tasks)
        await respond()
        await tasks()

    app = app_of(handle)
    assert (await get(app)).error is None
    assert events == ["first", "second", "third"]
    await anyio.sleep(0)  # the loop goes on
    check_idle(app.executor)


# -- keys ----------------------------------------------------------------------------------------------------


class Row:
    """A key that cannot be compared anymore once its session is closed."""

    closed = False

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        if Row.closed:
            raise RuntimeError("detached")
        return isinstance(other, Row)


async def test_key_that_cannot_be_compared_anymore(
    events: list[Any], log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a key's `__eq__` raises later stops no lane, and no other request."""
    gate = anyio.Event()

    async def work(n: int) -> None:
        await gate.wait()
        events.append(n)

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        if path == "/other":
            tasks.options(wait=True).add_task(fails)
        else:
            tasks.lane(Row()).add_task(work, 1)
        await respond()
        await tasks()

    app = app_of(handle, wait=False)
    for _ in range(2):
        assert (await get(app)).error is None
    monkeypatch.setattr(Row, "closed", True)
    gate.set()
    assert repr((await get(app, "/other")).error) == "ValueError('it fails')"
    await app.executor.join()
    assert events == [1, 1]
    assert [line for line in log if "detached" in line] == []


async def test_key_that_cannot_be_compared_at_the_end(
    events: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request whose keys have one hash ends as it should, whatever their `__eq__` raises by then."""

    class One(Row):
        def __eq__(self, other: object) -> bool:
            return self is other if not Row.closed else super().__eq__(other)

        __hash__ = Row.__hash__

    gate = anyio.Event()

    async def work(n: int) -> None:
        await gate.wait()
        events.append(n)

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        for n in range(2):
            tasks.lane(One()).add_task(work, n)
        await respond()
        await tasks()
        monkeypatch.setattr(Row, "closed", True)

    app = app_of(handle, wait=False)
    assert (await get(app)).error is None
    gate.set()
    await app.executor.join()
    assert sorted(events) == [0, 1]


async def test_added_twice_to_a_lane_that_was_idle() -> None:
    """All waiting tasks of one function in one lane count as one, though the lane was idle in between."""
    gate = anyio.Event()

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        if path == "/slow":
            tasks.lane("k", keep="latest").add_task(nothing)
            await gate.wait()
        else:
            tasks.add_task(nothing)
        await respond()

    app = app_of(handle, order="responded", max_waiting=2)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        await client.start("/slow")
        await app.executor.lane("k").submit_nowait(print)
        await wait_all_tasks_blocked()
        await client.start("/slow")
        assert (await get(app, "/other")).status == 200
        gate.set()
    check_idle(app.executor)


# -- who is told ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails_later", ["in another lane", "behind the failed one"])
async def test_lane_stopped_by_the_request_itself(fails_later: str, log: Log) -> None:
    """A request that leaves by the failure which has stopped its lane: later failures of it are logged."""
    gate = anyio.Event()

    async def later() -> None:
        await gate.wait()
        raise ValueError("later")

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        lane = tasks.lane("a", after_failure="stop")
        if fails_later == "in another lane":
            jobs.append(tasks.lane("b").add_task(later))
        lane.add_task(fails)
        jobs.append(lane.add_task(later))
        await respond()
        await tasks()

    jobs: list[Job[Any]] = []
    app = app_of(handle, rest_after_failure="run")
    assert repr((await get(app)).error) == "ValueError('it fails')"
    gate.set()
    if fails_later != "in another lane":
        app.executor.lane("a").skip_head()
    await jobs[0].wait()
    app.executor.lane("a").clear()
    assert [line for line in log if line.startswith("ERROR")] == [
        f"ERROR {jobs[0].name} failed (GET /)",
    ]


async def test_told_by_one_wait_of_two(log: Log) -> None:
    """Of two waits of a request only the one to whose object a task was added raises its failure."""
    handled: list[BaseException] = []

    async def handle(path: str, respond: Respond) -> None:
        first = BackgroundTasks()
        first.add_task(nothing)
        await first()  # before the response: the middleware waits
        tasks = BackgroundTasks()

        async def adds() -> None:
            tasks.add_task(fails)

        tasks.add_task(adds)
        await respond()
        try:
            await tasks()
        except ValueError as error:
            handled.append(error)

    assert (await get(app_of(handle))).error is None
    assert [str(error) for error in handled] == ["it fails"]
    assert [line for line in log if line.startswith("ERROR")] == []


async def test_added_as_the_request_looks(events: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that a thread adds while the request looks whom it waits for is waited for, too."""
    look = AwaitedJobs.last_unfinished
    running = anyio.Event()

    def look_and_add(jobs: Any) -> Any:
        monkeypatch.setattr(AwaitedJobs, "last_unfinished", look)
        found = look(jobs)
        thread = threading.Thread(target=made[0].add_task, args=(fails,))
        thread.start()
        thread.join()
        return found

    async def first() -> None:
        await running.wait()

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        made.append(tasks)
        tasks.add_task(first)
        await respond()
        await tasks()

    made: list[BackgroundTasks] = []
    monkeypatch.setattr(AwaitedJobs, "last_unfinished", look_and_add)
    async with anyio.create_task_group() as group:
        exchange = await Client(app_of(handle), group).start()
        assert not exchange.ended.is_set()
        running.set()
    assert repr(exchange.error) == "ValueError('it fails')"


# -- threads that add as the object is awaited ---------------------------------------------------------------


@pytest.mark.parametrize("wait", [True, False])
async def test_added_just_as_the_object_is_awaited(
    wait: bool, events: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task whose thread stands in `add_task` while the object is awaited runs: it is dropped by nobody."""
    at_it, goes_on = threading.Event(), threading.Event()
    add = TrackedRequest.add

    def stands(request: Any, task: Any, *args: Any) -> Any:
        if threading.current_thread() is thread:
            at_it.set()
            goes_on.wait(5)
        return add(request, task, *args)

    def first() -> None:
        goes_on.set()
        thread.join()
        events.append("first")

    async def handle(path: str, respond: Respond) -> None:
        nonlocal thread
        tasks = BackgroundTasks()
        tasks.add_task(first)
        thread = threading.Thread(target=tasks.add_task, args=(events.append, "second"))
        thread.start()
        at_it.wait(5)
        await respond()
        await tasks()

    thread = threading.Thread()
    monkeypatch.setattr(TrackedRequest, "add", stands)
    app = app_of(handle)
    assert (await get(app)).error is None
    await app.executor.join()
    assert events == ["first", "second"]


@pytest.mark.parametrize("responds", ["before", "after"])
async def test_added_before_the_object_is_awaited(
    responds: str, events: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that a thread adds between the look at the list and the await runs with the object."""
    was_awaited = BackgroundTasks._fifo_was_awaited

    def adds_before(tasks: Any, request: Any, jobs: Any) -> None:
        thread = threading.Thread(target=tasks.add_task, args=(events.append, 2))
        thread.start()
        thread.join()
        was_awaited(tasks, request, jobs)

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, 1)
        if responds == "before":
            await respond()
        await tasks()
        if responds == "after":
            await respond()

    monkeypatch.setattr(BackgroundTasks, "_fifo_was_awaited", adds_before)
    assert (await get(app_of(handle))).error is None
    assert events == [1, 2]


async def test_added_as_the_state_changes(events: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that looks at an object while it is being awaited finds it collecting, or awaited here."""
    was_awaited = BackgroundTasks._fifo_was_awaited

    def slow(tasks: Any, request: Any, jobs: Any) -> None:
        names: list[str] = []

        def note(self: Any, name: str, value: Any) -> None:
            names.append(name)
            object.__setattr__(self, name, value)

        with mock.patch.object(BackgroundTasks, "__setattr__", note, create=True):
            was_awaited(tasks, request, jobs)
        events.append(names)

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(nothing)
        await respond()
        await tasks()

    monkeypatch.setattr(BackgroundTasks, "_fifo_was_awaited", slow)
    assert (await get(app_of(handle))).error is None
    (names,) = events
    assert names[-1] == "_fifo_state", "last: who sees it sees the rest"


async def test_many_added_by_the_last_task() -> None:
    """What a task adds to its own object costs the same however many tasks have ended before."""
    asked = 0

    async def adds(tasks: BackgroundTasks) -> None:
        nonlocal asked
        with mock.patch.object(RealJob, "done", counted):
            for _ in range(50):
                tasks.add_task(nothing)

    done = RealJob.done

    def counted(job: Any) -> bool:
        nonlocal asked
        asked += 1
        return done(job)

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        for _ in range(200):
            tasks.add_task(nothing)
        tasks.add_task(adds, tasks)
        await respond()
        await tasks()

    assert (await get(app_of(handle))).error is None
    assert 50 <= asked < 200


# -- the list ------------------------------------------------------------------------------------------------


async def test_entries_of_another_object(events: list[Any]) -> None:
    """A task puts the entries of another object into the list: they run, as in Starlette."""

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()

        def extends() -> None:
            other = BackgroundTasks()
            other.add_task(events.append, "other")
            tasks.tasks.extend(other.tasks)

        tasks.add_task(extends)
        await respond()
        await tasks()

    app = app_of(handle)
    assert (await get(app)).error is None
    assert events == ["other"]
    check_idle(app.executor)


async def test_parts_that_have_ended_are_not_kept() -> None:
    """A task that awaits one object after another keeps none of the jobs that have ended."""
    alive: list[int] = []

    async def outer() -> None:
        for _ in range(20):
            inner = BackgroundTasks()
            inner.add_task(nothing)
            await inner()
        gc.collect()
        alive.append(sum(type(one) is RealJob for one in gc.get_objects()))

    async with SerialExecutor() as executor:
        gc.collect()
        before = sum(type(one) is RealJob for one in gc.get_objects())
        await executor.submit_nowait(outer)
    assert alive[0] - before <= 3


# -- somebody else's add_task --------------------------------------------------------------------------------


class InItsLane(BackgroundTasks):
    """An object whose tasks are all in one lane."""

    def add_task(self, *args: Any, **kwargs: Any) -> Any:
        return self.lane("its own").add_task(*args, **kwargs)


async def test_add_task_that_chooses_the_lane(events: list[Any]) -> None:
    """A subclass's `add_task` may put all its tasks into a lane by `self.lane`."""

    async def handle(path: str, respond: Respond) -> None:
        tasks = InItsLane()
        tasks.add_task(events.append, 1)
        assert list(app.executor.statistics().lanes) == ["its own"]
        await respond()
        await tasks()

    app = app_of(handle)
    assert (await get(app)).error is None
    assert events == [1]


async def test_what_is_asked_for_is_not_handed_on(events: list[Any]) -> None:
    """What a task was asked for by `lane` and `options` is not asked for the tasks that it adds itself."""

    class Overrides(BackgroundTasks):
        def add_task(self, *args: Any, **kwargs: Any) -> Any:
            return super().add_task(*args, **kwargs)

    async def asks() -> None:
        tasks.lane("k").options(timeout=7.0).add_task(adds)

    async def adds() -> None:
        tasks.add_task(work.gated, 1)

    async def handle(path: str, respond: Respond) -> None:
        tasks.add_task(asks)
        await respond()
        await tasks()

    work = Work(events)
    app = app_of(handle)

    async with anyio.create_task_group() as group:
        tasks: BackgroundTasks
        client = Client(app, group)

        async def start() -> None:
            await client.start()

        tasks = Overrides()
        await start()
        statistics = app.executor.statistics()
        assert [(key, lane.running) for key, lane in statistics.lanes.items()] == [(None, "Work.gated")]
        work.gate(1).set()
    assert events == ["start 1", "end 1"]
