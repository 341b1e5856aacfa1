"""Edges between requests: who made them, in whose context tasks run, and who is told of failures."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio import wait_all_tasks_blocked

from fifo_background import (
    BackgroundTasks,
    Job,
    JobState,
)
from tests.support.apps import Work, app_of, check_idle, user
from tests.support.asgi import Client, Exchange, get
from tests.support.log import Log
from tests.support.loops import on_asyncio
from tests.test_interrupts import Once
from tests.test_races import Held

S = JobState
Respond = Callable[[], Awaitable[None]]


async def fails() -> None:
    raise ValueError("it fails")


# -- requests that requests have made ------------------------------------------------------------------------


async def test_thread_adds_in_a_request_made_by_another(events: list[Any]) -> None:
    """Of a request made inside another one a task's thread only adds: all moves are the event loop's."""
    threads: list[int] = []

    def adds(tasks: BackgroundTasks) -> None:
        assert threading.get_ident() != loop
        for n in range(3):
            tasks.lane(n % 2).add_task(events.append, n)

    async def handle(path: str, respond: Respond) -> None:
        if path == "/outer":
            BackgroundTasks().lane("held").add_task(events.append, "dropped")
            assert (await get(app, "/inner")).error is None
            await app.executor.lane("other").submit_nowait(events.append, "other")
        else:
            tasks = BackgroundTasks()
            jobs.append(tasks.add_task(adds, tasks))
            await respond()
            await tasks()

    def in_move(function: Callable[[], Any]) -> Any:
        threads.append(threading.get_ident())
        return move(function)

    jobs: list[Job[Any]] = []
    app, loop = app_of(handle), threading.get_ident()
    scheduler: Any = app.executor._runner.scheduler
    move, scheduler.in_move = scheduler.in_move, in_move
    assert (await get(app, "/outer")).error is None
    await jobs[0]
    await app.executor.join()
    assert set(threads) == {loop}
    assert [n for n in events if n in (0, 2)] == [0, 2]
    assert sorted(events, key=str) == [0, 1, 2, "other"]
    check_idle(app.executor)


async def test_thread_asks_who_made_a_request() -> None:
    """Whether its maker waits for a request can be asked in a thread, which moves nothing."""
    answers: list[Any] = []

    async def handle(path: str, respond: Respond) -> None:
        BackgroundTasks().add_task(print)
        if path == "/outer":
            await get(app, "/inner")
            return
        request: Any = BackgroundTasks()._fifo_request
        scheduler = app.executor._runner.scheduler
        assert len(scheduler.inbox) == 2, "the positions of both requests, which nobody has looked at"
        answers.append(await anyio.to_thread.run_sync(lambda: (request.waits, len(scheduler.inbox))))
        answers.append((request.waits, len(scheduler.inbox)))

    app = app_of(handle)
    await get(app, "/outer")
    assert answers[0][1] == 2, "they are the loop's to look at"
    assert answers[1] == (False, 0)


async def test_request_made_by_a_task_that_has_ended() -> None:
    """A request whose maker, a task, has ended meanwhile waits for its tasks, and raises what they raise."""
    ended, exchanges = anyio.Event(), []

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        if path == "/outer":

            async def makes() -> None:
                exchanges.append(await client.start("/made"))

            tasks.add_task(makes)
        else:
            await ended.wait()
            tasks.add_task(fails)
        await respond()
        await tasks()

    app = app_of(handle)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        assert (await get(app, "/outer")).error is None
        ended.set()
    assert repr(exchanges[0].error) == "ValueError('it fails')"


@pytest.mark.parametrize("begins", ["before it ends", "after it has ended"])
async def test_chain_of_requests_is_freed(begins: str) -> None:
    """A request that starts the next one, and ends, is freed: however many follow, each keeps no other."""
    made: list[weakref.ref[Any]] = []
    left = [anyio.Event() for _ in range(8)]

    async def next_one(n: int) -> None:
        if n and begins == "after it has ended":
            await left[n - 1].wait()
        one = Exchange(app, str(n))  # called without its cancel scope, which old anyio keeps
        await app(one.scope, one.receive, one.send)

    async def handle(path: str, respond: Respond) -> None:
        n = int(path)
        made.append(weakref.ref(BackgroundTasks()._fifo_request))  # type: ignore[arg-type]
        if n + 1 < len(left):
            if begins == "before it ends":
                await left[n].wait()
                group.start_soon(next_one, n + 1)
                while len(made) == n + 1:
                    await anyio.sleep(0)
            else:
                group.start_soon(next_one, n + 1)
            await respond()
        else:
            await left[n].wait()
            gc.collect()
            alive.append(sum(request() is not None for request in made))

    alive: list[int] = []
    app = app_of(handle)
    async with anyio.create_task_group() as group:
        group.start_soon(next_one, 0)
        for event in left:
            await wait_all_tasks_blocked()
            event.set()
    assert len(made) == 8
    assert alive[0] <= 3, "the one that is handled, its maker, whose context it has, and that one's own"


# -- contexts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lane", ["default", "of its own"])
async def test_context_of_a_task_that_joins(lane: str, events: list[Any]) -> None:
    """What a running task adds runs in its request's context, also if another request is next to the loop."""
    gate = anyio.Event()
    bobs: list[Any] = []

    async def audit(n: int) -> None:
        events.append((n, user.get()))

    async def first(tasks: BackgroundTasks) -> None:
        adder = tasks.lane("audit") if lane == "of its own" else tasks
        bobs.extend([contextvars.copy_context(), adder])
        await gate.wait()

    async def handle(path: str, respond: Respond) -> None:
        user.set(path)
        tasks = BackgroundTasks()
        if path == "bob":
            tasks.add_task(first, tasks)
            await respond()
        else:
            tasks.lane("other").add_task(audit, 1)
            await respond()
            context, adder = bobs
            context.run(adder.add_task, audit, 2)
        await tasks()

    app = app_of(handle)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        await client.start("bob")
        await client.start("alice")
        gate.set()
    assert sorted(events) == [(1, "alice"), (2, "bob")]
    check_idle(app.executor)


@pytest.mark.parametrize("place", ["look_at", "_ready", "before one that joins", "after one that joins"])
async def test_ctrl_c_keeps_what_joins(place: str, events: list[Any]) -> None:
    """A KeyboardInterrupt as one request hands its tasks over loses no task of another request."""
    gate = anyio.Event()
    objects: list[BackgroundTasks] = []

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        if path == "/b":
            objects.append(tasks)
            tasks.add_task(gate.wait)
            await respond()
            await tasks()
            return
        runner: Any = app.executor._runner
        tasks.lane("other").add_task(events.append, "other")
        await respond()
        for n in range(2):
            objects[0].add_task(Work(events).quick, n)
        name = "look_at" if place == "look_at" else "_ready"
        original = getattr(runner, name)
        interrupted = Once(original, place == "after one that joins")
        joined = list(objects[0]._fifo_jobs) if "joins" in place else None

        def now_or_then(job: Job[Any], *more: Any) -> Any:
            return (interrupted if joined is None or job in joined else original)(job, *more)

        setattr(runner, name, now_or_then)
        with pytest.raises(KeyboardInterrupt):
            await tasks()
        delattr(runner, name)

    app = app_of(handle)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        b = await client.start("/b")
        assert (await client.start("/a")).error is None
        gate.set()
        with anyio.fail_after(5):
            await b.ended.wait()
    assert b.error is None
    assert [n for n in events if n != "other"] == [0, 1]
    await app.executor.join()
    check_idle(app.executor)


# -- what a failing task has added ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sync", "async", "async later"])
async def test_failing_task_has_added_another(kind: str, events: list[Any], log: Log) -> None:
    """What a task adds to its own object before it fails is skipped, as in Starlette, and named."""
    jobs: list[Job[Any]] = []

    def sync(tasks: BackgroundTasks) -> None:
        jobs.append(tasks.add_task(events.append, 1))
        raise ValueError

    async def later(tasks: BackgroundTasks) -> None:
        await anyio.sleep(0)
        sync(tasks)

    async def at_once(tasks: BackgroundTasks) -> None:
        sync(tasks)

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        tasks.add_task({"sync": sync, "async": at_once, "async later": later}[kind], tasks)
        await respond()
        await tasks()

    app = app_of(handle)
    assert type((await get(app)).error) is ValueError
    await app.executor.join()
    assert (events, [job.state for job in jobs]) == ([], [S.SKIPPED])
    (said,) = log
    assert "list.append" in said
    check_idle(app.executor)


async def test_failing_task_has_added_another_as_a_request_hands_over(events: list[Any]) -> None:
    """What a failed sync task has added is skipped, also as another request hands its tasks over."""
    work = Work(events)
    jobs: list[Job[Any]] = []

    def fails_in_a_thread(tasks: BackgroundTasks) -> None:
        assert work.thread_gate(0).wait(10)
        jobs.append(tasks.add_task(events.append, "rest"))
        raise ValueError

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        if path == "/fails":
            jobs.append(tasks.add_task(fails_in_a_thread, tasks))
        else:
            tasks.lane("other").add_task(events.append, "other")
        await respond()
        if path == "/other":  # and keeps the loop busy
            work.thread_gate(0).set()
            while jobs[0] not in app.executor._runner.scheduler.inbox:
                time.sleep(0)
        await tasks()

    app = app_of(handle)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        failing = await client.start("/fails")
        assert (await client.start("/other")).error is None
    assert type(failing.error) is ValueError
    assert [job.state for job in jobs] == [S.FAILED, S.SKIPPED]
    assert events == ["other"]
    check_idle(app.executor)


async def test_failing_task_that_cancels_itself(events: list[Any]) -> None:
    """With "run" the task after one that cancels its own asyncio task, and fails, runs."""
    if not on_asyncio():
        return  # trio has no native cancel
    jobs: list[Job[Any]] = []

    async def cancels_itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        raise ValueError

    async def goes_on() -> None:
        await asyncio.sleep(0)
        events.append("went on")

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        jobs.extend(tasks.add_task(func) for func in (cancels_itself, goes_on))
        await respond()
        await tasks()

    app = app_of(handle, rest_after_failure="run")
    assert type((await get(app)).error) is ValueError
    assert [job.state for job in jobs] == [S.FAILED, S.SUCCEEDED]
    assert events == ["went on"]
    check_idle(app.executor)


# -- failures that nobody waits for --------------------------------------------------------------------------


@pytest.mark.parametrize("awaited", ["before", "after"])
async def test_failure_added_after_the_wait_was_cancelled(awaited: str, log: Log) -> None:
    """A task that is added after its request's wait was cancelled fails in the log."""
    gate, objects = anyio.Event(), []

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        objects.append(tasks)
        tasks.add_task(gate.wait)
        if awaited == "before":
            await tasks()
            await respond()
        else:
            await respond()
            await tasks()

    app = app_of(handle)
    async with anyio.create_task_group() as group:
        exchange = await Client(app, group).start()
        exchange.cancel_scope.cancel()
        await exchange.ended.wait()
        job = objects[0].add_task(fails)
        gate.set()
        assert await job.wait() is S.FAILED
    assert log[-1] == "ERROR fails failed (GET /)"


@pytest.mark.parametrize("ends", ["in its first step", "later"])
async def test_failure_added_as_the_wait_ends(ends: str, log: Log) -> None:
    """A task that a thread adds as its request's last one ends is raised by the request, or logged."""
    held, objects, jobs = Held(), [], []
    gate = anyio.Event()

    async def last() -> None:
        thread.start()
        assert held.came.wait(10)
        if ends == "later":
            await gate.wait()

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        objects.append(tasks)
        tasks.add_task(last)
        await respond()
        await tasks()

    def add() -> None:
        runner: Any = app.executor._runner
        make_job = runner.make_job

        def stand_before(*args: Any) -> Any:
            del runner.make_job
            held.stand()
            return make_job(*args)

        runner.make_job = stand_before
        jobs.append(objects[0].add_task(fails))

    app = app_of(handle)
    thread = threading.Thread(target=add)
    async with anyio.create_task_group() as group:
        exchange = await Client(app, group).start()
        gate.set()
        await exchange.ended.wait()
        held.let_go()
        await anyio.to_thread.run_sync(thread.join)
    assert exchange.error is None
    assert await jobs[0].wait() is S.FAILED
    assert log == ["ERROR fails failed (GET /)"]


async def test_failure_added_while_the_request_waits(log: Log) -> None:
    """What a task adds while its request waits is raised by the request, and not logged."""

    async def adds(tasks: BackgroundTasks) -> None:
        await anyio.sleep(0)
        tasks.add_task(fails)

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(adds, tasks)
        await respond()
        await tasks()

    app = app_of(handle)
    assert repr((await get(app)).error) == "ValueError('it fails')"
    assert log == []


async def test_failure_added_between_await_and_response(log: Log) -> None:
    """What a handler adds to an object that it has awaited, before it responds, is raised by the request."""

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(anyio.sleep, 0)
        await tasks()
        tasks.add_task(fails)
        await respond()

    app = app_of(handle)
    assert repr((await get(app)).error) == "ValueError('it fails')"
    assert not [said for said in log if "failed" in said]


async def test_failure_added_to_an_object_awaited_before_the_response(log: Log) -> None:
    """What a task adds to an object that was awaited before the response ended fails its request."""
    objects: list[BackgroundTasks] = []

    async def adds() -> None:
        objects[0].add_task(fails)

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        objects.append(tasks)
        tasks.add_task(adds)
        await tasks()
        await respond()

    app = app_of(handle)
    assert repr((await get(app)).error) == "ValueError('it fails')"
    assert not [said for said in log if "failed" in said], "it is told once"
    check_idle(app.executor)


async def test_failure_of_a_request_that_raises_after_its_response(log: Log) -> None:
    """Tasks that were awaited before a response, whose handler then raises, run; failures are logged."""

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(fails)
        await tasks()
        await respond()
        raise LookupError("the handler fails")

    app = app_of(handle)
    assert repr((await get(app)).error) == "LookupError('the handler fails')"
    await app.executor.join()
    assert [said for said in log if "failed" in said] == ["ERROR fails failed (GET /)"]
    check_idle(app.executor)
