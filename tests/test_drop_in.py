"""Starlette's own class is the oracle: `OrderedBackgroundTasks` does the same with a list of tasks."""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.background import BackgroundTask as StarletteTask
from starlette.background import BackgroundTasks as StarletteTasks
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse

import fifo_background
from tests.support.apps import make_app
from tests.support.asgi import get

STARLETTE = (StarletteTask, StarletteTasks)
OURS = (fifo_background.BackgroundTask, fifo_background.BackgroundTasks)
RESPONSES: list[Callable[..., Response]] = [
    lambda background: Response("x", background=background),
    lambda background: PlainTextResponse("x", background=background),
    lambda background: JSONResponse("x", background=background),
    lambda background: RedirectResponse("/", background=background),
    lambda background: StreamingResponse(iter("x"), background=background),
]
KINDS = ["sync", "async", "sync fails", "async fails"]


async def run(classes: tuple[Any, Any], kinds: tuple[str, ...], make: Callable[..., Response]) -> Any:
    """The events of one request with a task of each kind, and how it ended."""
    one, many = classes
    events: list[Any] = []

    def sync(n: int, *, kind: str) -> None:
        events.append((n, kind))
        if "fails" in kind:
            raise ValueError(n)

    async def asynchronous(n: int, *, kind: str) -> None:
        sync(n, kind=kind)

    async def handler(request: Request) -> Response:
        funcs = [asynchronous if "async" in kind else sync for kind in kinds]
        if len(kinds) == 1:
            return make(one(funcs[0], 0, kind=kinds[0]))
        tasks = many([StarletteTask(funcs[0], 0, kind=kinds[0])])
        for n in range(1, len(kinds)):
            tasks.add_task(funcs[n], n, kind=kinds[n])
        return make(tasks)

    exchange = await get(make_app(handler), "/handler")
    return events, exchange.status, repr(exchange.error), [m["type"] for m in exchange.messages]


@pytest.mark.parametrize("make", RESPONSES)
async def test_every_response(make: Callable[..., Response]) -> None:
    """Every response class runs the same tasks, in the same order, and ends in the same way."""
    for kinds in itertools.chain(itertools.product(KINDS), itertools.product(KINDS, KINDS)):
        assert await run(OURS, kinds, make) == await run(STARLETTE, kinds, make)


async def test_every_three() -> None:
    """Any three tasks of a request run, fail and are skipped as in Starlette."""
    for kinds in itertools.product(KINDS, repeat=3):
        assert await run(OURS, kinds, RESPONSES[0]) == await run(STARLETTE, kinds, RESPONSES[0])


def test_attributes() -> None:
    """Constructors and attributes are Starlette's."""
    task = fifo_background.BackgroundTask(print, 1, end="")
    assert (task.func, task.args, task.kwargs, task.is_async) == (print, (1,), {"end": ""}, False)
    tasks = fifo_background.BackgroundTasks([task])
    tasks.add_task(print, 2, sep="")
    assert tasks.tasks[0] is task
    assert (tasks.tasks[1].func, tasks.tasks[1].args, tasks.tasks[1].kwargs) == (print, (2,), {"sep": ""})
    assert fifo_background.BackgroundTasks(None).tasks == []
    assert fifo_background.BackgroundTasks((task,)).tasks == [task]


def callables() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Everything that may be added with `(1, key="value")`, each with its name."""

    def function(n: int, key: str) -> None: ...

    async def coroutine_function(n: int, *, key: str) -> None: ...

    def marked() -> None: ...

    class Both:
        def method(self, n: int, key: str) -> None: ...

        async def coroutine_method(self, *args: int, **kwargs: str) -> None: ...

        @classmethod
        async def of_class(cls, n: int, key: str) -> None: ...

        @staticmethod
        async def static(n: int, key: str) -> None: ...

        async def __call__(self, *args: Any) -> None: ...

    marked._is_coroutine = getattr(asyncio.coroutines, "_is_coroutine", None)  # type: ignore[attr-defined]
    if hasattr(inspect, "markcoroutinefunction"):
        inspect.markcoroutinefunction(marked)
    yield "function", function
    yield "coroutine function", coroutine_function
    yield "generator function", lambda n, key: (yield)
    yield "lambda", lambda *args, **kwargs: None
    yield "wrapper", functools.wraps(coroutine_function)(lambda: None)
    yield "marked", marked
    yield "partial", functools.partial(functools.partial(coroutine_function))
    yield "method", Both().method
    yield "coroutine method", Both().coroutine_method
    yield "marked method", types.MethodType(marked, 1)
    yield "method of a callable", types.MethodType(Both(), 1)
    yield "class method", Both.of_class
    yield "static method", Both.static
    yield "callable", Both()
    yield "class", Both
    yield "builtin", print
    yield "builtin method", [].append


@pytest.mark.parametrize("func", [pytest.param(func, id=kind) for kind, func in callables()])
def test_entries(func: Callable[..., Any]) -> None:
    """An entry of `.tasks` has the attributes that Starlette gives it, whatever the function is."""
    theirs, ours = StarletteTasks(), fifo_background.BackgroundTasks()
    theirs.add_task(func, 1, key="value")
    job: Any = ours.add_task(func, 1, key="value")
    (entry,) = ours.tasks
    assert type(entry) is fifo_background.OrderedBackgroundTask
    assert {name: value for name, value in vars(entry).items() if name != "_fifo_job"} == vars(
        theirs.tasks[0]
    )
    assert vars(entry).get("_fifo_job") is job


def test_constructor_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starlette's constructor, when somebody has replaced it, sees every task that is made."""
    made: list[Any] = []
    original: Any = StarletteTask.__init__

    def replaced(self: Any, func: Any, *args: Any, **kwargs: Any) -> None:
        original(self, func, *args, **kwargs)
        made.append(func)

    monkeypatch.setattr(StarletteTask, "__init__", replaced)
    tasks = fifo_background.BackgroundTasks()
    tasks.add_task(print, 1)
    tasks.add_task(test_attributes)
    assert made == [print, test_attributes]


async def test_arguments_belong_to_the_function() -> None:
    """All keywords belong to the function, except Starlette's own (self, func)."""
    seen: list[Any] = []

    def function(**kwargs: Any) -> None:
        seen.append(kwargs)

    given = {"lane": 1, "timeout": 2, "key": 3, "entry": 4, "order": 5, "task": 6, "args": 7, "kwargs": 8}
    any_name = {"func": 0, "self": 9, **given}
    tasks = fifo_background.BackgroundTasks()
    tasks.add_task(function, **given)
    tasks.lane(1).add_task(function, **any_name)
    tasks.options(timeout=1).add_task(function, **any_name)
    await tasks()
    async with fifo_background.SerialExecutor() as executor:
        executor.submit_nowait(function, **any_name)
        await executor.submit(function, **any_name)
    assert sorted(seen, key=len) == [given, *[any_name] * 4]


async def test_middleware_of_starlette() -> None:
    """Two `BaseHTTPMiddleware` inside the middleware do not change the outcome of one request."""

    class Base(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            response: Response = await call_next(request)
            return response

    results = []
    for one, inside in itertools.product((STARLETTE[0], OURS[0]), ([], [Middleware(Base)] * 2)):
        events: list[Any] = []

        async def handler(request: Request, one: Any = one, events: list[Any] = events) -> Response:
            return Response("x", background=one(events.append, 1))

        exchange = await get(make_app(handler, inside=inside), "/handler")
        results.append((events, exchange.status, exchange.error))
    assert results == [([1], 200, None)] * 4


async def test_names_of_a_subclass() -> None:
    """A subclass may use any name for what it keeps and does: it works as one of Starlette's class."""
    names = [
        "request",
        "state",
        "jobs",
        "job",
        "entry",
        "outer",
        "unclaimed",
        "awaited_by",
        "spans",
        "around",
    ]
    methods = ["run", "add", "orphan", "make_job", "jobs_of", "become", "become_part", "run_inline"]
    results = []
    for one, many in (STARLETTE, OURS):
        events: list[Any] = []

        def use(self: Any) -> None:
            for name in names:
                setattr(self, f"_{name}", name)

        async def method(self: Any, *args: Any, events: list[Any] = events) -> None:
            events.append((self.func, *(getattr(self, f"_{name}") for name in names), *args))

        def init(self: Any, *args: Any) -> None:
            type(self).__mro__[1].__init__(self, *args)
            use(self)
            if not args:
                self.func = "own"

        own: dict[str, Any] = {"__init__": init, **{f"_{name}": method for name in methods}}
        Tasks, Task = type("Tasks", (many,), own), type("Task", (one,), own)

        async def handler(
            request: Request, Tasks: Any = Tasks, Task: Any = Task, events: list[Any] = events
        ) -> Response:
            tasks = Tasks()
            for n, name in enumerate(methods):
                tasks.add_task(getattr(tasks, f"_{name}"), n)
            inner = Tasks()
            inner.add_task(inner._run, "inner")
            tasks.add_task(inner)
            for one_list in (tasks, inner):
                one_list.tasks.append(Task(events.append, "entry"))
            return Response(background=tasks)

        exchange = await get(make_app(handler), "/handler")
        results.append((events, exchange.status, exchange.error))
    assert results[1] == results[0]
    assert len(results[0][0]) == len(methods) + 3
    assert results[0][1:] == (200, None)
