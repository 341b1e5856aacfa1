"""The objects: what they take, when they refuse, how they nest and repeat."""

from __future__ import annotations

import contextvars
import functools
from typing import Any, cast
from unittest.mock import AsyncMock, MagicMock, Mock, call

import anyio
import anyio.from_thread
import pytest
from anyio import wait_all_tasks_blocked
from starlette.background import BackgroundTask as StarletteTask
from starlette.background import BackgroundTasks as StarletteTasks
from starlette.requests import Request
from starlette.responses import Response

from fifo_background import (
    BackgroundTask,
    BackgroundTasks,
    Job,
    JobState,
    OrderedBackgroundTask,
    OrderedBackgroundTasks,
    executor_of,
)
from fifo_background._executor import current
from tests.asgi import Client, get
from tests.conftest import Log
from tests.test_executor import Work
from tests.test_middleware import make_app


def test_classes() -> None:
    """The classes are real subclasses of Starlette's, under both names."""
    assert BackgroundTasks is OrderedBackgroundTasks
    assert BackgroundTask is OrderedBackgroundTask
    assert issubclass(BackgroundTasks, StarletteTasks)
    assert issubclass(BackgroundTask, StarletteTask)


@pytest.mark.parametrize("value", [None, 3, "name"])
def test_not_callable(value: Any) -> None:
    """What cannot be called is refused by `add_task` and by the constructor, with what to write."""
    tasks = BackgroundTasks()
    with pytest.raises(
        TypeError, match=r"write add_task\(func, argument\), not add_task\(func\(argument\)\)"
    ):
        tasks.add_task(value)
    assert tasks.tasks == []
    with pytest.raises(TypeError, match="BackgroundTask takes a function"):
        BackgroundTask(value)


async def test_without_anything(events: list[Any]) -> None:
    """`await tasks()` works with no app, no request and no middleware, and can be repeated."""
    tasks = BackgroundTasks([StarletteTask(events.append, 0), BackgroundTask(events.append, 1)])
    job = tasks.add_task(events.append, 2)
    assert job.state is JobState.PENDING
    with pytest.raises(RuntimeError, match="has no place in a line yet"):
        await job.wait()
    await tasks()
    assert job.state is JobState.SUCCEEDED
    await tasks()
    assert events == [0, 1, 2] * 2
    await BackgroundTasks()()


async def test_without_middleware_ordered(events: list[Any]) -> None:
    """Without the middleware nothing is unordered: objects take their place when they are awaited."""
    work = Work(events)
    async with anyio.create_task_group() as group:
        for n in range(3):
            tasks = BackgroundTasks()
            tasks.add_task(work.gated, n)
            tasks.add_task(work.sync, n + 10)
            group.start_soon(tasks)
            await anyio.wait_all_tasks_blocked()
        assert events == ["start 0"]
        for n in range(3):
            work.gate(n).set()
    assert events == ["start 0", "end 0", 10, "start 1", "end 1", 11, "start 2", "end 2", 12]


def test_anyio_run(events: list[Any]) -> None:
    """An object is a function for `anyio.run`, on a loop of its own each time."""
    tasks = BackgroundTasks()
    tasks.add_task(events.append, 1)
    anyio.run(tasks)
    anyio.run(tasks)
    assert events == [1, 1]


async def test_job_of_add_task() -> None:
    """`add_task` returns the handle of that very task: its state and its result."""
    jobs: list[Job[Any]] = []

    async def add(a: int, *, b: int) -> int:
        return a + b

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        jobs.append(tasks.add_task(add, 1, b=2))
        jobs.append(tasks.add_task("{:d}".format, 4))
        jobs.append(tasks.add_task(functools.partial(add, 5), b=6))
        assert [job.state for job in jobs] == [JobState.PENDING] * 3
        return Response(background=tasks)

    await get(make_app(handler), "/handler")
    assert [job.result() for job in jobs] == [3, "4", 11]
    assert [await job.wait() for job in jobs] == [3, "4", 11]


async def test_list_changed_by_hand(events: list[Any]) -> None:
    """What runs is the list, in its order, as it is when it is awaited."""

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks([StarletteTask(events.append, "constructor")])
        tasks.add_task(events.append, "added 1")
        gone = tasks.add_task(events.append, "gone")
        tasks.add_task(events.append, "added 2")
        tasks.tasks.append(StarletteTask(events.append, "appended"))
        tasks.tasks.insert(0, tasks.tasks.pop(3))
        del tasks.tasks[3]
        jobs.append(gone)
        return Response(background=tasks)

    jobs: list[Job[Any]] = []
    await get(make_app(handler), "/handler")
    assert events == ["added 2", "constructor", "added 1", "appended"]
    assert jobs[0].state is JobState.DROPPED


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
    assert executor_of(app).line.unfinished == 0


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
    assert len(log) == 3
    assert log[0].endswith("fail failed (GET /handler)")
    assert log[1] == "WARNING not run after a task of the same list: 1 task: list.append"
    assert log[2].startswith("WARNING skipped after ")
    assert log[2].endswith(" (GET /handler): 2 tasks: list.append x2")
    assert executor_of(app).line.unfinished == executor_of(app).line.waiting == 0


@pytest.mark.parametrize("added", [True, False])
async def test_nested_outlives_its_request(added: bool, events: list[Any], log: Log) -> None:
    """The tasks of a nested object are as owed as the entry: they run, although the request has ended."""
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
    await executor.lane("other").submit_nowait(events.append, "not held up").wait()
    gate.set()
    await jobs[0].wait()
    await executor.join()
    assert events == ["not held up", 0, 1, 2]
    assert {job.state for job in jobs} == {JobState.SUCCEEDED}
    assert log == []
    assert executor.line.waiting == 0


async def test_nested_awaited_by_its_detached_request(events: list[Any]) -> None:
    """A request that does not wait for its tasks may await the handle of one in a nested object."""

    async def handler(request: Request) -> Response:
        inner = BackgroundTasks()
        job = inner.add_task(events.append, 0)
        BackgroundTasks().add_task(events.append, "never awaited")
        response = Response(background=BackgroundTasks([inner]))

        async def respond(scope: Any, receive: Any, send: Any) -> None:
            await response(scope, receive, send)
            await job.wait()
            events.append("waited")

        answer: Any = respond
        return cast(Response, answer)

    assert (await get(make_app(handler, wait=False), "/handler")).error is None
    assert events == [0, "waited"]


async def test_nested_runs_again(events: list[Any]) -> None:
    """What did not run inside an entry that was skipped runs when the objects are awaited again."""
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
    """What does not run inside an entry ends with it, and does not run any more."""
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
    assert executor.line.unfinished == executor.line.waiting == 0
    if end == "dropped":
        assert log[0].endswith(": dropped 3 tasks: Event.wait, list.append x2")


@pytest.mark.parametrize("middleware", [True, False])
async def test_running_task_extends_its_list(middleware: bool, events: list[Any]) -> None:
    """A running task may add to its own list: the new task joins the same place."""

    def make_tasks() -> BackgroundTasks:
        tasks = BackgroundTasks()

        async def first() -> None:
            events.append("first")
            tasks.add_task(second)

        def second() -> None:
            events.append("second")
            anyio.from_thread.run_sync(tasks.add_task, events.append, "third")
            tasks.add_task(events.append, "fourth")

        tasks.add_task(first)
        return tasks

    async def handler(request: Request) -> Response:
        return Response(background=make_tasks())

    app = make_app(handler)
    async with anyio.create_task_group() as group:
        for _ in range(2):
            if middleware:
                await Client(app, group).start("/handler")
            else:
                group.start_soon(make_tasks())
    assert events == ["first", "second", "third", "fourth"] * 2


async def test_nested_list_extended(events: list[Any]) -> None:
    """A task of a nested object may add to the nested list: it runs inline too."""

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
    assert executor_of(app).line.unfinished == 0


async def test_added_too_late(events: list[Any], log: Log) -> None:
    """`add_task` after the request's tasks have ended raises, names the other way, and holds nothing."""
    kept: list[BackgroundTasks] = []

    async def handler(request: Request) -> Response:
        kept.append(BackgroundTasks())
        kept[-1].add_task(events.append, 1)
        return Response(background=kept[-1])

    async def without(request: Request) -> Response:
        kept.append(BackgroundTasks())
        return Response()

    app = make_app(handler, without)
    for path in ("/handler", "/without"):
        await get(app, path)
        with pytest.raises(RuntimeError, match=rf"tasks of GET {path} had ended.*submit_nowait"):
            kept[-1].add_task(events.append, 2)
    assert events == [1]
    assert executor_of(app).line.unfinished == 0


async def test_module_level_object(events: list[Any]) -> None:
    """A module-level object, reused by many responses, runs its list for each, in a place of its own."""
    task = BackgroundTask(events.append, "task")
    tasks = BackgroundTasks([StarletteTask(events.append, "one")])
    tasks.add_task(events.append, "two")

    async def single(request: Request) -> Response:
        return Response(background=task)

    async def many(request: Request) -> Response:
        return Response(background=tasks)

    app = make_app(single, many)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        for path in ("/single", "/many") * 2:
            await client.start(path)
    assert events == ["task", "one", "two"] * 2


async def test_own_call(events: list[Any]) -> None:
    """A task class with a `__call__` of its own runs through it."""

    class Loud(StarletteTask):
        async def __call__(self) -> None:
            events.append("before")
            await super().__call__()
            events.append("after")

    tasks = BackgroundTasks([Loud(events.append, "async"), Loud(Work(events).quick, 1)])
    tasks.add_task(events.append, "last")
    await tasks()
    assert events == ["before", "async", "after", "before", 1, "after", "last"]


@pytest.mark.parametrize("sync", [False, True])
async def test_replaced_call(sync: bool, events: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """An instrumentation that replaces `BackgroundTask.__call__` sees every task; the result is kept."""
    original = StarletteTask.__call__

    async def instrumented(self: StarletteTask) -> None:
        await anyio.sleep(0)
        events.append(f"span of {self.func.__name__}")
        await original(self)
        events.append("end of span")

    async def double(n: int) -> int:
        return 2 * n

    def double_sync(n: int) -> int:
        return 2 * n

    monkeypatch.setattr(StarletteTask, "__call__", instrumented)
    tasks = BackgroundTasks()
    func = double_sync if sync else double
    job = tasks.add_task(func, 4)
    await tasks()
    assert job.result() == 8
    assert events == [f"span of {func.__name__}", "end of span"]


async def test_replaced_add_task(events: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """An instrumentation that wraps `BackgroundTasks.add_task` has its say."""
    original = StarletteTasks.add_task

    def wrapped(self: StarletteTasks, func: Any, *args: Any, **kwargs: Any) -> None:
        def traced(*args: Any) -> Any:
            events.append("traced")
            return func(*args)

        original(self, traced, *args, **kwargs)

    monkeypatch.setattr(StarletteTasks, "add_task", wrapped)
    tasks = BackgroundTasks()
    tasks.add_task(events.append, 1)
    await tasks()
    assert events == ["traced", 1]


async def test_subclass(events: list[Any]) -> None:
    """Our classes can be subclassed, `__call__` and `__init__` included."""

    class Mine(BackgroundTasks):
        def __init__(self) -> None:
            self.tasks = []  # as a subclass of Starlette's may: without super().__init__()

        async def __call__(self) -> None:
            events.append("enter")
            await super().__call__()
            events.append("exit")

    async def handler(request: Request) -> Response:
        tasks = Mine()
        tasks.add_task(events.append, 1)
        return Response(background=tasks)

    assert (await get(make_app(handler), "/handler")).error is None
    assert events == ["enter", 1, "exit"]


async def test_awaited_in_the_handler(events: list[Any]) -> None:
    """Awaited before the response, an object hands its tasks over: they still run after the response."""

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, 1)
        await tasks()
        tasks.add_task(events.append, 2)
        other = BackgroundTasks()
        other.add_task(events.append, 3)
        await other()
        events.append("handler")
        return Response()

    exchange = await get(make_app(handler), "/handler")
    assert exchange.error is None
    assert events == ["handler", 1, 2, 3]


async def test_two_objects_of_one_request(events: list[Any]) -> None:
    """Two objects of one request share its place; each runs what is its own when it is awaited."""
    go_on = anyio.Event()

    async def handler(request: Request) -> Response:
        one, two = BackgroundTasks(), BackgroundTasks()
        one.add_task(events.append, "one 1")
        await go_on.wait()  # the other requests take their places here
        two.add_task(events.append, "two 1")
        one.add_task(events.append, "one 2")

        class Both(StarletteTasks):
            async def __call__(self) -> None:
                await one()
                await two()

        return Response(background=Both())

    app = make_app(handler)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        for _ in range(2):
            await client.start("/handler")
        go_on.set()
    assert events == ["one 1", "one 2", "two 1"] * 2


async def test_many_tasks_of_one_request(events: list[Any]) -> None:
    """A request with more tasks than fit anywhere runs them in order."""

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        for n in range(3000):
            tasks.add_task(events.append, n)
        return Response(background=tasks)

    assert (await get(make_app(handler), "/handler")).error is None
    assert events == list(range(3000))


async def test_context_of_an_ended_task(events: list[Any]) -> None:
    """In a context that an ended task has left behind, an object runs like anywhere else."""
    left: list[contextvars.Context] = []
    tasks = BackgroundTasks([StarletteTask(lambda: left.append(contextvars.copy_context()))])
    await tasks()
    current.set(left[0][current])
    await BackgroundTasks([StarletteTask(events.append, 1)])()
    assert events == [1]


async def test_mocks(log: Log) -> None:
    """Mocks are functions like any other, in `add_task` and in logs."""
    sync, asynchronous, fails = (
        Mock(return_value=1),
        AsyncMock(return_value=2),
        MagicMock(side_effect=ValueError),
    )
    tasks = BackgroundTasks()
    jobs = [tasks.add_task(mock, 1, a=2) for mock in (sync, asynchronous, fails)]
    with pytest.raises(ValueError):  # noqa: PT011
        await tasks()
    assert [job.result() for job in jobs[:2]] == [1, 2]
    assert [mock.call_args_list for mock in (sync, asynchronous, fails)] == [[call(1, a=2)]] * 3
    assert log == ["ERROR MagicMock failed"]


async def test_entries_that_are_no_tasks(events: list[Any]) -> None:
    """Whatever can be called and awaited may be an entry of the list, as in Starlette."""

    class Slots:
        __slots__ = ()

        async def __call__(self) -> None:
            events.append("slots")

    async def function() -> None:
        events.append("function")

    tasks = BackgroundTasks()
    tasks.tasks += [Slots(), function]  # type: ignore[list-item]
    await tasks()
    assert events == ["slots", "function"]
