"""What a thread does between a look of the executor and its act, or the other way round: nothing is lost.

The other side acts at an exact place: a container is replaced by one that lets it, just before or just after.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio import wait_all_tasks_blocked

from fifo_background import (
    BackgroundTask,
    BackgroundTasks,
    ExecutorClosed,
    Job,
    JobState,
    QueueFull,
    SerialExecutor,
)
from fifo_background._core.invariants import check
from fifo_background._core.position import GONE, IN_QUEUE, Position
from fifo_background._core.state import OPEN
from fifo_background._run.in_threads import ThreadRuns
from fifo_background._run.runner import Runner
from fifo_background._settings import Options
from tests.support.apps import Work, app_of, check_idle
from tests.support.asgi import Client, get
from tests.support.log import Log
from tests.support.scheduler import Model, Request

S = JobState


class Held:
    """A place at which a thread stands until the test lets it go on."""

    def __init__(self) -> None:
        self.came = threading.Event()
        self._goes_on = threading.Event()

    def stand(self) -> None:
        """In the thread."""
        self.came.set()
        assert self._goes_on.wait(10)

    async def until_it_stands(self) -> None:
        while not self.came.is_set():
            await anyio.sleep(0)

    def let_go(self) -> None:
        self._goes_on.set()


# -- a position that leaves the queue ------------------------------------------------------------------------


async def test_added_as_its_position_has_left(events: list[Any]) -> None:
    """A task that is added just after its request's position has left the queue keeps its job and order."""
    work = Work(events)
    responds = anyio.Event()
    jobs: list[Job[Any]] = []

    class Leaves(list[Any]):
        """The position has left when the next job comes into it."""

        def append(self, job: Job[Any]) -> None:
            app.executor._runner.pump()
            assert job._position is not None
            assert job._position.state is GONE
            super().append(job)

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        if path == "/first":
            job = tasks.add_task(work.quick, "cancelled")
            position: Any = job._position
            assert job.cancel()
            position.added = Leaves(position.added)
            jobs.append(tasks.add_task(work.quick, "first"))
            await responds.wait()
        else:
            jobs.append(tasks.add_task(work.quick, "second"))
        await respond()
        await tasks()

    app = app_of(handle)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        first = await client.start("/first")
        await client.start("/second")
        assert [job.state for job in jobs] == [S.PENDING, S.QUEUED]
        responds.set()
    assert first.error is None
    assert events == ["first", "second"]
    assert [await job for job in jobs] == events
    check_idle(app.executor)


@pytest.mark.parametrize("wait", [True, False])
async def test_added_long_after_its_position_has_left(wait: bool, events: list[Any]) -> None:
    """A position belongs to its request until that has ended, also in no queue; then they part."""
    work = Work(events)
    jobs: list[Job[Any]] = []
    kept: list[Any] = []

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        cancelled = tasks.add_task(work.quick, 1)
        position: Any = cancelled._position
        kept.extend([position, position.owner])
        assert cancelled.cancel()
        app.executor._runner.pump()
        assert position.state is GONE
        jobs.append(tasks.add_task(work.gated, 2))
        assert jobs[0]._position is position
        await respond()
        await tasks()

    app = app_of(handle, wait=wait)
    async with anyio.create_task_group() as group:
        exchange = await Client(app, group).start()
        assert (exchange.ended.is_set(), jobs[0].state) == (not wait, S.RUNNING)
        work.gate(2).set()
    assert exchange.error is None
    assert await jobs[0] == 2, "its own job, not one that stands for it"
    await app.executor.join()
    position, request = kept
    assert (position.owner, request.positions) == (request, {})


def test_position_that_is_taken_again() -> None:
    """A position that has left the queue is taken again for a job that holds it, and for nothing else."""
    model = Model()
    position = model.position("a")
    model.cancel(model.add(position))
    assert model.start_next() is None
    model.scheduler.inbox.append(position)
    model.scheduler.drain()
    assert position.state is GONE
    job = model.add(position)
    model.scheduler.inbox.append(position)
    behind = model.job("a")
    assert model.start_next() is None
    assert position.state is IN_QUEUE
    model.scheduler.inbox.append(job)
    lane = model.start()
    assert lane.job is job
    model.end(lane)
    assert model.start().job is behind


@pytest.mark.parametrize("how", ["cancelled", "arrived"])
def test_added_as_a_position_leaves_from_the_middle(how: str) -> None:
    """A job that is added as its position leaves, behind others, has its place in the queue."""
    model = Model()
    scheduler = model.scheduler
    model.job("a", ready=False)
    position = model.position("a", Request())
    if how == "arrived":
        position.arriving = True
    else:
        job = model.add(position)
    scheduler.drain()
    added: list[Job[Any]] = []

    class Gone(list[Any]):
        def append(self, what: Any) -> None:
            super().append(what)
            assert what is position
            assert position.state is GONE
            added.append(model.add(position))

    scheduler.gone = Gone()
    if how == "arrived":
        scheduler.give_up(position)
    else:
        model.cancel(job)
    lane = scheduler.lanes.of("a")
    assert position.state is IN_QUEUE
    assert [one for one in lane if one is position] == [position]
    check(scheduler)
    assert added[0].state is S.PENDING


async def test_added_after_the_request_has_ended(events: list[Any]) -> None:
    """A task that is added while its request's tasks run, after its end, still stands in its position."""
    work = Work(events)
    objects: list[BackgroundTasks] = []

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        objects.append(tasks)
        tasks.add_task(work.gated, 1) if path == "/first" else tasks.add_task(work.quick, "behind")
        await respond()
        await tasks()

    app = app_of(handle, wait=False)
    for path in ("/first", "/second"):
        assert (await get(app, path)).error is None
    await wait_all_tasks_blocked()
    objects[0].add_task(work.quick, 2)
    work.gate(1).set()
    await app.executor.join()
    assert events == ["start 1", "end 1", 2, "behind"]


@pytest.mark.parametrize("ended", [True, False])
async def test_part_that_is_added_as_its_job_ends(ended: bool, events: list[Any]) -> None:
    """A part that a thread adds to a job which ends just then is refused, or is nobody's, as after it."""
    held = Held()
    work = Work(events)
    inner = BackgroundTasks()
    leaves = anyio.Event()
    outcome: list[Any] = []

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        inner._fifo_request = tasks._fifo_request
        inner.add_task(work.gated, 1)
        tasks.add_task(inner)
        await respond()
        await tasks()
        responded.set()
        await leaves.wait()

    def add() -> None:
        make = inner._fifo_orphan

        def stand_before(task: Any) -> Job[Any]:
            vars(inner).pop("_fifo_orphan")
            held.stand()
            return make(task)

        inner._fifo_orphan = stand_before  # type: ignore[method-assign]
        try:
            outcome.append(inner.add_task(work.quick, 2))
        except RuntimeError as error:
            outcome.append(error)

    app = app_of(handle)
    responded = anyio.Event()
    async with anyio.create_task_group() as group:
        exchange = await Client(app, group).start()
        group.start_soon(anyio.to_thread.run_sync, add)
        await held.until_it_stands()
        work.gate(1).set()
        await responded.wait()
        if ended:
            leaves.set()
            await exchange.ended.wait()
        held.let_go()
        while not outcome:
            await anyio.sleep(0)
        leaves.set()
    if ended:
        assert "had ended, and would never run" in str(outcome[0])
    else:
        assert (outcome[0].state, outcome[0]._runner) == (S.PENDING, None)
        assert outcome[0].cancel()
    assert exchange.error is None
    assert events == ["start 1", "end 1"]
    check_idle(app.executor)


# -- an executor that closes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("drains", [True, False])
async def test_accepted_as_the_executor_closes(drains: bool, events: list[Any]) -> None:
    """A task that a thread has submitted, but not queued yet, as the executor closes is run or refused."""
    held = Held()
    outcome: list[Any] = []
    executor = SerialExecutor(drain_timeout=30 if drains else 0)
    scheduler = executor._runner.scheduler
    await executor.submit_nowait(anyio.sleep, 0)

    class Waiting(set[Job[Any]]):
        def add(self, job: Job[Any]) -> None:
            super().add(job)
            held.stand()

    def submit() -> None:
        try:
            outcome.append(executor.submit_nowait(events.append, 1))
        except ExecutorClosed as error:
            outcome.append(error)

    async def close() -> None:
        await executor.aclose()
        closed.set()

    scheduler.waiting = Waiting()
    closed = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, submit)
        await held.until_it_stands()
        group.start_soon(close)
        while scheduler.status is OPEN or not (drains or closed.is_set()):
            await anyio.sleep(0)
        held.let_go()
    if drains:
        assert [job.state for job in outcome] == [S.SUCCEEDED]
        assert events == [1]
    else:
        assert [type(one) for one in outcome] == [ExecutorClosed]
        assert events == []
    check_idle(executor)


# -- capacity ------------------------------------------------------------------------------------------------


class Counting(dict[Any, Any]):
    """What a lane counts: `meanwhile` is called just before the first job is counted in."""

    def __init__(self, meanwhile: Callable[[], Any]) -> None:
        super().__init__()
        self.meanwhile: Callable[[], Any] | None = meanwhile

    def setdefault(self, token: Any, jobs: Any = None) -> Any:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return super().setdefault(token, jobs)


def test_started_while_a_lane_begins_to_count() -> None:
    """A job that starts while a thread counts what waits in its lane for the first time leaves no count."""
    model = Model()
    jobs = [model.job("a") for _ in range(2)]
    model.scheduler.drain()
    lane = model.scheduler.lanes.of("a")

    def start() -> None:
        (started,) = (job for job in jobs if job is lane.first.first)  # type: ignore[union-attr]
        assert model.scheduler.turns.start_next() is lane
        assert started.state is S.RUNNING

    lane.counted = Counting(start)
    limited = model.job("a", max_waiting=2)
    assert set(lane.counted) == {jobs[1], limited}
    for _ in range(2):
        model.end(lane)
        model.start()
    model.end(lane)
    assert (lane.counted, model.start_next(), model.scheduler.lanes.by_key) == ({}, None, {})


@pytest.mark.parametrize("limit", [None, 9])
def test_added_while_a_lane_begins_to_count(limit: int | None) -> None:
    """What another thread adds, with a limit or without, while a lane begins to count is counted."""
    model = Model()
    first = model.job("a")
    lane = model.scheduler.lanes.of("a")
    added: list[Job[Any]] = []
    lane.counted = Counting(lambda: added.append(model.job("a", max_waiting=limit)))
    limited = model.job("a", max_waiting=9)
    assert set(lane.counted) == {first, *added, limited}
    with pytest.raises(QueueFull, match="3 tasks wait already"):
        model.job("a", max_waiting=3)


@pytest.mark.parametrize("how", ["submitted", "added"])
async def test_refused_while_capacity_is_looked_for(how: str, events: list[Any]) -> None:
    """Capacity that a job has taken for a moment, until it was refused, goes to who waits for it."""
    held = Held()
    refused: list[QueueFull] = []

    async def handle(path: str, respond: Any) -> None:
        await anyio.to_thread.run_sync(add, BackgroundTasks().add_task)

    app = app_of(handle, max_waiting=1)
    executor = app.executor
    capacity = executor._runner.scheduler.capacity

    def add(add_task: Any) -> None:
        discard = capacity.discard

        def stand_before(*args: Any) -> None:
            capacity.discard = discard
            held.stand()
            discard(*args)

        capacity.discard = stand_before
        try:
            add_task(events.append, "refused")
        except QueueFull as error:
            refused.append(error)

    async def submit() -> None:
        await executor.submit(events.append, "let in")
        let_in.set()

    let_in = anyio.Event()
    executor.lane("paused").pause()
    first = executor.lane("paused").submit_nowait(events.append, "cancelled")
    async with anyio.create_task_group() as group:
        group.start_soon(submit)
        await wait_all_tasks_blocked()
        if how == "added":
            group.start_soon(get, app)
        else:
            group.start_soon(anyio.to_thread.run_sync, add, executor.submit_nowait)
        await held.until_it_stands()
        assert first.cancel()
        while executor._runner.scheduler.inbox:
            await anyio.sleep(0)
        assert not let_in.is_set(), "the one that will be refused has the capacity"
        held.let_go()
        with anyio.fail_after(5):
            await let_in.wait()
    assert len(refused) == 1
    await executor.join()
    assert events == ["let in"]


async def test_statistics_let_waiters_go(events: list[Any]) -> None:
    """`statistics` looks into the inbox; who may go on for what it finds there goes on."""
    async with SerialExecutor(max_waiting=1) as executor:
        executor.lane("paused").pause()
        first = executor.lane("paused").submit_nowait(events.append, "cancelled")
        async with anyio.create_task_group() as group:
            group.start_soon(executor.submit, events.append, "let in")
            await wait_all_tasks_blocked()
            # as a thread does that has not come to ask the loop yet
            assert first._claim()
            first._end(S.CANCELLED)
            executor._runner.scheduler.inbox.append(first)
            assert executor.statistics().waiting == 1
            group.cancel_scope.deadline = anyio.current_time() + 5
        await executor.join()
    assert events == ["let in"]


# -- handing over, pausing, retiring -------------------------------------------------------------------------


async def test_added_while_an_object_is_handed_over(
    events: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a thread adds while the loop hands the object over runs after what was added before."""
    hand_over = Runner.hand_over

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()

        def add_before(runner: Runner, *jobs: Any) -> None:
            monkeypatch.setattr(Runner, "hand_over", hand_over)
            thread = threading.Thread(target=tasks.add_task, args=(events.append, 3))
            thread.start()
            thread.join()
            hand_over(runner, *jobs)

        tasks.add_task(events.append, 1)
        tasks.add_task(events.append, 2)
        await respond()
        monkeypatch.setattr(Runner, "hand_over", add_before)
        await tasks()

    assert (await get(app_of(handle))).error is None
    assert events == [1, 2, 3]


async def test_paused_before_a_thread_has_begun(events: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that was given to a thread, which has not begun, does not start in a paused lane."""
    held, work = Held(), ThreadRuns._work

    def stand_first(runs: ThreadRuns, trip: Any, lane: Any) -> None:
        held.stand()
        work(runs, trip, lane)

    monkeypatch.setattr(ThreadRuns, "_work", stand_first)
    async with SerialExecutor() as executor:
        lane = executor.lane("k")
        job = lane.submit_nowait(events.append, 1)
        await held.until_it_stands()
        lane.pause()
        held.let_go()
        while executor._runner.scheduler.turns.occupied:
            await anyio.sleep(0)
        assert (job.state, events, lane.peek()) == (S.QUEUED, [], job)
        lane.resume()
        await job
    assert events == [1]


async def test_counted_in_a_lane_that_is_retired(events: list[Any]) -> None:
    """A request that still has the object of a retired lane counts in the lane that has its key now."""

    async def handle(path: str, respond: Any) -> None:
        lane = app.executor.lane("k")
        adder = BackgroundTasks().lane("k", max_waiting=1)
        adder.add_task(events.append, "never").cancel()
        await wait_all_tasks_blocked()  # the lane is idle, and was retired
        assert app.executor.statistics().lanes == {}
        lane.pause()
        lane.submit_nowait(events.append, "first")
        with pytest.raises(QueueFull):
            adder.add_task(events.append, "never")
        lane.clear()
        adder.add_task(events.append, "never").cancel()
        lane.resume()
        await respond()

    app = app_of(handle)
    assert (await get(app)).error is None
    await wait_all_tasks_blocked()
    assert app.executor._runner.scheduler.lanes.by_key == {}
    assert app.executor.lane("k", max_waiting=1).submit_nowait(events.append, "last")
    await app.executor.join()
    assert events == ["last"]


async def test_cancelled_before_its_lane_is_another(events: list[Any]) -> None:
    """A job that is cancelled before its position is taken into another lane of its key is counted out."""
    model = Model()
    scheduler = model.scheduler
    old = scheduler.lanes.of("k")
    position = Position(old, None)
    job: Job[Any] = Job(BackgroundTask(print), None, Options(max_waiting=1), scheduler.waiting)
    job._position = position
    scheduler.accept(job, old, scheduler.clock())
    position.submit(job, 0.0)
    del scheduler.lanes.by_key["k"]  # retired, as it was idle until now
    new = scheduler.lanes.of("k")
    scheduler.inbox.append(position)
    assert job._claim()
    job._end(S.CANCELLED)
    scheduler.inbox.append(job)
    scheduler.drain()
    assert (old.counted, new.counted, list(scheduler.waiting)) == ({}, {}, [])


# -- what a task is made of ----------------------------------------------------------------------------------


class Decorated:
    """Makes methods of a callable object, which has no name."""

    def __init__(self, func: Callable[..., Any]) -> None:
        self.func = func

    def __call__(self, *args: Any) -> Any:
        return self.func(*args)

    def __get__(self, owner: Any, kind: Any = None) -> Any:
        return self if owner is None else MethodType(self, owner)


class Service:
    def __init__(self, events: list[Any]) -> None:
        self.events = events

    @Decorated
    def work(self) -> None:
        self.events.append("work")


@pytest.mark.parametrize("how", ["runs", "cancelled", "skipped"])
async def test_method_without_a_name(how: str, events: list[Any]) -> None:
    """A method of a callable object is a task like any other, although it has no name to give."""
    service = Service(events)
    async with SerialExecutor() as executor:
        lane = executor.lane("k")
        lane.pause()
        job, after = lane.submit_nowait(service.work), lane.submit_nowait(events.append, "after")
        if how == "cancelled":
            assert job.cancel()
        elif how == "skipped":
            assert lane.skip_head() is job
        lane.resume()
        await after
        assert await job.wait() is {"runs": S.SUCCEEDED, "cancelled": S.CANCELLED, "skipped": S.SKIPPED}[how]
        assert job.name == "method"
    assert events == (["work", "after"] if how == "runs" else ["after"])


async def test_function_that_lost_its_name() -> None:
    """A task whose function somebody has replaced since by an object without a name still ends."""
    async with SerialExecutor() as executor:
        job = executor.submit_nowait(print)
        task: Any = job._task
        task.func = Decorated(print)
        await job
    assert job.name == "print"


class Unequal:
    """A key that cannot be compared."""

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError


async def test_key_that_cannot_be_compared(events: list[Any]) -> None:
    """Where tasks cannot be taken over outside any request, nothing of them stays in the queue."""
    tasks = BackgroundTasks()
    tasks.add_task(events.append, "never")
    for _ in range(2):
        tasks.lane(Unequal()).add_task(events.append, "never")
    with pytest.raises(ZeroDivisionError):
        await tasks()
    await BackgroundTasks([BackgroundTask(events.append, "other")])()
    assert events == ["other"]


@pytest.mark.parametrize("path", ["/two lanes", "/cancelled"])
async def test_ended_requests_are_freed(path: str) -> None:
    """A request whose tasks have ended in one lane, and run on in another, is freed without the collector."""
    work = Work([])
    requests: list[weakref.ref[Any]] = []

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        first: Any = tasks.lane("a").add_task(work.quick, 1)
        requests.append(weakref.ref(first._position.owner))
        if path == "/cancelled":
            first.cancel()
        tasks.add_task(work.gated, 2)
        await respond()
        await tasks()

    app = app_of(handle, wait=False)
    await get(app, path)
    await wait_all_tasks_blocked()
    gc.collect()
    gc.disable()
    try:
        work.gate(2).set()
        for _ in range(3):  # done callbacks of the event loop hold the context for a turn
            await wait_all_tasks_blocked()
            await anyio.sleep(0)
        assert [request() for request in requests] == [None]
    finally:
        gc.enable()


async def test_cancelled_task_takes_no_capacity(events: list[Any]) -> None:
    """A cancelled task counts no more, from the moment at which `cancel()` returns."""

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, "never").cancel()
        tasks.lane("k", max_waiting=1).add_task(events.append, "never").cancel()
        tasks.lane("k", max_waiting=1).add_task(events.append, 1)
        await respond()
        await tasks()

    assert (await get(app_of(handle, max_waiting=1))).error is None
    assert events == [1]


async def test_added_to_a_position_of_an_ended_request(events: list[Any], log: Log) -> None:
    """What a detached task adds to a lane that its request has left still belongs to that request."""

    async def fails() -> None:
        raise ValueError

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        lane = tasks.lane("k")

        async def more() -> None:
            await ended.wait()
            for func in (fails, Work(events).quick):
                jobs.append(lane.add_task(func, *[1][: func is not fails]))

        lane.add_task(events.append, "before")
        tasks.add_task(more)
        await respond()
        await tasks()

    ended = anyio.Event()
    jobs: list[Job[Any]] = []
    app = app_of(handle, wait=False)
    await get(app)
    await wait_all_tasks_blocked()
    ended.set()
    await app.executor.join()
    assert [job.state for job in jobs] == [S.FAILED, S.SKIPPED]
    assert len(log) == 2
    assert all("(GET /)" in record for record in log)
