"""A bounded queue: `QueueFull`, 503, and `submit` that waits for capacity in a fair order."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from fifo_background import (
    BackgroundTask,
    BackgroundTasks,
    ExecutorClosed,
    Job,
    JobState,
    OrderedBackgroundMiddleware,
    QueueFull,
    SerialExecutor,
    executor_of,
)
from fifo_background._core.invariants import check
from fifo_background._refused import refusal_in
from tests.support.apps import Work, app_of, check_idle, make_app
from tests.support.asgi import Client, get
from tests.support.log import Log


def check_nothing_is_left(executor: SerialExecutor) -> None:
    statistics = executor.statistics()
    assert (statistics.waiting, statistics.unfinished, dict(statistics.lanes)) == (0, 0, {})
    scheduler = executor._runner.scheduler
    assert scheduler.lanes.by_key == {}
    assert (list(scheduler.capacity.wanted), scheduler.capacity.sought) == ([], 0)
    check(scheduler)


async def test_queue_full(events: list[Any]) -> None:
    """`max_waiting` tasks may wait beside the running one; one more raises `QueueFull`."""
    work = Work(events)
    async with SerialExecutor(max_waiting=2, drain_timeout=2) as executor:
        executor.submit_nowait(work.gated, 0)
        await wait_all_tasks_blocked()
        executor.submit_nowait(work.quick, 1)
        executor.lane("a").pause()
        executor.lane("a").submit_nowait(work.quick, 2)
        with pytest.raises(QueueFull, match=r"Work\.quick was refused: 2 tasks wait already") as caught:
            executor.submit_nowait(work.quick, 3)
        assert isinstance(caught.value, asyncio.QueueFull)
        with pytest.raises(QueueFull):
            executor.lane("b").submit_nowait(work.quick, 3)
        assert list(executor.statistics().lanes) == [None, "a"]
        executor.lane("a").resume()
        work.gate(0).set()
    assert [event for event in events if event != 2] == ["start 0", "end 0", 1]
    assert 2 in events
    check_nothing_is_left(executor)


@pytest.mark.parametrize("sync", [False, True])
async def test_running_task_does_not_count(sync: bool, events: list[Any]) -> None:
    """A running task, sync or async, does not count as waiting: its start admits a `submit` that waits."""
    work = Work(events)
    async with SerialExecutor(max_waiting=1, drain_timeout=2) as executor:
        lane = executor.lane("a", max_waiting=1)
        lane.pause()
        lane.submit_nowait(work.thread_gated if sync else work.gated, 0)
        async with anyio.create_task_group() as group:
            group.start_soon(lane.submit, work.quick, 1)
            await wait_all_tasks_blocked()
            lane.resume()
            try:
                with anyio.fail_after(2):
                    while not events or executor.statistics().waiting == 0:
                        await anyio.sleep(0)
                assert events == ["start 0"]
                with pytest.raises(QueueFull, match="1 task waits already"):
                    lane.submit_nowait(work.quick, 2)
            finally:
                work.gate(0).set()
                work.thread_gate(0).set()
    assert events == ["start 0", "end 0", 1]


@pytest.mark.virtual_clock
@pytest.mark.parametrize("outside", ["it has not responded", "its position was lost"])
async def test_lane_limit_counts_what_is_not_in_the_queue(outside: str, events: list[Any]) -> None:
    """A task without a limit counts in its lane also while it waits outside of the queue."""
    may_respond = anyio.Event()

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.lane("a").add_task(work.quick, 1)
        tasks.add_task(work.quick, 0)
        await may_respond.wait()
        await respond()
        await tasks()

    work = Work(events)
    responded = outside == "it has not responded"
    app = app_of(handle, order="responded" if responded else "added", hold_timeout=1)
    async with anyio.create_task_group() as group:
        exchange = await Client(app, group).start()
        for n in (2, 3):  # the lane is idle in between
            await app.executor.lane("a").submit_nowait(work.quick, n)
        with pytest.raises(QueueFull):
            app.executor.lane("a", max_waiting=1).submit_nowait(work.quick, "full")
        may_respond.set()
        await exchange.ended.wait()
        job = app.executor.lane("a", max_waiting=1).submit_nowait(work.quick, 4)
        await job
    assert sorted(events[:2]) == [2, 3]
    assert sorted(events[2:4]) == [0, 1]
    assert events[4:] == [4]
    check_idle(app.executor)
    assert app.executor._runner.scheduler.lanes.by_key == {}, "nothing is left behind"


async def test_lane_limit(events: list[Any]) -> None:
    """A lane's `max_waiting` counts what waits in that lane."""
    work = Work(events)
    async with SerialExecutor(drain_timeout=2) as executor:
        lane = executor.lane("a", max_waiting=1)
        executor.lane("a").submit_nowait(work.gated, 0)
        await wait_all_tasks_blocked()
        lane.submit_nowait(work.quick, 1)
        with pytest.raises(QueueFull):
            lane.submit_nowait(work.quick, 2)
        executor.lane("b", max_waiting=1).submit_nowait(work.quick, 3)
        executor.lane("a").submit_nowait(work.quick, 4)
        work.gate(0).set()
        await executor.join()
    assert sorted(events[1:], key=str) == [1, 3, 4, "end 0"]


async def test_limits_may_change(events: list[Any]) -> None:
    """A lane's `max_waiting` may change while it is busy: nothing stops, and nothing runs twice."""
    work = Work(events)
    async with SerialExecutor(drain_timeout=2) as executor:
        executor.submit_nowait(work.gated, 0)
        await wait_all_tasks_blocked()
        async with anyio.create_task_group() as group:
            executor.lane(None, max_waiting=2).submit_nowait(work.quick, 1)
            with pytest.raises(QueueFull):
                executor.lane(None, max_waiting=1).submit_nowait(work.quick, "full")
            executor.lane(None, max_waiting=2).submit_nowait(work.quick, 2)
            group.start_soon(executor.lane(None, max_waiting=1).submit, work.quick, 3)
            await wait_all_tasks_blocked()
            with pytest.raises(QueueFull):  # no late arrival overtakes who waits, whatever its limit
                executor.lane(None, max_waiting=100).submit_nowait(work.quick, "overtaken")
            work.gate(0).set()
    assert events == ["start 0", "end 0", 1, 2, 3]


async def test_answered_with_503(events: list[Any], log: Log) -> None:
    """A `QueueFull` that nobody handles is answered with 503 and `Retry-After`."""
    work = Work(events)

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(work.gated, 0)
        tasks.add_task(work.quick, 1)
        return Response(background=tasks)

    async def handled(request: Request) -> Response:
        with pytest.raises(QueueFull):
            BackgroundTasks().add_task(work.quick, 2)
        return PlainTextResponse("come back later")

    async def too_late(request: Request) -> Response:
        async def body() -> Any:
            yield b"begun"
            BackgroundTasks().add_task(work.quick, 3)

        return StreamingResponse(body())

    app = make_app(handler, handled, too_late, max_waiting=2)
    async with anyio.create_task_group() as group:
        await Client(app, group).start("/handler")
        executor_of(app).submit_nowait(work.quick, 4)
        refused = await get(app, "/handler")
        assert refused.error is None
        assert refused.status == 503
        assert dict(refused.messages[0]["headers"])[b"retry-after"] == b"1"
        assert refused.messages[1]["body"] == b"Service Unavailable"
        assert (await get(app, "/handled")).messages[1]["body"] == b"come back later"
        late = await get(app, "/too_late")
        assert refusal_in(late.error or Exception()) is not None  # some versions of Starlette wrap it
        assert late.status == 200
        work.gate(0).set()
    assert events == ["start 0", "end 0", 1, 4]
    assert executor_of(app).statistics().unfinished == 0
    assert log == []


async def test_wrapped_and_answered_with_503(events: list[Any]) -> None:
    """A `QueueFull` that a middleware's task group wraps is answered with 503 as well."""
    work = Work(events)

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        async with anyio.create_task_group():
            tasks = BackgroundTasks()
            tasks.add_task(work.quick, 1)
            tasks.add_task(work.quick, 2)

    app = OrderedBackgroundMiddleware(inner, max_waiting=1)
    refused = await get(app)
    assert (refused.error, refused.status) == (None, 503)
    assert events == []


async def test_dropped_with_503(events: list[Any], log: Log) -> None:
    """What a refused request had added before is dropped by name."""

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, 1)
        return Response(background=tasks.add_task(events.append, 2))  # type: ignore[arg-type]

    app = make_app(handler, max_waiting=1)
    assert (await get(app, "/handler")).status == 503
    (record,) = log
    assert record.startswith(
        "WARNING GET /handler ended without running 1 task: list.append 1-… in the default lane: it raised Q"
    )
    assert (events, executor_of(app).statistics().waiting) == ([], 0)


async def test_awaited_tasks_are_never_refused(events: list[Any]) -> None:
    """Tasks that did not come through `add_task` are accepted after the response, whatever `max_waiting`."""

    async def handler(request: Request) -> Response:
        return Response(background=BackgroundTasks([BackgroundTask(events.append, n) for n in range(3)]))

    exchange = await get(make_app(handler, max_waiting=1), "/handler")
    assert exchange.error is None
    assert events == [0, 1, 2]


@pytest.mark.parametrize("lane_limit", [False, True])
async def test_submit_waits_in_order(lane_limit: bool, events: list[Any]) -> None:
    """`submit` waits for capacity, first come, first served; a late `submit_nowait` does not overtake."""
    work = Work(events)
    async with SerialExecutor(max_waiting=None if lane_limit else 1, drain_timeout=2) as executor:
        lane = executor.lane("a", max_waiting=1) if lane_limit else executor.lane("a")

        async def submit(n: int) -> None:
            job = await lane.submit(work.gated, n)
            events.append(f"submitted {n}")
            await job

        async with anyio.create_task_group() as group:
            for n in range(4):
                group.start_soon(submit, n)
                await wait_all_tasks_blocked()
            assert sorted(events) == ["start 0", "submitted 0", "submitted 1"]
            for n in range(3):
                with pytest.raises(QueueFull):
                    lane.submit_nowait(work.quick, 9)
                work.gate(n).set()
                await wait_all_tasks_blocked()
            work.gate(3).set()
    assert [event for event in events if event.startswith("sta")] == [f"start {n}" for n in range(4)]
    assert [event for event in events if event.startswith("sub")] == [f"submitted {n}" for n in range(4)]
    check_nothing_is_left(executor)


async def test_a_full_lane_does_not_block_others(events: list[Any]) -> None:
    """A `submit` that waits for capacity in one lane does not keep out one for another lane."""
    work = Work(events)
    async with SerialExecutor(max_waiting=3, drain_timeout=2) as executor, anyio.create_task_group() as group:
        lane = executor.lane("a", max_waiting=1)
        lane.pause()
        lane.submit_nowait(work.quick, 0)
        group.start_soon(lane.submit, work.quick, 1)
        await wait_all_tasks_blocked()
        assert await (await executor.submit(work.quick, 2)) == 2
        assert await executor.submit_nowait(work.quick, 3) == 3
        lane.resume()
    assert events == [2, 3, 0, 1]


@pytest.mark.parametrize("lane_limit", [False, True])
async def test_cancelled_submit(lane_limit: bool, events: list[Any]) -> None:
    """A `submit` that is cancelled while it waits queues nothing; the one behind it moves up."""
    work = Work(events)
    async with SerialExecutor(max_waiting=None if lane_limit else 1, drain_timeout=2) as executor:
        lane = executor.lane("a", max_waiting=1 if lane_limit else None)
        lane.submit_nowait(work.gated, 0)
        await wait_all_tasks_blocked()
        lane.submit_nowait(work.quick, 1)
        scope = anyio.CancelScope()

        async def give_up() -> None:
            with scope:
                await lane.submit(work.quick, 2)

        async with anyio.create_task_group() as group:
            group.start_soon(give_up)
            await wait_all_tasks_blocked()
            group.start_soon(lane.submit, work.quick, 3)
            await wait_all_tasks_blocked()
            scope.cancel()
            await wait_all_tasks_blocked()
            work.gate(0).set()
    assert events == ["start 0", "end 0", 1, 3]
    check_nothing_is_left(executor)


async def test_cancelled_as_capacity_came(events: list[Any]) -> None:
    """A `submit` that is cancelled at the moment at which it is admitted takes its task out again."""
    work = Work(events)
    async with SerialExecutor(max_waiting=1, drain_timeout=2) as executor:
        executor.submit_nowait(work.gated, 0)
        await wait_all_tasks_blocked()
        second = executor.submit_nowait(work.quick, 1)
        scope = anyio.CancelScope()
        gone: list[Job[Any]] = []

        async def give_up() -> None:
            with scope:
                gone.append(await executor.submit(work.quick, 2))

        async with anyio.create_task_group() as group:
            group.start_soon(give_up)
            await wait_all_tasks_blocked()
            second.cancel()
            executor.statistics()  # looks at what others have done: admits the submit
            assert executor.statistics().waiting == 1
            scope.cancel()
            await wait_all_tasks_blocked()
            assert executor.statistics().waiting == 0
            work.gate(0).set()
    assert (events, gone) == (["start 0", "end 0"], [])


async def test_cancelled_before(events: list[Any]) -> None:
    """A `submit` in a cancelled scope submits nothing."""
    async with SerialExecutor(drain_timeout=2) as executor:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await executor.submit(Work(events).quick, 1)
    assert events == []


@pytest.mark.parametrize("lane_limit", [False, True])
async def test_closed_while_waiting_for_capacity(lane_limit: bool, events: list[Any]) -> None:
    """A `submit` that waits for capacity when the executor closes raises `ExecutorClosed`."""
    work = Work(events)
    errors: list[BaseException] = []
    executor = SerialExecutor(max_waiting=None if lane_limit else 1)
    lane = executor.lane("a", max_waiting=1 if lane_limit else None)

    async def submit(n: int) -> None:
        try:
            await lane.submit(work.quick, n)
        except ExecutorClosed as error:
            errors.append(error)

    async with anyio.create_task_group() as group, executor:
        lane.submit_nowait(work.gated, 0)
        await wait_all_tasks_blocked()
        lane.submit_nowait(work.quick, 1)
        group.start_soon(submit, 2)
        group.start_soon(submit, 3)
        gone = anyio.CancelScope()

        async def give_up() -> None:
            with gone:
                await lane.submit(work.quick, 4)

        group.start_soon(give_up)
        await wait_all_tasks_blocked()
        gone.cancel()
        await wait_all_tasks_blocked()
        work.gate(0).set()
    assert len(errors) == 2
    assert events == ["start 0", "end 0", 1]
    check_nothing_is_left(executor)


async def test_options_of_an_object(events: list[Any]) -> None:
    """`tasks.lane(..., max_waiting=1)` bounds the lane for requests, too."""
    work = Work(events)
    jobs: list[Job[Any]] = []

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        jobs.append(tasks.lane("a", max_waiting=1).add_task(work.gated, len(jobs)))
        return Response(background=tasks)

    app = make_app(handler)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        for status in (200, 200, 503):
            assert (await client.start("/handler")).status == status
        for n in range(2):
            work.gate(n).set()
    assert [job.state for job in jobs] == [JobState.SUCCEEDED] * 2


async def test_keep_latest_counts_as_one() -> None:
    """With `keep="latest"` all waiting tasks of one function in one lane count as one, in both limits."""
    for limits in ({"max_waiting": 1}, {"max_waiting": None}):
        async with SerialExecutor(**limits) as executor:
            lane = executor.lane("a", keep="latest", max_waiting=None if limits["max_waiting"] else 1)
            lane.pause()
            jobs = [lane.submit_nowait(anyio.sleep, 0) for _ in range(3)]
            jobs += [await lane.submit(anyio.sleep, 0) for _ in range(3)]
            assert executor.statistics().waiting == 1
            with pytest.raises(QueueFull):
                lane.submit_nowait(print)
            lane.resume()
            await executor.join()
            check_nothing_is_left(executor)
        states = [job.state for job in jobs]
        assert states == [JobState.SUPERSEDED] * 5 + [JobState.SUCCEEDED]


async def test_many_that_replace_one_another() -> None:
    """Of many `submit` that wait and replace one another, the capacity for one admits all, without end."""
    gate = anyio.Event()
    jobs: list[Job[Any]] = []

    async def work() -> None:
        await gate.wait()

    async def submit() -> None:
        jobs.append(await executor.lane("a", keep="latest").submit(work))

    async with SerialExecutor(max_waiting=2, drain_timeout=1) as executor:
        executor.lane("a").submit_nowait(work)
        await wait_all_tasks_blocked()
        executor.lane("b").pause()
        for _ in range(2):
            executor.lane("b").submit_nowait(work)
        async with anyio.create_task_group() as group:
            for _ in range(400):
                group.start_soon(submit)
            await wait_all_tasks_blocked()
            assert jobs == []
            executor.lane("b").skip_head()
            await wait_all_tasks_blocked()
            assert len(jobs) == 400
            executor.lane("b").clear()
            gate.set()
    states = [job.state for job in jobs]
    assert (states.count(JobState.SUPERSEDED), states.count(JobState.SUCCEEDED)) == (399, 1)


async def test_cancelled_submit_lets_others_pass() -> None:
    """A cancelled `submit` does not stand in the way of others."""
    async with SerialExecutor() as executor:
        executor.lane("a").pause()
        lane = executor.lane("a", max_waiting=1)
        lane.submit_nowait(print)
        with anyio.move_on_after(0):
            await lane.submit(print)
        async with anyio.create_task_group() as group:
            group.start_soon(lane.submit, print)
            await wait_all_tasks_blocked()
            with pytest.raises(QueueFull):
                executor.lane("a", max_waiting=10).submit_nowait(print)
            group.cancel_scope.cancel()
        executor.lane("a", max_waiting=10).submit_nowait(print)
        assert executor.statistics().waiting == 2
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
            assert executor.statistics().waiting == 0
            lane.resume()
            await lane.submit(append, 2)

    asyncio.run(main())
    assert events == ([2] if paused else [1, 2])


async def test_retry_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """`QueueFull.retry_after` is what the client is told."""
    monkeypatch.setattr(QueueFull, "retry_after", 7)

    async def handle(path: str, respond: Any) -> None:
        BackgroundTasks().add_task(print)
        BackgroundTasks().add_task(print)

    exchange = await get(app_of(handle, max_waiting=1))
    assert exchange.status == 503
    assert (b"retry-after", b"7") in exchange.messages[0]["headers"]


async def test_counted_until_it_ends(events: list[Any]) -> None:
    """A task that waits in a lane which was idle meanwhile is counted, and counted out, once."""
    respond_now = {path: anyio.Event() for path in ("/0", "/1", "/2", "/3")}

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.lane("k", keep="latest").add_task(events.append, path)
        await respond_now[path].wait()
        await respond()
        await tasks()

    app = app_of(handle, order="responded", max_waiting=2)
    async with anyio.create_task_group() as group:
        for path, event in respond_now.items():
            exchange = await Client(app, group).start(path)
            await app.executor.lane("k").submit_nowait(int)  # the lane is retired after it
            await wait_all_tasks_blocked()
            app.executor.lane("k").pause()  # a new lane of that key
            event.set()
            await wait_all_tasks_blocked()
            app.executor.lane("k").resume()
            await exchange.ended.wait()
            assert exchange.error is None
    await wait_all_tasks_blocked()
    assert events == list(respond_now)
    assert app.executor._runner.scheduler.capacity._counted == {}


@pytest.mark.parametrize("starts", ["has run", "starts in a thread"])
def test_submit_that_is_cancelled_as_its_task_starts(starts: str) -> None:
    """A `submit` that is cancelled when its task has been started already leaves that as it is."""
    events: list[Any] = []

    async def main() -> None:
        gate = asyncio.Event()

        async def quick(n: int) -> None:
            events.append(n)
            if n == 2:
                submit.cancel()

        # no drain: "who has claimed it" never ends it
        async with SerialExecutor(max_waiting=1, drain_timeout=0.0) as executor:
            executor.submit_nowait(gate.wait)
            await asyncio.sleep(0)
            executor.submit_nowait(quick, 1)
            submit = asyncio.ensure_future(executor.submit(quick, 2))
            await asyncio.sleep(0)
            (wanted,) = executor._runner.scheduler.capacity.wanted
            if starts == "has run":
                gate.set()
            else:
                executor.lane(None).skip_head()
                executor.statistics()  # admits the submit
                assert wanted.job in wanted.job._claims
                wanted.job._claims = StartedMeanwhile(wanted.job._claims)
                submit.cancel()
            with pytest.raises(asyncio.CancelledError):
                await submit
            gate.set()
            if starts == "has run":
                await wanted.job.wait()
                check_nothing_is_left(executor)
            else:
                assert wanted.job._own_state is None, "who has claimed it decides"
                wanted.job._own_state = JobState.RUNNING

    asyncio.run(main())
    assert events == ([1, 2] if starts == "has run" else [])


class StartedMeanwhile(set[Job[Any]]):
    """In place of a job's `claims`: a thread claims it just before somebody else does."""

    def remove(self, job: Job[Any]) -> None:
        super().remove(job)
        super().remove(job)  # KeyError
