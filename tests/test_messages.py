"""A message says what to write: each mistake is made once, and what it says is read."""

from __future__ import annotations

import functools
import inspect
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import MagicMock, create_autospec

import anyio
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from fifo_background import (
    BackgroundTasks,
    Job,
    JobState,
    OrderedBackgroundMiddleware,
    QueueFull,
    SerialExecutor,
    executor_of,
)
from tests.support.apps import app_of, check_idle, make_app
from tests.support.asgi import get
from tests.support.log import Log


def refused(call: Callable[[], Any]) -> str:
    """What the TypeError of a call says."""
    with pytest.raises(TypeError) as caught:
        call()
    return str(caught.value)


# -- waiting in a handler ------------------------------------------------------------------------------------


async def test_result_in_a_handler() -> None:
    """`job.result()` and `await job` of a handler's own task both show the line that works, and it works."""
    line = "`job = executor_of(request).lane(...).submit_nowait(func, ...)`"
    results: list[Any] = []

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        job = tasks.add_task(str, 1)
        for ask in (job.result, job.exception):
            with pytest.raises(RuntimeError) as caught:
                ask()
            assert line in str(caught.value)
        with pytest.raises(RuntimeError) as caught:
            await job
        assert line in str(caught.value)
        results.append(await executor_of(request).lane("other").submit_nowait(str, 2))
        results.append(job)
        return Response(background=tasks)

    app = make_app(handler)
    assert (await get(app, "/handler")).error is None
    assert (results[0], results[1].result()) == ("2", "1")


# -- what is dropped -----------------------------------------------------------------------------------------


class Refused(Exception):
    pass


@pytest.mark.parametrize("error", [HTTPException(404), Refused("secret")])
@pytest.mark.parametrize("order", ["added", "arrived"])
async def test_exception_that_became_the_response(
    error: Exception, order: Any, events: list[Any], log: Log
) -> None:
    """Tasks that an exception handler's response dropped: the log names the exception and what to write."""

    async def handler(request: Request) -> Response:
        BackgroundTasks().add_task(events.append, "dropped")
        executor_of(request).submit_nowait(events.append, "submitted")
        raise error

    async def answer(request: Request, error: Exception) -> Response:
        return Response(status_code=418)

    may_add: Any = {"may_add_tasks": bool} if order == "arrived" else {}
    app = make_app(handler, order=order, **may_add)
    app.add_exception_handler(Refused, answer)
    assert (await get(app, "/handler")).status == (404 if isinstance(error, HTTPException) else 418)
    await executor_of(app).join()
    assert events == ["submitted"]
    (said,) = log
    assert said.startswith(
        "WARNING GET /handler ended without running 1 task: list.append 1-… in the default lane: "
        f"{type(error).__name__} became its response"
    )
    assert "`executor_of(request).submit_nowait(func, ...)`" in said
    assert "secret" not in said
    check_idle(executor_of(app))


async def test_exception_around_the_app(events: list[Any], log: Log) -> None:
    """An exception that is handled where the app is called from is no reason why tasks were dropped."""

    async def handle(path: str, respond: Callable[[], Awaitable[None]]) -> None:
        BackgroundTasks().add_task(events.append, "dropped")
        await respond()

    app = app_of(handle)
    try:
        raise Refused
    except Refused:
        await get(app)
    assert events == []
    (said,) = log
    assert "its response did not carry them" in said
    assert "`background=tasks`" in said
    assert "Refused" not in said


# -- arguments -----------------------------------------------------------------------------------------------


def one(n: int) -> None: ...


async def two(n: int, *, twice: bool) -> None: ...


OPTIONS = [
    ("lane", "x", "lane('x')"),
    ("keep", "latest", "lane(key, keep='latest')"),
    ("max_waiting", 3, "lane(key, max_waiting=3)"),
    ("after_failure", "stop", "lane(key, after_failure='stop')"),
    ("timeout", 2.0, "options(timeout=2.0)"),
    ("wait", False, "options(wait=False)"),
]


@pytest.mark.parametrize(("name", "value", "call"), OPTIONS)
@pytest.mark.parametrize("function", [one, two])
async def test_option_among_the_arguments(
    function: Callable[..., Any], name: str, value: Any, call: str, events: list[Any]
) -> None:
    """An option that is given to `add_task` or `submit` is refused at once, with the line to write."""
    tasks = BackgroundTasks()
    wrong: Any = {name: value, **({"twice": True} if function is two else {})}
    tasks.add_task(events.append, "kept")
    for adder, before in ((tasks, "tasks"), (tasks.lane("other"), "tasks")):
        said = refused(lambda adder=adder: adder.add_task(function, 1, **wrong))  # type: ignore[misc]
        assert said.startswith(f"{function.__name__} cannot be called")
        assert f"unexpected keyword argument '{name}'" in said
        assert f"write `{before}.{call}.add_task({function.__name__}, ...)`" in said
    async with SerialExecutor() as executor:
        said = refused(lambda: executor.submit_nowait(function, 1, **wrong))
        assert (f"write `executor.{call}.submit_nowait({function.__name__}, ...)`" in said) is (
            name != "wait"
        )
        with pytest.raises(TypeError) as caught:
            await executor.submit(function, 1, **wrong)
        assert (f"write `await executor.{call}.submit({function.__name__}, ...)`" in str(caught.value)) is (
            name != "wait"
        )
        assert executor.statistics().unfinished == 0
    await tasks()
    assert events == ["kept"]


class Methods:
    def method(self, n: int) -> None: ...

    @classmethod
    def of_class(cls, n: int) -> None: ...


def make_functions() -> list[Callable[..., Any]]:
    def none() -> None: ...
    def default(n: int, m: int = 1) -> None: ...
    def any_args(n: int, *args: int) -> None: ...
    def only_by_name(*, n: int, m: int = 1) -> None: ...
    def only_by_position(n: int, m: int = 1, /, k: int = 2) -> None: ...
    def any_names(n: int, **names: int) -> None: ...
    def everything(n: int, /, m: int, *args: int, k: int, j: int = 1) -> None: ...

    functions = [none, default, any_args, only_by_name, only_by_position, any_names, everything]
    return [one, *functions, Methods().method, Methods.of_class, Methods.method, lambda n: None]


CALLS = [
    (args, dict.fromkeys(names, 1))
    for args in ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4))
    for count in range(4)
    for names in itertools.combinations("nmkz", count)
]


def test_arguments_that_do_not_fit() -> None:
    """`add_task` refuses a call of a plain function only if Python does, and every one without `**`."""
    for func in make_functions():
        takes_any = func.__name__ == "any_names"
        for args, kwargs in CALLS:
            try:
                inspect.signature(func).bind(*args, **kwargs)
            except TypeError as error:
                why = str(error)
            else:
                why = ""
            tasks = BackgroundTasks()
            try:
                tasks.add_task(func, *args, **kwargs)
            except TypeError as error:
                said = str(error)
                assert why, (func, args, kwargs)
                assert why in said
                assert tasks.tasks == []
            else:
                assert takes_any or not why, (func, args, kwargs)


async def test_missing_argument_in_a_handler(events: list[Any], log: Log) -> None:
    """The handler that made the mistake raises it; the tasks that it has added are named."""

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, 1)
        return tasks.add_task(one)  # type: ignore

    app = make_app(handler)
    error = (await get(app, "/handler")).error
    assert isinstance(error, TypeError)
    assert "one cannot be called with the arguments that `add_task` was given: missing" in str(error)
    assert events == []
    assert len(log) == 1
    assert "without running 1 task: list.append 1-… in the default lane: it raised TypeError(" in log[0]
    check_idle(executor_of(app))


def test_what_is_not_checked() -> None:
    """Mocks, wrapped and marked functions, partials, classes and builtins are taken as they are."""

    @functools.wraps(one)
    def wrapped() -> None: ...

    def marked() -> None: ...

    marked.mark = True  # type: ignore[attr-defined]

    class Callable:
        def __call__(self) -> None: ...

    for func in (
        wrapped,
        marked,
        MagicMock(),
        create_autospec(one),
        functools.partial(one),
        Callable(),
        str,
        len,
    ):
        tasks = BackgroundTasks()
        assert tasks.add_task(func, lane="x").state is JobState.PENDING
        assert tasks.tasks[0].kwargs == {"lane": "x"}


def test_replaced_add_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who replaces `add_task` of Starlette's class sees every call, also one that does not fit."""
    from starlette.background import BackgroundTasks as StarletteTasks

    mock = MagicMock()
    monkeypatch.setattr(StarletteTasks, "add_task", mock)
    BackgroundTasks().add_task(one, lane="x")  # type: ignore[call-overload]
    mock.assert_called_once_with(one, lane="x")


# -- lanes ---------------------------------------------------------------------------------------------------


async def test_lane_with_a_task() -> None:
    """`lane(f, 1)` says that the task comes after it, for tasks and executors."""
    tasks: Any = BackgroundTasks()
    for lane in (tasks.lane, tasks.options(timeout=1.0).lane):
        assert "write `tasks.lane(key).add_task(func, ...)`" in refused(functools.partial(lane, one, 1))
    async with SerialExecutor() as executor:
        untyped: Any = executor
        said = refused(lambda: untyped.lane(one, 1))
        assert "write `executor.lane(key).submit_nowait(func, ...)`" in said
    assert tasks.tasks == []


def test_call_of_a_lane() -> None:
    """`tasks.lane("x")(f)` says that `add_task` is missing."""
    tasks: Any = BackgroundTasks()
    for adder in (tasks.lane("x"), tasks.options(timeout=1.0)):
        said = refused(lambda adder=adder: adder(one, 1, n=2))  # type: ignore[misc]
        assert "write `tasks.lane(key).add_task(func, ...)`" in said
    assert tasks.tasks == []


# -- executors -----------------------------------------------------------------------------------------------


def test_lane_as_a_task() -> None:
    """`tasks.lane(key)` given to `add_task` is not a task: the error says how a function is given."""
    tasks = BackgroundTasks()
    assert refused(lambda: tasks.add_task(tasks.lane(1), 2)).startswith(
        "add_task takes a function and then its arguments, got <fifo_background._adder.TaskAdder"
    )
    assert tasks.tasks == []


def test_drain_timeout_of_none() -> None:
    """`drain_timeout=None` says what to write for a long drain."""
    for make in (SerialExecutor, functools.partial(OrderedBackgroundMiddleware, Starlette())):
        assert "write drain_timeout=3600.0" in refused(functools.partial(make, drain_timeout=None))


async def test_forgotten_await(events: list[Any]) -> None:
    """`submit` without `await` queues nothing, and Python's warning says what to write."""
    async with SerialExecutor() as executor:
        forgotten = [executor.submit(events.append, 1)]
        with pytest.warns(RuntimeWarning, match=r"write `job = await executor\.submit.*was never awaited"):
            forgotten.clear()
        assert executor.statistics().unfinished == 0
    assert events == []


async def test_executor_in_a_second_loop() -> None:
    """An executor that lives in another loop says to make one in each; what was submitted to it runs."""
    jobs: list[Job[int]] = []
    gate = anyio.Event()

    async def wait_for_gate() -> int:
        await gate.wait()
        return 1

    def in_thread() -> None:
        async def second_loop() -> None:
            jobs.append(executor.submit_nowait(wait_for_gate))  # from any thread
            for wait in (jobs[0].wait, executor.join, executor.__aenter__, executor.aclose):
                with pytest.raises(RuntimeError) as caught:
                    await wait()
                assert "Make an executor in each loop: `async with SerialExecutor() as executor:`" in str(
                    caught.value
                )

        anyio.run(second_loop)

    async with SerialExecutor() as executor:
        await executor.join()
        await anyio.to_thread.run_sync(in_thread)
        gate.set()
        assert await jobs[0] == 1


async def test_one_task_is_one_task(events: list[Any], log: Log, caplog: pytest.LogCaptureFixture) -> None:
    """A single task is "1 task", in the log and in errors."""
    caplog.set_level(logging.INFO, "fifo_background")
    async with SerialExecutor(max_waiting=1) as executor:
        executor.submit_nowait(events.append, 1)
        with pytest.raises(QueueFull, match=r"refused: 1 task waits already"):
            executor.submit_nowait(events.append, 2)
    assert log == ["INFO shutdown: draining 1 task, for at most 30 s (drain_timeout)"]
    assert events == [1]


def test_executor_of_a_mounted_app() -> None:
    """`executor_of` of a mounted app names the outer app's, and that of the request is the right one."""
    found: list[SerialExecutor] = []

    async def endpoint(request: Request) -> Response:
        found.append(executor_of(request))
        with pytest.raises(
            LookupError, match=r"mounted app, pass the outer app, or use `executor_of\(request\)`"
        ):
            executor_of(mounted)
        return Response()

    mounted = Starlette(routes=[Route("/", endpoint)])
    outer = Starlette(routes=[Mount("/inner", app=mounted)])
    outer.add_middleware(OrderedBackgroundMiddleware)
    with TestClient(outer) as client:
        assert client.get("/inner/").status_code == 200
        assert found == [executor_of(outer)]
