"""What can be done to a lane and to a job: pause, stop, skip, retry, clear, cancel, supersede, look at."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio import wait_all_tasks_blocked
from starlette.requests import Request
from starlette.responses import Response

from fifo_background import (
    BackgroundTasks,
    BlockedBy,
    Job,
    JobNoResult,
    JobState,
    LaneStopped,
    SerialExecutor,
    executor_of,
)
from tests.support.apps import Work, make_app
from tests.support.asgi import Client, Exchange, get
from tests.support.log import Log


class Flaky:
    """A task that fails as often as it is told."""

    def __init__(self, events: list[Any], failures: int = 1) -> None:
        self.events = events
        self.failures = failures

    async def run(self, n: int) -> int:
        self.events.append(n)
        if self.failures:
            self.failures -= 1
            raise ValueError(n)
        return n

    def sync(self, n: int) -> int:
        self.events.append(n)
        if self.failures:
            self.failures -= 1
            raise ValueError(n)
        return n


async def test_pause_before_a_request(events: list[Any]) -> None:
    """A paused lane starts nothing, not even the one task of a request that nothing is before."""

    async def handler(request: Request) -> Response:
        executor_of(request).lane(None).pause()
        tasks = BackgroundTasks()
        tasks.add_task(events.append, "task")
        return Response(background=tasks)

    app = make_app(handler)
    async with anyio.create_task_group() as group:
        exchange = await Client(app, group).start("/handler")
        await wait_all_tasks_blocked()
        assert events == []
        executor_of(app).lane(None).resume()
    assert exchange.error is None
    assert events == ["task"]


async def test_pause_and_resume(events: list[Any]) -> None:
    """A paused lane starts nothing until `resume`; its running task goes on, as do other lanes."""
    work = Work(events)
    async with SerialExecutor(drain_timeout=2) as executor:
        lane = executor.lane("a")
        lane.submit_nowait(work.gated, 0)
        lane.submit_nowait(work.quick, 1)
        await wait_all_tasks_blocked()
        lane.pause()
        work.gate(0).set()
        await wait_all_tasks_blocked()
        await executor.submit_nowait(work.quick, 2)
        await wait_all_tasks_blocked()
        assert events == ["start 0", "end 0", 2]
        assert executor.statistics().lanes["a"].blocked_by is BlockedBy.PAUSED
        assert lane.resume() is True
        await wait_all_tasks_blocked()
        assert events[3:] == [1]
        lane.pause()
        lane.resume()
        await wait_all_tasks_blocked()
        assert executor._runner.scheduler.lanes.by_key == {}


async def test_pause_works_on_any_key(events: list[Any]) -> None:
    """`pause` works on a key that nothing was added to, and keeps its lane until `resume`."""
    work = Work(events)
    async with SerialExecutor(drain_timeout=2) as executor:
        executor.lane("a").pause()
        await executor.submit_nowait(work.quick, 0)
        await wait_all_tasks_blocked()
        assert executor.statistics().lanes["a"].blocked_by is BlockedBy.PAUSED
        executor.lane("a").submit_nowait(work.quick, 1)
        await wait_all_tasks_blocked()
        assert events == [0]
        assert executor.lane("a").resume() is True
    assert events == [0, 1]


async def test_key_without_a_lane() -> None:
    """`resume`, `peek`, `skip_head`, `clear` of a key without a lane return False, None, None, []."""
    async with SerialExecutor() as executor:
        lane = executor.lane("a")
        assert lane.resume() is False
        assert lane.peek() is None
        assert lane.skip_head() is None
        assert lane.clear() == []
        assert executor._runner.scheduler.lanes.by_key == {}


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("rest_after_failure", ["skip", "run"])
async def test_stop(sync: bool, rest_after_failure: str, events: list[Any], log: Log) -> None:
    """`lane_after_failure="stop"`: the lane stops, requests that wait in it are let go with `LaneStopped`."""
    work, flaky = Work(events), Flaky(events)

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        n = int(request.headers["n"])
        tasks.add_task(flaky.sync if sync else flaky.run, n)
        tasks.add_task(work.quick, n + 1)
        return Response(background=tasks)

    app = make_app(handler, lane_after_failure="stop", rest_after_failure=rest_after_failure)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        executor = await _executor(app)
        executor.submit_nowait(work.gated, 0)
        exchanges = [await client.start("/handler", headers=[(b"n", b"%d" % n)]) for n in (1, 3)]
        work.gate(0).set()
        for exchange in exchanges:
            await exchange.ended.wait()
        exchanges.append(await get(app, "/handler", headers=[(b"n", b"5")]))
        await wait_all_tasks_blocked()
        assert events == ["start 0", "end 0", 1]
        errors = [exchange.error for exchange in exchanges]
        assert [type(error) for error in errors] == [ValueError, LaneStopped, LaneStopped]
        name = "Flaky.sync" if sync else "Flaky.run"
        assert str(errors[1]).startswith(
            f"the default lane has stopped, because {name} failed. The tasks stay in the queue"
        )
        head = executor.lane(None).peek()
        assert head is not None
        assert head.state is JobState.FAILED
        statistics = executor.statistics().lanes[None]
        assert (statistics.blocked_by, statistics.head) == (BlockedBy.FAILED_HEAD, name)
        again = executor.lane(None).retry_head()
        assert await again == 1
        assert head.state is JobState.FAILED
        await executor.join()
    skipped = rest_after_failure == "skip"
    assert events[3:] == ([1, 3, 4, 5, 6] if skipped else [1, 2, 3, 4, 5, 6])
    after = "; skipped after it: 1 task: Work.quick 3-… in the default lane" if skipped else ""
    assert log == [f"WARNING {name} failed (GET /handler){after}; the default lane has stopped"]


async def test_stop_calls_no_done_callback(events: list[Any]) -> None:
    """A lane that stops lets requests go; the done callbacks of their tasks wait on."""

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        job = tasks.add_task(fail_later, len(events))
        job.add_done_callback(lambda job: events.append(job.state.value))
        return Response(background=tasks)

    async def fail_later(n: int) -> None:
        await gate.wait()
        raise ValueError(n)

    gate = anyio.Event()
    app = make_app(handler, lane_after_failure="stop")
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        exchanges = [await client.start("/handler") for _ in range(2)]
        gate.set()
        for exchange in exchanges:
            await exchange.ended.wait()
        exchanges.append(await get(app, "/handler"))
        assert [type(exchange.error) for exchange in exchanges] == [ValueError, LaneStopped, LaneStopped]
        await wait_all_tasks_blocked()
        assert events == ["failed"]
        executor_of(app).lane(None).clear()
        await wait_all_tasks_blocked()
    assert events == ["failed", "cancelled", "cancelled"]


async def _executor(app: Any) -> SerialExecutor:
    await get(app, "/nothing")
    return executor_of(app)


async def test_stopped_head(events: list[Any], log: Log) -> None:
    """A stopped lane keeps its failed head until it is retried, skipped or cleared."""
    flaky = Flaky(events, failures=3)
    async with SerialExecutor(drain_timeout=2) as executor:
        lane = executor.lane("a", after_failure="stop")
        failed = lane.submit_nowait(flaky.run, 1)
        others = [lane.submit_nowait(flaky.run, n) for n in (2, 3)]
        await wait_all_tasks_blocked()
        assert (events, lane.peek()) == ([1], failed)
        second = lane.retry_head()
        assert second is not failed
        await wait_all_tasks_blocked()
        assert (events, second.state, lane.peek()) == ([1, 1], JobState.FAILED, second)
        assert lane.skip_head() is second
        await wait_all_tasks_blocked()
        assert (events, others[0].state) == ([1, 1, 2], JobState.FAILED)
        assert lane.clear() == [others[1]]
        await wait_all_tasks_blocked()
        assert executor._runner.scheduler.lanes.by_key == {}
        with pytest.raises(RuntimeError, match="lane 'a' has not stopped, so there is nothing to retry"):
            lane.retry_head()
        with pytest.raises(RuntimeError, match="the default lane has not stopped"):
            executor.lane(None).retry_head()
    assert events == [1, 1, 2]
    assert log[-1] == "WARNING lane 'a' was cleared: cancelled 1 task: Flaky.run 3-…"


async def test_retry_keeps_the_order(events: list[Any], log: Log) -> None:
    """A retried head runs before everything behind it: `[0, 0, 1, 2, 3]`."""
    flaky = Flaky(events)
    async with SerialExecutor(lane_after_failure="stop", drain_timeout=2) as executor:
        for n in range(4):
            executor.submit_nowait(flaky.run, n)
        await wait_all_tasks_blocked()
        executor.lane(None).retry_head()
        await executor.join()
    assert events == [0, 0, 1, 2, 3]


async def test_skip_head(events: list[Any]) -> None:
    """`skip_head` leaves out the task that is next; the one behind it runs."""
    work = Work(events)
    async with SerialExecutor(drain_timeout=2) as executor:
        lane = executor.lane("a")
        for empty in (lane, executor.lane(None)):
            assert empty.skip_head() is None
            assert empty.peek() is None
        lane.submit_nowait(work.gated, 0)
        await wait_all_tasks_blocked()
        assert lane.peek() is None
        jobs = [lane.submit_nowait(work.quick, n) for n in (1, 2)]
        assert lane.skip_head() is jobs[0]
        assert lane.peek() is jobs[1]
        work.gate(0).set()
        with pytest.raises(JobNoResult, match=r"Work\.quick has no result: it was skipped"):
            await jobs[0]
    assert events == ["start 0", "end 0", 2]


async def test_clear(events: list[Any], log: Log) -> None:
    """`clear` cancels everything that waits in the lane, also what its request does not await yet."""
    work = Work(events)
    respond = anyio.Event()
    jobs: list[Job[Any]] = []

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        jobs.append(tasks.lane("a").add_task(work.quick, 1))
        jobs.append(tasks.add_task(work.quick, 2))
        await respond.wait()
        return Response(background=tasks)

    app = make_app(handler)
    async with anyio.create_task_group() as group:
        exchange = await Client(app, group).start("/handler")
        lane = executor_of(app).lane("a")
        behind = lane.submit_nowait(work.quick, 3)
        assert lane.peek() is jobs[0]
        assert lane.clear() == [jobs[0], behind]
        assert lane.clear() == []
        respond.set()
        await exchange.ended.wait()
        assert exchange.error is None
    assert [job.state for job in (*jobs, behind)] == [
        JobState.CANCELLED,
        JobState.SUCCEEDED,
        JobState.CANCELLED,
    ]
    assert events == [2]
    assert log == [
        "WARNING lane 'a' was cleared: "
        "cancelled 1 task: Work.quick 1-… (GET /handler); 1 task: Work.quick 3-…"
    ]
    assert executor_of(app)._runner.scheduler.lanes.by_key == {}


async def test_cancel_waiting(events: list[Any], log: Log) -> None:
    """A cancelled task never runs, the one behind it runs once, the lane stays serial."""
    work = Work(events)
    async with SerialExecutor(drain_timeout=2) as executor:
        first = executor.submit_nowait(work.gated, 0)
        jobs = [executor.submit_nowait(work.gated, n) for n in (1, 2, 3)]
        await wait_all_tasks_blocked()
        assert jobs[0].cancel()
        assert not jobs[0].cancel()
        assert await anyio.to_thread.run_sync(jobs[1].cancel)
        work.gate(0).set()
        await wait_all_tasks_blocked()
        assert events == ["start 0", "end 0", "start 3"]
        assert not first.cancel()
        work.gate(3).set()
        with pytest.raises(JobNoResult, match="it was cancelled"):
            await jobs[0]
    assert events[3:] == ["end 3"]
    assert log == []


async def test_cancel_first_of_request(events: list[Any]) -> None:
    """A cancelled task leaves the rest of its request in their position, before the next request's."""
    work = Work(events)
    jobs: list[Job[Any]] = []

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        first = int(request.query_params["first"])
        jobs.extend(tasks.add_task(work.quick, n) for n in range(first, first + 3))
        return Response(background=tasks)

    app = make_app(handler)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        await client.start("/handler", query_string=b"first=1")
        del events[:]
        executor_of(app).submit_nowait(work.gated, 0)
        await wait_all_tasks_blocked()
        for first in (b"first=4", b"first=7"):
            await client.start("/handler", query_string=first)
        assert jobs[3].cancel()
        assert jobs[7].cancel()
        work.gate(0).set()
    assert events == ["start 0", "end 0", 5, 6, 7, 9]


async def test_cancel_running(events: list[Any], log: Log) -> None:
    """A running async task is cancelled; the next one of the same request runs, in the same context."""
    work = Work(events)
    jobs: list[Job[Any]] = []

    async def slow(n: int) -> None:
        try:
            await work.gated(n)
        finally:
            with anyio.CancelScope(shield=True):
                await work.gated(n + 10)

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        jobs.extend(tasks.add_task(slow, n) for n in (1, 2))
        return Response(background=tasks)

    app = make_app(handler)
    async with anyio.create_task_group() as group:
        exchange = await Client(app, group).start("/handler")
        assert jobs[0].cancel()
        await wait_all_tasks_blocked()
        assert (events, jobs[0].state) == (["start 1", "start 11"], JobState.RUNNING)
        work.gate(11).set()
        await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()  # the first may return before the runner's end is seen
        assert events[2:] == ["end 11", "start 2"]
        for n in (2, 12):
            work.gate(n).set()
    assert [job.state for job in jobs] == [JobState.CANCELLED, JobState.SUCCEEDED]
    assert exchange.error is None
    assert log == [
        "WARNING test_cancel_running.<locals>.slow 1-… in the default lane (GET /handler) was cancelled"
    ]


async def test_cancel_that_is_swallowed(events: list[Any]) -> None:
    """A task that swallows its cancellation has succeeded; the next one is not cancelled."""

    async def stubborn() -> str:
        with contextlib.suppress(BaseException):
            await anyio.sleep_forever()
        return "stubborn"

    async def two(request: Request) -> Response:
        tasks = BackgroundTasks()
        jobs.extend([tasks.add_task(stubborn), tasks.add_task(anyio.sleep, 0)])
        return Response(background=tasks)

    jobs: list[Job[Any]] = []
    app = make_app(two)
    async with anyio.create_task_group() as group:
        await Client(app, group).start("/two")
        assert jobs[0].cancel()
    assert [job.state for job in jobs] == [JobState.SUCCEEDED] * 2
    assert jobs[0].result() == "stubborn"


async def test_cancel_itself(events: list[Any]) -> None:
    """A task that cancels itself is cancelled at its next wait; one that ends before has succeeded."""
    jobs: dict[str, Job[Any]] = {}

    async def waits() -> None:
        events.append(jobs["waits"].cancel())
        await anyio.sleep_forever()

    async def ends() -> None:
        events.append(jobs["ends"].cancel())

    async with SerialExecutor(drain_timeout=2) as executor:
        jobs["waits"] = executor.submit_nowait(waits)
        jobs["ends"] = executor.submit_nowait(ends)
        executor.submit_nowait(anyio.sleep, 0)
    assert events == [True, True]
    assert {name: job.state for name, job in jobs.items()} == {
        "waits": JobState.CANCELLED,
        "ends": JobState.SUCCEEDED,
    }


async def test_cancel_in_thread(events: list[Any]) -> None:
    """A task that runs in a thread cannot be cancelled: `cancel` says so."""
    work = Work(events)
    async with SerialExecutor(drain_timeout=2) as executor:
        job = executor.submit_nowait(work.thread_gated, 0)
        while not events:
            await anyio.sleep(0)
        assert not job.cancel()
        work.thread_gate(0).set()
        assert await job == 0


async def test_cancel_pending(events: list[Any]) -> None:
    """A task that is cancelled before its object is awaited does not run, however often that is awaited."""
    tasks = BackgroundTasks()
    jobs = [tasks.add_task(events.append, n) for n in range(2)]
    assert jobs[0].cancel()
    assert not jobs[0].cancel()
    await tasks()
    await tasks()
    assert events == [1, 1]
    assert not jobs[1].cancel()

    async def outer() -> None:
        inner = BackgroundTasks()
        inner.add_task(events.append, 2).cancel()
        inner.add_task(events.append, 3)
        await inner()

    async with SerialExecutor() as executor:
        await executor.submit_nowait(outer)
    assert events == [1, 1, 3]


async def test_cancel_inline(events: list[Any]) -> None:
    """A task that runs inside another one is not cancelled by itself."""
    jobs: list[Job[Any]] = []

    async def inside() -> None:
        events.append(jobs[0].cancel())

    async def outer() -> None:
        inner = BackgroundTasks()
        jobs.append(inner.add_task(inside))
        await inner()

    async with SerialExecutor() as executor:
        await executor.submit_nowait(outer)
    assert events == [False]
    assert jobs[0].state is JobState.SUCCEEDED


async def test_keep_latest(events: list[Any]) -> None:
    """`keep="latest"`: a newer task replaces a waiting older one of its function, which is `SUPERSEDED`."""
    work = Work(events)
    async with SerialExecutor(drain_timeout=2) as executor:
        lane = executor.lane("a", keep="latest")
        jobs = [lane.submit_nowait(work.gated, 0)]
        await wait_all_tasks_blocked()
        jobs += [lane.submit_nowait(work.gated, n) for n in (1, 2)]
        other = lane.submit_nowait(work.quick, 3)
        jobs.append(lane.submit_nowait(work.gated, 4))
        await wait_all_tasks_blocked()
        assert [job.state for job in jobs] == [
            JobState.RUNNING,
            JobState.SUPERSEDED,
            JobState.SUPERSEDED,
            JobState.QUEUED,
        ]
        kept = executor.lane("a").submit_nowait(work.quick, 5)
        for n in (0, 4):
            work.gate(n).set()
        assert await other == 3
        assert await kept == 5
        with pytest.raises(JobNoResult, match="it was superseded"):
            await jobs[1]
    assert events == ["start 0", "end 0", 3, "start 4", "end 4", 5]
    assert executor._runner.scheduler.lanes.by_key == {}


async def test_keep_latest_of_requests(events: list[Any], log: Log) -> None:
    """A task replaces older ones when it is ready: one whose request fails replaces nothing."""
    respond = {name: anyio.Event() for name in "ab"}
    jobs: dict[str, Job[Any]] = {}

    async def handler(request: Request) -> Response:
        name = request.headers["name"]
        tasks = BackgroundTasks()
        jobs[name] = tasks.lane("game", keep="latest").add_task(events.append, name)
        if name == "fails":
            raise ValueError
        if name in respond:
            await respond[name].wait()
        return Response(background=tasks)

    def ask(client: Client, name: str) -> Any:
        return client.start("/handler", headers=[(b"name", name.encode())])

    app = make_app(handler)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        executor_of_app = await _executor(app)
        executor_of_app.lane("game").pause()
        exchanges: list[Exchange] = [await ask(client, name) for name in ("a", "b", "first", "fails")]
        assert jobs["first"].state is JobState.QUEUED
        respond["b"].set()
        await wait_all_tasks_blocked()
        assert jobs["b"].state is JobState.SUPERSEDED  # "first" is behind it in the queue
        exchanges.append(await ask(client, "last"))
        assert [jobs[name].state for name in ("first", "last")] == [JobState.SUPERSEDED, JobState.QUEUED]
        executor_of_app.lane("game").resume()
        await wait_all_tasks_blocked()
        assert events == []  # "a" holds the head
        respond["a"].set()
    assert events == ["last"]
    assert [type(exchange.error) for exchange in exchanges] == [type(None)] * 3 + [ValueError, type(None)]


async def test_keep_latest_unhashable(events: list[Any]) -> None:
    """A function that cannot be hashed is told from others by being the same object."""

    class Unhashable(list[int]):
        def __call__(self, n: int) -> None:
            events.append((len(self), n))

    one, two = Unhashable([1]), Unhashable([1, 2])
    async with SerialExecutor(drain_timeout=2) as executor:
        lane = executor.lane("a", keep="latest")
        lane.pause()
        for n, function in enumerate((one, two, one)):
            lane.submit_nowait(function, n)
        lane.resume()
    assert events == [(2, 1), (1, 2)]


async def test_statistics(events: list[Any]) -> None:
    """`statistics()` is a frozen snapshot: what runs, how many wait, what the head waits for, how long."""
    work = Work(events)
    respond = anyio.Event()

    async def holds(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.lane("held").add_task(work.quick, 1)
        await respond.wait()
        return Response(background=tasks)

    app = make_app(holds, max_lanes_running=1)
    async with anyio.create_task_group() as group:
        await Client(app, group).start("/holds")
        executor = executor_of(app)
        executor.lane("held").submit_nowait(work.quick, 2)
        executor.submit_nowait(work.gated, 3)
        await wait_all_tasks_blocked()
        executor.submit_nowait(work.quick, 4)
        executor.lane("slot").submit_nowait(work.quick, 5)
        await wait_all_tasks_blocked()
        statistics = executor.statistics()
        lanes = statistics.lanes
        assert {key: lane.blocked_by for key, lane in lanes.items()} == {
            None: BlockedBy.RUNNING,
            "held": BlockedBy.HELD,
            "slot": BlockedBy.SLOT,
        }
        assert (statistics.running, statistics.waiting, statistics.unfinished) == (1, 4, 5)
        assert statistics.state == "open"
        assert (lanes[None].running, lanes[None].waiting) == ("Work.gated", 1)
        assert lanes[None].head == "Work.quick"
        assert (lanes["held"].held_by, lanes["held"].waiting) == ("GET /holds", 2)
        assert lanes["slot"].running_for is None
        for seconds in (lanes[None].running_for, lanes["held"].head_age):
            assert seconds is not None
            assert seconds >= 0
        with pytest.raises(AttributeError):
            statistics.waiting = 0  # type: ignore[misc]
        with pytest.raises(AttributeError):
            statistics.lanes = {}  # type: ignore[misc]
        work.gate(3).set()
        respond.set()
    await wait_all_tasks_blocked()
    assert executor.statistics().lanes == {}


async def test_starting_is_waiting_for_nothing(events: list[Any]) -> None:
    """A head that starts in the loop's next turn waits for nothing."""
    async with SerialExecutor() as executor:
        executor.submit_nowait(events.append, 1)
        assert executor.statistics().lanes[None].blocked_by is BlockedBy.NOTHING


async def test_operations_in_foreign_threads() -> None:
    """Lane operations and `statistics` in a thread of nobody raise RuntimeError, with the line to write."""
    errors: list[str] = []

    def use() -> None:
        lane = executor.lane("a")
        calls = [lane.pause, lane.resume, lane.peek, lane.skip_head, lane.retry_head, lane.clear]
        for call in (*calls, executor.statistics):
            with pytest.raises(RuntimeError, match=r"loop\.call_soon_threadsafe\(executor\.") as caught:
                call()
            errors.append(str(caught.value))

    async with SerialExecutor() as executor:
        executor.lane("a").pause()
        job = executor.lane("a").submit_nowait(print)
        thread = threading.Thread(target=use)
        thread.start()
        thread.join(10)
        assert len(errors) == 7
        assert job.state is JobState.QUEUED


async def test_paused_while_closing(events: list[Any], log: Log) -> None:
    """A lane that is paused while the executor closes keeps nothing: what waits in it is dropped."""
    work = Work(events)
    executor = SerialExecutor()
    async with anyio.create_task_group() as group:
        executor.lane("a").submit_nowait(work.gated, 0)
        executor.lane("a").submit_nowait(work.quick, 1)
        await wait_all_tasks_blocked()
        group.start_soon(executor.aclose)
        await wait_all_tasks_blocked()
        executor.lane("a").pause()
        await wait_all_tasks_blocked()
        work.gate(0).set()
    assert events == ["start 0", "end 0"]
    assert log == ["WARNING shutdown: a paused or stopped lane dropped 1 task: Work.quick 2-… in lane 'a'"]


@pytest.mark.parametrize("how", ["pause", "stop"])
async def test_close_drops_what_is_kept_back(how: str, events: list[Any], log: Log) -> None:
    """Closing drops what stands behind a paused or stopped head, by name, and runs the rest."""
    work, flaky = Work(events), Flaky(events, failures=how == "stop")
    async with SerialExecutor() as executor:
        lane = executor.lane("a", after_failure="stop")
        if how == "pause":
            lane.pause()
        lane.submit_nowait(flaky.run, 1)
        lane.submit_nowait(work.quick, 2)
        await wait_all_tasks_blocked()
        executor.submit_nowait(work.quick, 3)
    assert events == ([3] if how == "pause" else [1, 3])
    kept = "2 tasks: Flaky.run 1-…, Work.quick 2-…" if how == "pause" else "1 task: Work.quick 2-…"
    assert log[-1] == (
        "WARNING shutdown: dropped, as open requests or paused or stopped lanes held them: "
        f"{kept} in lane 'a'"
    )
    assert executor.statistics().unfinished == 0
