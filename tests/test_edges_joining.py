"""Edges of an object that was awaited: what is added to it late, before or after the response."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio import wait_all_tasks_blocked

from fifo_background import BackgroundTasks, Job, JobState, _awaited
from fifo_background._request import TrackedRequest
from fifo_background._run.awaited_jobs import AwaitedJobs
from tests.support.apps import Work, app_of, check_idle, until
from tests.support.asgi import Client, Exchange, get
from tests.support.log import Log

S = JobState
Respond = Callable[[], Awaitable[None]]

place: ContextVar[str] = ContextVar("place", default="nowhere")


# -- as the request ends -------------------------------------------------------------------------------------


async def test_added_just_before_the_request_ends(events: list[Any], log: Log) -> None:
    """A task that the handler adds as its last act, while the object's tasks run, runs after them."""
    gate = anyio.Event()
    jobs: list[Job[Any]] = []

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(gate.wait)
        await respond()
        await tasks()
        jobs.append(tasks.add_task(events.append, "late"))

    app = app_of(handle, wait=False)
    assert (await get(app)).error is None
    assert (events, jobs[0].done()) == ([], False)
    gate.set()
    await app.executor.join()
    assert (events, jobs[0].state) == (["late"], S.SUCCEEDED)
    assert [line for line in log if line.startswith("WARNING")] == []
    check_idle(app.executor)


async def test_added_in_the_turn_of_the_cancel(events: list[Any]) -> None:
    """A running task adds one in the turn in which its request is cancelled: both run."""
    gate = anyio.Event()

    async def adds(tasks: BackgroundTasks) -> None:
        await gate.wait()
        exchange.cancel_scope.cancel()
        tasks.add_task(events.append, "added")
        await anyio.sleep(0)
        events.append("adds")

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(adds, tasks)
        await respond()
        gate.set()
        await tasks()

    app = app_of(handle)
    exchange = Exchange(app)
    await exchange.run()
    await app.executor.join()
    assert events == ["adds", "added"]
    check_idle(app.executor)


# -- a thread that stands in `add_task` ----------------------------------------------------------------------


@pytest.mark.parametrize("responds", ["before", "after"])
@pytest.mark.parametrize("fails", [False, True])
async def test_thread_adds_as_the_object_is_awaited(fails: bool, responds: str, events: list[Any]) -> None:
    """What one thread adds runs in its order, also if the object is awaited within the first `add_task`."""
    at_it, goes_on, added = threading.Event(), threading.Event(), anyio.Event()
    jobs: list[Job[Any]] = []

    def lane_key(scope: Any) -> str:
        at_it.set()
        assert goes_on.wait(10)
        return "k"

    def work(n: int) -> None:
        events.append(n)
        if fails and n == 2:
            raise ValueError("it fails")

    def adds(tasks: BackgroundTasks) -> None:
        jobs.extend(tasks.add_task(work, n) for n in (1, 2, 3))

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        tasks.lane("k").add_task(added.wait)
        if responds == "before":
            await respond()

        async def in_thread() -> None:
            await anyio.to_thread.run_sync(adds, tasks)
            added.set()

        async with anyio.create_task_group() as group:
            group.start_soon(in_thread)
            await until(at_it.is_set)
            group.start_soon(tasks)
            await anyio.sleep(0)
            if responds == "after":
                await anyio.wait_all_tasks_blocked()
            goes_on.set()
            if responds == "after":
                await added.wait()
                await respond()

    app = app_of(handle, lane_key=lane_key, rest_after_failure="run")
    error = (await get(app)).error
    await app.executor.join()
    assert (error is not None) == fails
    assert events == [1, 2, 3]
    assert [job.state for job in jobs] == [S.SUCCEEDED, S.FAILED if fails else S.SUCCEEDED, S.SUCCEEDED]
    check_idle(app.executor)


async def test_request_ends_as_a_thread_adds(
    events: list[Any], log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that a thread has not yet put into the list when the request ends is dropped, and logged."""
    add = TrackedRequest.add
    at_it, goes_on = threading.Event(), threading.Event()
    jobs: list[Job[Any]] = []

    def stands(request: Any, task: Any, *more: Any) -> Any:
        job = add(request, task, *more)
        at_it.set()
        assert goes_on.wait(10)
        return job

    async def handle(path: str, respond: Respond) -> None:
        nonlocal thread
        tasks = BackgroundTasks()
        monkeypatch.setattr(TrackedRequest, "add", stands)
        thread = threading.Thread(target=lambda: jobs.append(tasks.add_task(events.append, 1)))
        thread.start()
        assert at_it.wait(10)
        await respond()
        await tasks()

    thread = threading.Thread()
    app = app_of(handle)
    assert (await get(app)).error is None
    goes_on.set()
    await anyio.to_thread.run_sync(thread.join)
    await app.executor.join()
    assert (events, jobs[0].state) == ([], S.DROPPED)
    assert [line.partition(":")[0] for line in log if "WARNING" in line] == [
        "WARNING GET / ended without running 1 task"
    ]
    check_idle(app.executor)


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_job_is_handed_over_twice(kind: str, events: list[Any]) -> None:
    """A job that a thread hands over just after the loop has done so, and has started it, runs once."""
    work = Work(events)
    jobs: list[Job[Any]] = []

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        jobs.append(tasks.add_task(work.gated if kind == "async" else work.thread_gated, 1))
        tasks.add_task(events.append, 2)
        await respond()
        await tasks()

    app = app_of(handle)
    async with anyio.create_task_group() as group:
        exchange = await Client(app, group).start()
        await until(lambda: events)
        app.executor._runner.post(jobs[0])
        await anyio.wait_all_tasks_blocked()
        assert (events, jobs[0].state, jobs[0]._position is None) == (["start 1"], S.RUNNING, False)
        work.gate(1).set()
        work.thread_gate(1).set()
    assert exchange.error is None
    assert events == ["start 1", "end 1", 2]
    check_idle(app.executor)


# -- awaited before the response -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize("had", ["nothing", "a cancelled task"])
async def test_awaited_with_nothing_to_run(had: str, kind: str, events: list[Any]) -> None:
    """A task may be added to an object that was awaited before the response without anything to run."""

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        if had != "nothing":
            assert tasks.add_task(events.append, 0).cancel()
        await tasks()
        tasks.add_task(events.append, 1)
        if kind == "http":
            await respond()
            await tasks()

    app = app_of(handle)
    assert (await get(app, type=kind)).error is None
    assert events == [1]
    check_idle(app.executor)


async def test_running_task_adds_to_what_was_awaited_early(events: list[Any]) -> None:
    """A task that joined an object awaited before the response adds to it: the new one runs, too."""

    async def adds(tasks: BackgroundTasks) -> None:
        await anyio.sleep(0)
        events.append(2)
        tasks.add_task(events.append, 3)

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, 1)
        await tasks()
        tasks.add_task(adds, tasks)
        await respond()

    app = app_of(handle)
    assert (await get(app)).error is None
    assert events == [1, 2, 3]
    check_idle(app.executor)


async def test_added_between_response_and_end(events: list[Any]) -> None:
    """What is added to an object awaited before the response waits for the object's other tasks."""

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, 1)
        await tasks()
        await respond()
        tasks.add_task(events.append, 2)
        await anyio.wait_all_tasks_blocked()

    app = app_of(handle)
    assert (await get(app)).error is None
    assert events == [1, 2]
    check_idle(app.executor)


async def test_websocket_awaits_an_object_twice(events: list[Any]) -> None:
    """An object that a websocket awaits twice runs its list again, before what it adds later."""

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, 1)
        await tasks()
        tasks.add_task(events.append, 2)
        await tasks()
        BackgroundTasks().add_task(events.append, 3)

    app = app_of(handle)
    assert (await get(app, type="websocket")).error is None
    assert events == [1, 1, 2, 3]
    check_idle(app.executor)


@pytest.mark.parametrize("then", ["ends", "awaits another"])
async def test_context_of_what_is_held_back(then: str, events: list[Any]) -> None:
    """Tasks that are awaited before the response run in the context of that await."""

    async def sees() -> None:
        events.append(place.get())

    def sync() -> None:
        events.append(place.get())

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(sees)
        tasks.lane("other").add_task(sync)

        async def child() -> None:
            place.set("child")
            await tasks()

        place.set("handler")
        async with anyio.create_task_group() as group:
            group.start_soon(child)
        await respond()
        if then == "awaits another":
            another = BackgroundTasks()
            another.add_task(anyio.sleep, 0)
            await another()

    app = app_of(handle)
    assert (await get(app)).error is None
    assert events == ["child", "child"]
    check_idle(app.executor)


# -- a wait that ends just then ------------------------------------------------------------------------------


@pytest.mark.parametrize("then", ["it goes on", "it ends", "it goes on after both looks"])
async def test_added_as_the_wait_ends(then: str, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that is added as the request looks for the last time is waited for if the request goes on."""

    class Racing(AwaitedJobs):
        def append(self, job: Job[Any]) -> None:
            super().append(job)
            if len(self) == 2:
                self.waited = then == "it goes on"

    async def adds(tasks: BackgroundTasks) -> None:
        await wait_all_tasks_blocked()  # the request waits
        jobs = tasks._fifo_jobs
        jobs.waited = then == "it ends"
        tasks.add_task(fails)
        if then == "it goes on after both looks":
            jobs.waited = True
            tasks.add_task(nothing)
            jobs.waited = False
        await wait_all_tasks_blocked()

    async def fails() -> None:
        await wait_all_tasks_blocked()
        raise ValueError("it fails")

    async def nothing() -> None: ...

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(adds, tasks)
        await respond()
        await tasks()

    monkeypatch.setattr(_awaited, "AwaitedJobs", Racing)
    app = app_of(handle, rest_after_failure="run")
    exchange = await get(app)
    await app.executor.join()
    raised = [repr(exchange.error)] if exchange.error is not None else []
    logged = [record for record in log if "fails failed" in record]
    assert (len(raised), len(logged)) == ((0, 1) if then == "it ends" else (1, 0))
    check_idle(app.executor)
