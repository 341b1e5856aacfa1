"""The objects: what they take, when they refuse, how they nest and repeat."""

from __future__ import annotations

import contextvars
import copy
import functools
import pickle
from collections.abc import Awaitable, Callable
from typing import Any
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
    ExecutorClosed,
    Job,
    JobNoResult,
    JobState,
    OrderedBackgroundTask,
    OrderedBackgroundTasks,
    SerialExecutor,
    executor_of,
)
from fifo_background._core.state import CLOSING
from fifo_background._request import ENDED
from fifo_background._run.current import current
from tests.support.apps import Work, app_of, check_idle, make_app
from tests.support.asgi import Client, get
from tests.support.log import Log


def test_classes() -> None:
    """The classes are real subclasses of Starlette's, under both names."""
    assert BackgroundTasks is OrderedBackgroundTasks
    assert BackgroundTask is OrderedBackgroundTask
    assert issubclass(BackgroundTasks, StarletteTasks)
    assert issubclass(BackgroundTask, StarletteTask)


@pytest.mark.parametrize("value", [None, 3, "name"])
def test_not_callable(value: Any) -> None:
    """A value that cannot be called is refused by `add_task` and by the constructor, with what to write."""
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
    for wait in (job.wait(), job._result_when_ended()):
        with pytest.raises(RuntimeError, match=r"is in no queue yet.*Write `await tasks\(\)` first"):
            await wait
    await tasks()
    assert job.state is JobState.SUCCEEDED
    await tasks()
    assert events == [0, 1, 2] * 2
    await BackgroundTasks()()


async def test_without_middleware_ordered(events: list[Any]) -> None:
    """Without the middleware nothing is unordered: objects take their position when they are awaited."""
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
    assert [await job for job in jobs] == [3, "4", 11]
    assert [await job.wait() for job in jobs] == [JobState.SUCCEEDED] * 3


async def test_list_changed_by_hand(events: list[Any]) -> None:
    """The list runs in its order, as it is when it is awaited."""

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
    with pytest.raises(JobNoResult, match="has no result: it was dropped"):
        await jobs[0]


@pytest.mark.parametrize("middleware", [True, False])
async def test_running_task_extends_its_list(middleware: bool, events: list[Any]) -> None:
    """A running task may add to its own list: the new task joins the same position."""

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
    check_idle(executor_of(app))


async def test_module_level_object(events: list[Any]) -> None:
    """A module-level object, reused by many responses, runs its list for each, in a position of its own."""
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


async def test_two_objects_of_a_detached_request(events: list[Any]) -> None:
    """One queue per lane: an object that is awaited while a task of its position runs waits for its end."""
    go_on = anyio.Event()

    async def first() -> None:
        events.append("first begins")
        await go_on.wait()
        events.append("first ends")

    async def handle(path: str, respond: Callable[[], Awaitable[None]]) -> None:
        one, two = BackgroundTasks(), BackgroundTasks()
        one.add_task(first)
        two.add_task(events.append, "second")
        await respond()
        await one()
        await wait_all_tasks_blocked()
        await two()

    app = app_of(handle, wait=False)
    assert (await get(app, "/")).error is None
    await wait_all_tasks_blocked()
    assert events == ["first begins"]
    go_on.set()
    await app.executor.join()
    assert events == ["first begins", "first ends", "second"]


async def test_two_objects_of_one_request(events: list[Any]) -> None:
    """Two objects of one request share its position; each runs its own tasks when it is awaited."""
    go_on = anyio.Event()

    async def handler(request: Request) -> Response:
        one, two = BackgroundTasks(), BackgroundTasks()
        one.add_task(events.append, "one 1")
        await go_on.wait()  # the other requests take their positions here
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
    """A request with thousands of tasks runs them in order."""

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
    assert log == [], "the failure was raised to who awaited the object"


async def test_entries_that_are_no_tasks(events: list[Any]) -> None:
    """Anything that can be called and awaited may be an entry of the list, as in Starlette."""

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


async def test_cancelled_stays_cancelled(events: list[Any]) -> None:
    """A cancelled entry stays away, however often a task awaits its object."""
    inner = BackgroundTasks()
    inner.add_task(events.append, "cancelled").cancel()
    inner.add_task(events.append, "runs")

    async def outer() -> None:
        await inner()
        await inner()

    async with SerialExecutor() as executor:
        await executor.submit_nowait(outer)
    assert events == ["runs", "runs"]


async def test_added_between_two_awaits(events: list[Any]) -> None:
    """Awaiting again runs the list again; a task that was added in between runs once."""

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, 1)
        await tasks()
        tasks.add_task(events.append, 2)
        await respond()
        await tasks()

    app = app_of(handle)
    assert (await get(app)).error is None
    assert sorted(events) == [1, 1, 2]


async def test_object_made_after_the_request(events: list[Any]) -> None:
    """A task that a handler has left running may make objects when the request has ended."""
    go_on = anyio.Event()

    async def worker() -> None:
        await go_on.wait()
        tasks = BackgroundTasks()
        tasks.add_task(events.append, "worker")
        await tasks()

    async with anyio.create_task_group() as group:

        async def handle(path: str, respond: Any) -> None:
            group.start_soon(worker)
            await respond()

        await get(app_of(handle))
        go_on.set()
    assert events == ["worker"]


async def test_copies(events: list[Any]) -> None:
    """A copy of an object has its tasks and no part in the request: it runs in a position of its own."""

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(print, end="")
        copies = [copy.copy(tasks), copy.deepcopy(tasks), pickle.loads(pickle.dumps(tasks))]
        assert [[task.func for task in one.tasks] for one in copies] == [[print]] * 3
        assert [one._fifo_request for one in copies] == [None] * 3
        tasks.add_task(events.append, 1)
        await respond()
        await copies[1]()
        await tasks()

    app = app_of(handle)
    assert (await get(app)).error is None
    assert events == [1]
    check_idle(app.executor)


async def test_single_task_is_what_it_was_made(events: list[Any]) -> None:
    """The single form keeps `is_async` and the request in which it was made."""

    async def later() -> None:
        await anyio.lowlevel.checkpoint()
        events.append("awaited")

    def returns_a_coroutine() -> Any:
        return later()

    async def handle(path: str, respond: Any) -> None:
        task = BackgroundTask(returns_a_coroutine)
        task.is_async = True
        ordered = BackgroundTask(events.append, "task")
        token = current.set(None)
        await ordered()
        await task()
        current.reset(token)
        events.append("handler")
        await respond()

    assert (await get(app_of(handle))).error is None
    assert events == ["handler", "task", "awaited"]


async def test_appended_to_the_list(events: list[Any]) -> None:
    """A running task may append to `.tasks` itself, as in Starlette: what it appends runs, too."""

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()

        def first() -> None:
            events.append("first")
            tasks.tasks.append(StarletteTask(events.append, "appended"))
            tasks.add_task(events.append, "added")

        tasks.add_task(first)
        await respond()
        await tasks()

    assert (await get(app_of(handle))).error is None
    assert sorted(events) == ["added", "appended", "first"]


@pytest.mark.parametrize("is_async", [False, True])
async def test_entry_that_is_changed(is_async: bool, events: list[Any]) -> None:
    """An entry that somebody changes before the response runs as it is then."""

    async def append(n: int) -> None:
        events.append(n)

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(events.append if is_async else append, 1)
        (entry,) = tasks.tasks
        entry.func, entry.is_async = append if is_async else events.append, is_async
        await respond()
        await tasks()

    assert (await get(app_of(handle))).error is None
    assert events == [1]


async def test_replaced_call_of_the_list(events: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """An instrumentation that replaces `__call__` of Starlette's list class sees each list once."""
    original = StarletteTasks.__call__

    async def instrumented(self: StarletteTasks) -> None:
        events.append("list")
        await original(self)

    monkeypatch.setattr(StarletteTasks, "__call__", instrumented)
    tasks = BackgroundTasks()
    for n in range(2):
        tasks.add_task(events.append, n)
    await tasks()
    assert events == ["list", 0, 1]


async def test_replaced_call_of_our_list(events: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Who replaces `__call__` of `BackgroundTasks` does not see single tasks."""

    async def mock(self: BackgroundTasks) -> None:
        events.append("mocked")

    monkeypatch.setattr(BackgroundTasks, "__call__", mock)
    await BackgroundTask(events.append, "single")()
    await BackgroundTasks()()
    assert events == ["single", "mocked"]


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("starlettes", [False, True])
async def test_replaced_call_of_our_task(
    sync: bool, starlettes: bool, events: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instrumentations that replace `__call__` of our `BackgroundTask`, or of both, see each task once."""

    def instrument(kind: type[StarletteTask], name: str) -> None:
        original = kind.__call__

        async def instrumented(self: Any) -> None:
            events.append(f"{name} of {self.func.__name__}")
            await original(self)

        monkeypatch.setattr(kind, "__call__", instrumented)

    async def double(n: int) -> int:
        return 2 * n

    def double_sync(n: int) -> int:
        return 2 * n

    func = double_sync if sync else double
    instrument(BackgroundTask, "ours")
    if starlettes:
        instrument(StarletteTask, "Starlette's")
    tasks = BackgroundTasks()
    job = tasks.add_task(func, 4)
    await tasks()
    seen = [f"ours of {func.__name__}"] + [f"Starlette's of {func.__name__}"] * starlettes
    assert (job.result(), events) == (8, seen)
    events.clear()
    await BackgroundTask(func, 1)()
    assert events == seen


async def test_replaced_add_task_in_a_request(events: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a replaced `add_task` appends takes the request's position, whatever kind of entry it is."""

    class Slots:
        __slots__ = ("run",)

        def __init__(self, run: Callable[[], Any]) -> None:
            self.run = run

        async def __call__(self) -> None:
            self.run()

    def append(self: StarletteTasks, func: Any, *args: Any) -> None:
        kind: Any = Slots if args == (2,) else StarletteTask
        self.tasks.append(kind(functools.partial(func, *args)))

    monkeypatch.setattr(StarletteTasks, "add_task", append)
    go_on = anyio.Event()
    jobs: list[Job[Any]] = []

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        jobs.append(tasks.options(wait=True).add_task(events.append, 1))
        if path == "/first":
            jobs.append(tasks.add_task(events.append, 2))
            await go_on.wait()
        await respond()
        await tasks()

    app = app_of(handle)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        await client.start("/first")
        await client.start("/second")
        assert [job.state for job in jobs[:2]] == [JobState.PENDING] * 2
        assert events == [], "the second request's task stands behind those of the first"
        go_on.set()
    assert events == [1, 2, 1]
    assert jobs[0].state is JobState.SUCCEEDED


async def test_mocked_add_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mock in place of `add_task` is called as it was, and the job of what it did not add is dropped."""
    mock = Mock()
    monkeypatch.setattr(StarletteTasks, "add_task", mock)
    tasks = BackgroundTasks()
    job = tasks.add_task(print, 1, end="")
    mock.assert_called_once_with(print, 1, end="")
    assert (tasks.tasks, job.name, job.state) == ([], "print", JobState.DROPPED)


@pytest.mark.parametrize("middleware", [True, False])
async def test_entry_awaited_by_itself(middleware: bool, events: list[Any], log: Log) -> None:
    """An entry that is awaited by itself, in place of its list, runs in the queue, with its own options."""
    jobs: list[Job[Any]] = []

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        jobs.append(tasks.add_task(Work(events).quick, 1))
        jobs.append(tasks.options(timeout=0.01).add_task(anyio.sleep_forever))
        await respond()
        first, second = tasks.tasks
        await first()
        assert (events, jobs[0].state) == ([1], JobState.SUCCEEDED)
        with pytest.raises(TimeoutError):
            await second()

    async def respond() -> None: ...

    if middleware:
        app = app_of(handle)
        assert (await get(app)).error is None
        check_idle(app.executor)
    else:
        await handle("", respond)
    assert [job.state for job in jobs] == [JobState.SUCCEEDED, JobState.FAILED]
    assert [one for one in log if one.startswith("ERROR")] == []


async def test_added_after_the_end_without_a_request(events: list[Any]) -> None:
    """An object of no request takes new tasks when its list has run, for the next time it is awaited."""
    inner, outer = BackgroundTasks(), BackgroundTasks()
    inner.add_task(events.append, 1)
    outer.add_task(inner)
    await outer()
    job = inner.add_task(events.append, 2)
    assert (events, job.state) == ([1], JobState.PENDING)
    await inner()
    assert (events, job.state) == ([1, 1, 2], JobState.SUCCEEDED)
    job = inner.add_task(events.append, 3)
    assert job.state is JobState.PENDING
    await inner()
    assert (events, job.state) == ([1, 1, 2, 1, 2, 3], JobState.SUCCEEDED)


async def test_cancelled_while_it_is_handed_over(events: list[Any]) -> None:
    """A task that is cancelled while its list is being handed over never runs, and the others do."""

    class Cancels(StarletteTask):
        @property
        def func(self) -> Any:  # type: ignore[override]
            cancelled.append(job.cancel())
            return self.call

        def __init__(self) -> None:
            self.call = Work(events).quick
            self.args, self.kwargs, self.is_async = (2,), {}, True

    cancelled: list[bool] = []

    async def handle(path: str, respond: Any) -> None:
        nonlocal job
        tasks = BackgroundTasks()
        job = tasks.add_task(events.append, 1)
        tasks.tasks.append(Cancels())
        await respond()
        await tasks()

    job: Any = None
    app = app_of(handle)
    assert (await get(app)).error is None
    assert (cancelled[0], job.state, events) == (True, JobState.CANCELLED, [2])
    check_idle(app.executor)


@pytest.mark.parametrize("closes", [True, False])
async def test_added_as_the_end_comes(closes: bool, events: list[Any]) -> None:
    """A task that a thread adds in the moment in which its request or the executor ends is refused."""

    async def handle(path: str, respond: Any) -> None:
        scheduler = app.executor._runner.scheduler
        accept = scheduler.accept

        def accept_and_end(*args: Any, **kwargs: Any) -> None:
            accept(*args, **kwargs)
            if closes:
                scheduler.status = CLOSING
            else:
                request.stage = ENDED

        tasks = BackgroundTasks()
        request: Any = tasks._fifo_request
        scheduler.accept = accept_and_end
        error, text = (ExecutorClosed, "the executor is closed") if closes else (RuntimeError, "had ended")
        with pytest.raises(error, match=text):
            tasks.add_task(events.append, 1)
        del scheduler.accept
        await respond()
        await tasks()

    app = app_of(handle)
    assert (await get(app)).error is None
    assert events == []
    check_idle(app.executor)


@pytest.mark.parametrize("kind", ["partial", "instance"])
async def test_names_under_a_replaced_call(
    kind: str, events: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tracer that replaces `__call__` finds a name for whatever can be called."""
    original = StarletteTask.__call__

    class Callable:
        def __call__(self) -> None:
            events.append("called")

    async def traced(self: StarletteTask) -> None:
        events.append(self.func.__name__)
        await original(self)

    monkeypatch.setattr(StarletteTask, "__call__", traced)
    tasks = BackgroundTasks()
    tasks.add_task(functools.partial(events.append, "called") if kind == "partial" else Callable())
    await tasks()
    assert events == ["partial" if kind == "partial" else "Callable", "called"]


def test_states_of_an_object() -> None:
    """An object moves as its table says, and refuses any other move."""
    tasks = BackgroundTasks()
    with pytest.raises(RuntimeError, match="cannot go from collecting to collecting"):
        tasks._fifo_become(tasks._fifo_state)
