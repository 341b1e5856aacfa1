"""Tasks inside tasks: objects as entries, objects that tasks await, lists that grow."""

from __future__ import annotations

from typing import Any, cast

import anyio
import anyio.from_thread
import pytest
import starlette.background
from anyio import wait_all_tasks_blocked
from starlette.background import BackgroundTask as StarletteTask
from starlette.requests import Request
from starlette.responses import Response

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
    executor_of,
)
from tests.support.apps import ClaimedMeanwhile, Work, app_of, check_idle, make_app
from tests.support.asgi import Client, get
from tests.support.log import Log


@pytest.mark.parametrize("in_list", [True, False])
async def test_nested(in_list: bool, events: list[Any]) -> None:
    """Tasks inside tasks: one of our objects in a running task runs inline, and never waits for it."""
    inner_jobs: list[Job[Any]] = []

    async def outer_task() -> None:
        events.append("outer")
        inner = BackgroundTasks([StarletteTask(events.append, "inner 0")])
        inner_jobs.append(inner.add_task(events.append, "inner 1"))
        inner_jobs.append(inner.add_task(Work(events).quick, 2))
        await inner()
        await BackgroundTask(events.append, "inner single")()

    async def handler(request: Request) -> Response:
        if in_list:
            inner = BackgroundTasks([BackgroundTask(events.append, "inner 0")])
            inner_jobs.append(inner.add_task(events.append, "inner 1"))
            tasks = BackgroundTasks([StarletteTask(events.append, "outer"), inner])
        else:
            tasks = BackgroundTasks()
            tasks.add_task(outer_task)
        tasks.add_task(events.append, "last")
        return Response(background=tasks)

    app = make_app(handler)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        for _ in range(2):
            await client.start("/handler")
    one = ["outer", "inner 0", "inner 1", *([] if in_list else [2, "inner single"]), "last"]
    assert events == one * 2
    assert {job.state for job in inner_jobs} == {JobState.SUCCEEDED}
    check_idle(executor_of(app))


async def test_nested_failure(events: list[Any], log: Log) -> None:
    """A failure inside a nested object fails the task that awaits it, and skips the rest of both lists."""
    jobs: list[Job[Any]] = []

    def fail() -> None:
        jobs.append(inner.add_task(events.append, "added"))
        raise ValueError("inner")

    inner = BackgroundTasks()

    async def handler(request: Request) -> Response:
        nonlocal inner
        inner = BackgroundTasks()
        jobs.append(inner.add_task(fail))
        jobs.append(inner.add_task(events.append, 1))
        tasks = BackgroundTasks([inner])
        jobs.append(tasks.add_task(events.append, 2))
        return Response(background=tasks)

    app = make_app(handler)
    exchange = await get(app, "/handler")
    assert isinstance(exchange.error, ValueError)
    assert events == []
    assert [job.state for job in jobs] == [JobState.FAILED] + [JobState.SKIPPED] * 3
    assert log == [
        "WARNING OrderedBackgroundTasks.__call__ failed (GET /handler); "
        "skipped after it: 3 tasks: list.append 3-…, list.append 2-…, list.append in the default lane"
    ]
    check_idle(executor_of(app))


@pytest.mark.parametrize("added", [True, False])
async def test_nested_outlives_its_request(added: bool, events: list[Any], log: Log) -> None:
    """The tasks of a nested object are accepted with the entry: they run, although the request has ended."""
    jobs: list[Job[Any]] = []
    gate = anyio.Event()

    async def handler(request: Request) -> Response:
        innermost = BackgroundTasks()
        jobs.append(innermost.add_task(events.append, 2))
        inner = BackgroundTasks()
        jobs.append(inner.add_task(events.append, 0))
        jobs.append(inner.lane("other").add_task(events.append, 1))
        inner.tasks.append(innermost)
        tasks = BackgroundTasks()
        tasks.add_task(gate.wait)
        if added:
            tasks.add_task(inner)
        else:
            tasks.tasks.append(inner)
        return Response(background=tasks)

    app = make_app(handler, wait=False)
    await get(app, "/handler")
    await wait_all_tasks_blocked()
    assert {job.state for job in jobs} == {JobState.PENDING}
    executor = executor_of(app)
    await executor.lane("other").submit_nowait(events.append, "not held up")
    gate.set()
    assert await jobs[0].wait() is JobState.SUCCEEDED
    await executor.join()
    assert events == ["not held up", 0, 1, 2]
    assert {job.state for job in jobs} == {JobState.SUCCEEDED}
    assert log == []
    check_idle(executor)


async def test_nested_awaited_by_its_detached_request(events: list[Any]) -> None:
    """A request that does not wait for its tasks may await the handle of one in a nested object."""

    async def handler(request: Request) -> Response:
        inner = BackgroundTasks()
        job = inner.add_task(events.append, 0)
        BackgroundTasks().add_task(events.append, "never awaited")
        response = Response(background=BackgroundTasks([inner]))

        async def respond(scope: Any, receive: Any, send: Any) -> None:
            await response(scope, receive, send)
            await job
            events.append("waited")

        answer: Any = respond
        return cast(Response, answer)

    assert (await get(make_app(handler, wait=False), "/handler")).error is None
    assert events == [0, "waited"]


async def test_nested_runs_again(events: list[Any]) -> None:
    """The tasks inside an entry that was skipped run when the objects are awaited again."""
    kept: list[BackgroundTasks] = []

    async def handler(request: Request) -> Response:
        if not kept:
            inner, tasks = BackgroundTasks(), BackgroundTasks()
            inner.add_task(events.append, 0)
            tasks.add_task(fail)
            tasks.add_task(inner)
            kept.append(tasks)
        return Response(background=kept[0])

    def fail() -> None:
        del kept[0].tasks[0]
        raise ValueError

    app = make_app(handler)
    assert isinstance((await get(app, "/handler")).error, ValueError)
    assert events == []
    assert (await get(app, "/handler")).error is None
    assert events == [0]


@pytest.mark.parametrize("end", ["cancelled", "dropped", "emptied", "part"])
async def test_nested_never_runs(end: str, events: list[Any], log: Log) -> None:
    """A task that does not run inside its entry ends with it, and does not run anymore."""
    jobs: list[Job[Any]] = []
    gate = anyio.Event()

    async def handler(request: Request) -> Response:
        inner = BackgroundTasks()
        jobs.append(inner.add_task(events.append, 0))
        jobs.append(inner.add_task(events.append, 1))
        tasks = BackgroundTasks()
        tasks.add_task(gate.wait)
        if end == "emptied":
            tasks.add_task(inner.tasks.clear)
        elif end == "dropped":
            executor_of(request).lane(None).pause()
        jobs.append(tasks.add_task(inner))
        return Response(background=tasks)

    app = make_app(handler, wait=False)
    await get(app, "/handler")
    executor = executor_of(app)
    if end == "cancelled":
        assert jobs[2].cancel()
    elif end == "part":
        assert jobs[0].cancel()
    elif end == "dropped":
        await executor.aclose()
    gate.set()
    await executor.join()
    states = [job.state for job in jobs]
    expected: dict[str, tuple[list[JobState], list[Any]]] = {
        "cancelled": ([JobState.CANCELLED] * 3, []),
        "dropped": ([JobState.DROPPED] * 3, []),
        "emptied": ([JobState.DROPPED, JobState.DROPPED, JobState.SUCCEEDED], []),
        "part": ([JobState.CANCELLED, JobState.SUCCEEDED, JobState.SUCCEEDED], [1]),
    }
    assert (states, events) == expected[end]
    check_idle(executor)
    if end == "dropped":
        assert log == [
            "WARNING shutdown: dropped, as open requests or paused or stopped lanes held them: 2 tasks: "
            "Event.wait 3-…, OrderedBackgroundTasks.__call__ (list.append, list.append) 4-… "
            "in the default lane (GET /handler)"
        ]


async def test_nested_list_extended(events: list[Any]) -> None:
    """A task of a nested object may add to the nested list: that task also runs inline."""

    async def handler(request: Request) -> Response:
        inner = BackgroundTasks()
        inner.add_task(lambda: jobs.append(inner.add_task(events.append, "extended")))
        tasks = BackgroundTasks([inner])
        tasks.add_task(events.append, "last")
        return Response(background=tasks)

    jobs: list[Job[Any]] = []
    app = make_app(handler)
    await get(app, "/handler")
    assert events == ["extended", "last"]
    assert jobs[0].state is JobState.SUCCEEDED
    check_idle(executor_of(app))


@pytest.mark.parametrize("wait", [False, True])
async def test_nested_object_extends_itself(wait: bool, events: list[Any]) -> None:
    """An object that runs inside a task may get more tasks from there, also after its request."""

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


async def test_object_in_a_task_of_another_executor(events: list[Any]) -> None:
    """A task of another executor may await a request's object, and nothing is left in either executor."""

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        job = tasks.add_task(events.append, 1)
        await respond()
        await own.submit_nowait(tasks)
        assert job.state is JobState.SUCCEEDED

    app = app_of(handle)
    async with SerialExecutor() as own:
        assert (await get(app)).error is None
        check_idle(own)
        check_idle(app.executor)
        await app.executor.join()
    assert events == [1]


@pytest.mark.parametrize("timeout", [None, 5.0])
async def test_plain_list_as_an_entry(timeout: float | None, events: list[Any]) -> None:
    """One of Starlette's own lists as an entry runs inline, in that entry's position."""

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
    check_idle(app.executor)


@pytest.mark.parametrize("timeout", [None, 5.0])
async def test_entries_of_all_kinds(timeout: float | None, events: list[Any]) -> None:
    """An entry that is no plain task may fail like a task, and the lane goes on."""

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
    check_idle(app.executor)


async def test_nested_waits(events: list[Any]) -> None:
    """A nested task is a part of its entry, whatever lane it was added to: the entry cannot wait for it."""
    jobs: dict[str, Job[Any]] = {}

    async def waits(name: str) -> None:
        try:
            await jobs[name]
            events.append("ok")
        except WouldDeadlock as error:
            events.append("told" if "is a part of it" in str(error) else str(error))

    async def handle(path: str, respond: Any) -> None:
        inner, tasks = BackgroundTasks(), BackgroundTasks()
        tasks.add_task(gate.wait)
        inner.add_task(waits, "second")  # runs in the same job, before it
        jobs["second"] = inner.lane("k").add_task(events.append, "second")
        tasks.add_task(inner)
        tasks.lane("b").add_task(waits, "second")
        await respond()
        await tasks()

    gate = anyio.Event()
    app = app_of(handle)
    async with anyio.create_task_group() as group:
        await Client(app, group).start()
        app.executor.lane("k").submit_nowait(waits, "second")
        await wait_all_tasks_blocked()
        gate.set()
    await app.executor.join()
    assert events == ["told", "second", "ok", "ok"]
    check_idle(app.executor)
    await wait_all_tasks_blocked()
    assert not app.executor._runner.scheduler.lanes.by_key


async def test_nested_awaited_before_the_response(events: list[Any]) -> None:
    """A handler that has handed its tasks over cannot wait for a nested one before it has responded."""

    async def handle(path: str, respond: Any) -> None:
        inner, tasks = BackgroundTasks(), BackgroundTasks()
        first = inner.add_task(events.append, "first")
        tasks.add_task(inner)
        await tasks()
        for wait in (first.wait, first._result_when_ended):
            with anyio.fail_after(5), pytest.raises(WouldDeadlock):
                await wait()
        jobs.append(inner.add_task(events.append, "second"))  # belongs to the entry, too
        await respond()

    jobs: list[Job[Any]] = []
    app = app_of(handle)
    assert (await get(app)).error is None
    assert events == ["first", "second"]
    assert jobs[0].state is JobState.SUCCEEDED


@pytest.mark.parametrize("wait", [True, False])
async def test_nested_list_grows_before_it_runs(wait: bool, events: list[Any], log: Log) -> None:
    """A task that is added to a nested object runs inside the entry, whatever became of the request."""
    jobs: list[Job[Any]] = []
    gate, full = anyio.Event(), anyio.Event()

    async def handle(path: str, respond: Any) -> None:
        inner, tasks = BackgroundTasks(), BackgroundTasks()

        async def grows() -> None:
            await gate.wait()
            jobs.append(inner.add_task(events.append, "added"))
            jobs.append(inner.lane("k").add_task(events.append, "added, too"))
            with pytest.raises(QueueFull):
                executor.submit_nowait(events.append, "never")
            full.set()

        tasks.add_task(grows)
        inner.add_task(events.append, "first")
        tasks.add_task(inner)
        await respond()
        await tasks()

    app = app_of(handle, wait=wait, max_waiting=3)
    async with anyio.create_task_group() as group:
        exchange = await Client(app, group).start()
        exchange.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        executor = app.executor
        assert executor.statistics().waiting == 1, "the entry; its parts are not in the queue"
        others = [executor.submit_nowait(events.append, f"other {n}") for n in range(2)]
        gate.set()
    await executor.join()
    assert full.is_set()
    assert {job.state for job in others} == {JobState.SUCCEEDED}
    assert events == ["first", "added", "added, too", "other 0", "other 1"]
    assert {job.state for job in jobs} == {JobState.SUCCEEDED}
    check_idle(app.executor)
    assert log == []


async def test_nested_list_grows_from_a_thread(events: list[Any]) -> None:
    """A sync task may add to a nested object that runs after it."""

    async def handle(path: str, respond: Any) -> None:
        inner, tasks = BackgroundTasks(), BackgroundTasks()
        tasks.add_task(lambda: inner.add_task(events.append, "added"))
        tasks.add_task(inner)
        await respond()
        await tasks()

    assert (await get(app_of(handle))).error is None
    assert events == ["added"]


async def test_nested_added_after_closing(events: list[Any], log: Log) -> None:
    """From closing on a nested object also refuses new tasks."""

    async def handle(path: str, respond: Any) -> None:
        inner, tasks = BackgroundTasks(), BackgroundTasks()

        async def grows() -> None:
            await gate.wait()
            with pytest.raises(ExecutorClosed):
                inner.add_task(events.append, "never")
            events.append("closed")

        tasks.add_task(grows)
        tasks.add_task(inner)
        await respond()
        await tasks()

    gate = anyio.Event()
    app = app_of(handle, wait=False)
    await get(app)
    async with anyio.create_task_group() as group:
        group.start_soon(app.executor.aclose)
        await wait_all_tasks_blocked()
        gate.set()
    assert events == ["closed"]


async def test_nested_that_its_entry_leaves_out(events: list[Any], log: Log) -> None:
    """Tasks that an entry ends without running are dropped and logged; cancelled ones are not."""

    class Lazy(BackgroundTasks):
        async def __call__(self) -> None:
            events.append("lazy")

    async def handle(path: str, respond: Any) -> None:
        inner, tasks = Lazy(), BackgroundTasks()
        cancelled = inner.add_task(events.append, "cancelled")
        jobs.append(inner.add_task(events.append, "left out"))
        tasks.add_task(cancelled.cancel)
        tasks.add_task(inner)
        await respond()
        await tasks()

    jobs: list[Job[Any]] = []
    assert (await get(app_of(handle))).error is None
    assert events == ["lazy"]
    assert jobs[0].state is JobState.DROPPED
    assert len(log) == 1
    assert log[0].endswith(
        "Lazy.__call__ 4-… in the default lane (GET /) ended without running 1 task: list.append"
    )


@pytest.mark.parametrize("wait", [True, False])
async def test_nested_twice_over(wait: bool, log: Log) -> None:
    """A failure three objects deep is reported once: raised to the request, or logged if it does not wait."""

    def fail() -> None:
        raise ValueError("deep")

    async def handle(path: str, respond: Any) -> None:
        inner, middle, tasks = BackgroundTasks(), BackgroundTasks(), BackgroundTasks()
        inner.add_task(fail)
        jobs.append(middle.add_task(inner))
        jobs.append(tasks.add_task(middle))
        await respond()
        await tasks()

    jobs: list[Job[Any]] = []
    app = app_of(handle, wait=wait)
    error = (await get(app)).error
    await app.executor.join()
    assert {job.state for job in jobs} == {JobState.FAILED}
    assert (type(error), len(log)) == ((ValueError, 0) if wait else (type(None), 1))
    assert [record.levelname for record in log.records] == ["ERROR"] * len(log)


async def test_nested_made_outside(events: list[Any], log: Log) -> None:
    """The handle of a task of an object that was made outside of any request also ends with the entry."""
    inner = BackgroundTasks()
    jobs = [inner.add_task(events.append, n) for n in range(2)]

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        if path == "/fails":
            tasks.add_task(len, 1)
        tasks.tasks.append(inner)
        await respond()
        await tasks()

    app = app_of(handle)
    assert isinstance((await get(app, "/fails")).error, TypeError)
    assert [job.state for job in jobs] == [JobState.SKIPPED] * 2
    assert (await get(app, "/runs")).error is None
    assert events == [0, 1]
    check_idle(app.executor)


async def test_nested_in_a_websocket(events: list[Any]) -> None:
    """The tasks of a nested object of a websocket run once, inside the entry."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        inner, tasks = BackgroundTasks(), BackgroundTasks()
        inner.add_task(events.append, "inner")
        tasks.add_task(inner)
        tasks.add_task(events.append, "last")

    async def send(message: Any) -> None: ...

    ordered = OrderedBackgroundMiddleware(app)
    await ordered({"type": "websocket", "path": "/"}, send, send)  # type: ignore[arg-type]
    assert events == ["inner", "last"]
    check_idle(ordered.executor)


async def test_nested_leaves_its_lane(events: list[Any]) -> None:
    """A nested task waits in the lane of its entry, and keeps no task out of the one it was added to."""

    async def handle(path: str, respond: Any) -> None:
        inner, tasks = BackgroundTasks(), BackgroundTasks()
        inner.add_task(gate.wait)
        inner.lane("k", max_waiting=1).add_task(events.append, "nested")
        tasks.add_task(inner)
        await handled.wait()
        await respond()
        await tasks()

    gate, handled = anyio.Event(), anyio.Event()
    app = app_of(handle)
    async with anyio.create_task_group() as group:
        await Client(app, group).start()
        group.start_soon(app.executor.lane("k", max_waiting=1).submit, events.append, "submitted")
        await wait_all_tasks_blocked()
        handled.set()
        await wait_all_tasks_blocked()
        await app.executor.lane("k").submit_nowait(len, "k")
        assert events == ["submitted"]
        gate.set()
    await app.executor.join()
    assert events == ["submitted", "nested"]


async def test_nested_gives_capacity_back(events: list[Any]) -> None:
    """Nested tasks count until their entry is handed over; from then on only the entry does."""

    async def handle(path: str, respond: Any) -> None:
        inner = BackgroundTasks()
        inner.add_task(gate.wait)
        inner.add_task(events.append, "nested")
        await may_respond.wait()
        await respond()
        await BackgroundTasks([inner])()

    async def submits() -> None:
        await app.executor.submit(events.append, "submitted")
        events.append("has capacity")

    gate, may_respond = anyio.Event(), anyio.Event()
    app = app_of(handle, max_waiting=2)
    async with anyio.create_task_group() as group:
        await Client(app, group).start()
        assert app.executor.statistics().waiting == 2
        group.start_soon(submits)
        await wait_all_tasks_blocked()
        assert events == []
        may_respond.set()
        await wait_all_tasks_blocked()
        assert events == ["has capacity"]
        gate.set()
    await app.executor.join()
    assert events == ["has capacity", "nested", "submitted"]


async def test_nested_added_too_late(events: list[Any]) -> None:
    """`add_task` on a nested object whose entry has ended raises, and holds nothing."""

    async def handle(path: str, respond: Any) -> None:
        inner, tasks = BackgroundTasks(), BackgroundTasks()
        tasks.add_task(inner)
        kept.append(inner)
        await respond()
        await tasks()

    kept: list[BackgroundTasks] = []
    app = app_of(handle)
    await get(app)
    with pytest.raises(RuntimeError, match="was added after the tasks of GET / had ended"):
        kept[0].add_task(events.append, "never")
    check_idle(app.executor)


async def test_nested_awaited_by_a_request_meanwhile(events: list[Any]) -> None:
    """A module-level object may be awaited by a request while a task runs it: both run its whole list."""
    started, go_on = anyio.Event(), anyio.Event()

    async def slow() -> None:
        started.set()
        await go_on.wait()
        events.append("ran")

    shared = BackgroundTasks([StarletteTask(slow)])

    async def handle(path: str, respond: Any) -> None:
        await respond()
        await shared()

    app = app_of(handle, wait=False)
    async with SerialExecutor() as executor:
        job = executor.submit_nowait(shared.__call__)
        await started.wait()
        assert (await get(app)).error is None
        go_on.set()
        assert await job.wait() is JobState.SUCCEEDED
        await app.executor.join()
    assert events == ["ran", "ran"]


async def test_part_that_is_cancelled_as_it_comes(events: list[Any]) -> None:
    """A part that another thread cancels in the moment in which it would start does not run."""
    inner = BackgroundTasks()
    job = inner.add_task(events.append, "cancelled")
    inner.add_task(events.append, "runs")
    job._claims = ClaimedMeanwhile(job._claims)
    async with SerialExecutor() as executor:
        await executor.submit_nowait(inner.__call__)
    assert (events, job.state) == (["runs"], JobState.CANCELLED)


async def test_cancelled_with_its_part(events: list[Any], log: Log) -> None:
    """A cancel of the running task ends the part that runs in it as cancelled, and the next does not run."""
    started = anyio.Event()

    async def forever() -> None:
        started.set()
        await anyio.sleep_forever()

    inner = BackgroundTasks()
    jobs = [inner.add_task(forever), inner.add_task(events.append, 1)]
    async with SerialExecutor() as executor:
        outer = executor.submit_nowait(inner.__call__)
        await started.wait()
        assert jobs[0].state is JobState.RUNNING
        assert not jobs[0].cancel(), "a part is not cancelled by itself"
        assert outer.cancel()
        assert await outer.wait() is JobState.CANCELLED
    assert [job.state for job in jobs] == [JobState.CANCELLED] * 2
    assert events == []
    assert log[0].startswith("WARNING OrderedBackgroundTasks.__call__")
