"""Edges of threads, capacity and slots: what one side does just as the other one acts."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio import wait_all_tasks_blocked

from fifo_background import (
    BackgroundTasks,
    ExecutorClosed,
    Job,
    JobState,
    OrderedBackgroundMiddleware,
    SerialExecutor,
)
from fifo_background._core.position import GONE, Position
from fifo_background._core.special import Special
from fifo_background._request import TrackedRequest
from tests.support.apps import Work, app_of, check_idle, user
from tests.support.asgi import Lifespan, get
from tests.support.log import Log
from tests.support.scheduler import Model
from tests.test_interrupts import Once
from tests.test_races import Held

S = JobState
Respond = Callable[[], Awaitable[None]]


# -- what a thread adds --------------------------------------------------------------------------------------


async def test_added_as_its_position_is_forgotten(events: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a thread adds in the moment in which its ended request forgets a position runs in its context."""
    work = Work(events)
    jobs: list[Job[Any]] = []
    adders: list[Any] = []
    has_ended: Any = TrackedRequest.has_ended

    async def audit() -> None:
        events.append(user.get())

    async def handle(path: str, respond: Respond) -> None:
        user.set("alice")
        tasks = BackgroundTasks()
        adders.append(tasks.lane("a"))
        jobs.append(adders[0].add_task(work.gated, 1))
        tasks.add_task(work.gated, 2)
        await respond()
        await tasks()

    def add() -> None:
        jobs.extend(adders[0].add_task(func) for func in (audit, events.clear, audit))

    def ended(request: TrackedRequest) -> bool:
        """The last look before the position is forgotten: just now a thread adds."""
        if positions[0].state is GONE and len(jobs) == 1:
            thread = threading.Thread(target=add)
            thread.start()
            thread.join()
        return bool(has_ended.fget(request))

    app = app_of(handle, wait=False)
    assert (await get(app)).error is None
    await wait_all_tasks_blocked()
    positions: list[Any] = [jobs[0]._position]
    assert type(positions[0]) is Position
    monkeypatch.setattr(TrackedRequest, "has_ended", property(ended))
    work.gate(1).set()
    await jobs[0]
    await wait_all_tasks_blocked()
    assert len(jobs) == 4
    assert [await job.wait() for job in jobs] == [S.SUCCEEDED] * 4
    assert events == ["alice"]
    later = adders[0].add_task(audit)
    await later
    assert len(events) == 2
    work.gate(2).set()
    await app.executor.join()
    check_idle(app.executor)


async def test_part_is_added_as_its_job_ends(events: list[Any]) -> None:
    """A thread that adds to an object just as the job that runs it ends gets a job of nobody."""
    held, work, inner = Held(), Work(events), BackgroundTasks()
    loop = threading.get_ident()
    outcome: list[Job[Any]] = []

    class Watched(Special):
        """What the thread has seen of the parts is over when it goes on."""

        stood = False
        kept: Any = None

        @property
        def parts(self) -> Any:
            seen = self.kept
            if threading.get_ident() != loop and not self.stood:
                self.stood = True
                held.stand()
            return seen

        @parts.setter
        def parts(self, parts: Any) -> None:
            self.kept = parts

    def add() -> None:
        outcome.append(inner.add_task(events.append, "never"))

    async with SerialExecutor() as executor:
        inner.add_task(work.gated, 1)
        job = executor.submit_nowait(inner.__call__)
        await wait_all_tasks_blocked()
        watched = Watched()
        watched.parts = job._make_special().parts
        assert watched.parts is not None
        job._special = watched
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, add)
            await held.until_it_stands()
            work.gate(1).set()
            assert await job.wait() is S.SUCCEEDED
            held.let_go()
        assert (outcome[0].state, outcome[0].cancel()) == (S.PENDING, True)
        check_idle(executor)
    assert events == ["start 1", "end 1"]


async def test_cleared_as_a_thread_adds(events: list[Any]) -> None:
    """A task that a thread adds to a running object just before its lane is cleared is cancelled."""
    jobs: list[Job[Any]] = []

    class Cleared(list[Any]):
        """The lane is cleared when the next job has come into the position."""

        def append(self, job: Job[Any]) -> None:
            super().append(job)
            jobs.extend(app.executor.lane(None).clear())  # goes to the loop, and comes back

    def adds(tasks: BackgroundTasks) -> None:
        position: Any = jobs[0]._position
        position.added = Cleared(position.added)
        jobs.append(tasks.add_task(events.append, "never"))

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        jobs.append(tasks.add_task(adds, tasks))
        await respond()
        await tasks()

    app = app_of(handle)
    assert (await get(app)).error is None
    assert [job.state for job in jobs] == [S.SUCCEEDED, S.CANCELLED, S.CANCELLED]
    assert (jobs[1], events) == (jobs[2], [])
    check_idle(app.executor)


# -- submits that wait for capacity --------------------------------------------------------------------------


async def test_submit_sees_a_sync_task_start(events: list[Any]) -> None:
    """`await submit` goes on when the sync task before it has started, and so does not wait anymore."""
    work = Work(events)
    async with SerialExecutor(max_waiting=1) as executor:
        first = executor.submit_nowait(work.thread_gated, 1)
        try:
            with anyio.fail_after(5):
                second = await executor.submit(events.append, 2)
            assert (first.state, second.state) == (S.RUNNING, S.QUEUED)
        finally:
            work.thread_gate(1).set()
        await second
    assert events == ["start 1", "end 1", 2]


@pytest.mark.parametrize("how", ["startup fails", "cancelled"])
@pytest.mark.parametrize("whose", ["executor", "lane"])
async def test_submit_ends_with_the_lifespan(whose: str, how: str, events: list[Any]) -> None:
    """`await submit` that waits for capacity raises `ExecutorClosed` when the last lifespan just ends."""
    errors: list[BaseException] = []
    waits = anyio.Event()

    async def submit(submitter: Any) -> None:
        try:
            await submitter.submit(events.append, 2)
        except ExecutorClosed as error:
            errors.append(error)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        executor = middleware.executor
        submitter = executor if whose == "executor" else executor.lane("a", max_waiting=1)
        executor.lane("a").pause()
        executor.lane("a", max_waiting=1).submit_nowait(events.append, 1)
        group.start_soon(submit, submitter)
        await waits.wait()
        if how == "startup fails":
            await send({"type": "lifespan.startup.failed"})
            raise ValueError("no database")
        await receive()

    middleware = OrderedBackgroundMiddleware(app, max_waiting=1 if whose == "executor" else None)
    life = Lifespan(middleware)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(life.run)
            await wait_all_tasks_blocked()
            waits.set()
            if how == "cancelled":
                life.scope.cancel()
    assert [type(error) for error in errors] == [ExecutorClosed]
    assert events == []


async def test_submitted_as_the_loop_ends(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a thread submits just before the loop's end is dropped, and named in the log."""
    executor = SerialExecutor()
    async with executor:
        closing, jobs = executor._runner.closing, []

        def facts(waiting: Any) -> Any:
            jobs.append(executor.submit_nowait(print))  # as a thread: what was there has been looked at
            return {}

        executor._runner.bind()
        monkeypatch.setattr(closing, "_facts", facts)
        closing.stop("the event loop ended: dropped")
        with pytest.raises(ExecutorClosed):
            executor.submit_nowait(print)
    assert [job.state for job in jobs] == [JobState.DROPPED]
    assert log == ["WARNING the event loop ended: dropped 1 task: print 1-…"]
    check_idle(executor)


@pytest.mark.parametrize("after", [False, True])
def test_ctrl_c_as_a_slot_comes_back(after: bool) -> None:
    """A KeyboardInterrupt as a slot comes back to a task that waits for it: that one gets it, no other."""
    model = Model(max_lanes_running=1)
    scheduler: Any = model.scheduler
    slots = scheduler.slots
    first, second = model.job("a"), model.job("b")
    lane = model.start()
    slots.lend(lane)  # it waits for the second
    other = model.start()
    assert (lane.job, other.job, slots.free) == (first, second, 0)
    assert not slots.take_back(lane, first, "waiter")
    give_back = slots.give_back
    slots.give_back = Once(give_back, after)
    with pytest.raises(KeyboardInterrupt):
        model.end(other)
    slots.give_back = give_back
    third = model.job("c")
    assert (scheduler.woken, slots.free) == (["waiter"], 0)
    assert model.start_next() is None
    slots.took_back(lane, first, "waiter")
    assert model.start_next() is None, "the first lane has the slot"
    assert model.end(lane) is None
    assert model.start().job is third
    assert slots.free == 0
