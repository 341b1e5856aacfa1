"""FastAPI injects our class where it is annotated, and its own elsewhere."""

import asyncio
import copy
import functools
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked

fastapi = pytest.importorskip("fastapi")
from fastapi import APIRouter, Depends, FastAPI, HTTPException, WebSocket  # noqa: E402
from starlette.background import BackgroundTasks as StarletteTasks  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

from fifo_background import (  # noqa: E402
    BackgroundTasks,
    OrderedBackgroundMiddleware,
    OrderedBackgroundTasks,
    SerialExecutor,
    executor_of,
)
from fifo_background._fastapi import dependants, hook  # noqa: E402
from tests.support.asgi import Client, Exchange, get  # noqa: E402
from tests.support.engine import ListEngine  # noqa: E402
from tests.support.log import Log  # noqa: E402


class Mine(BackgroundTasks):
    """A user's subclass."""


class MineToo(Mine):
    """A more derived one."""


class Other(BackgroundTasks):
    """A subclass that has nothing to do with `Mine`."""


def make_app() -> FastAPI:
    app = FastAPI()
    app.add_middleware(OrderedBackgroundMiddleware)
    return app


async def dependency(tasks: BackgroundTasks) -> Any:
    return tasks


async def deep(tasks: Annotated[Any, Depends(dependency)]) -> Any:
    return tasks


async def mine(tasks: Mine) -> Any:
    return tasks


class CallableClass:
    def __init__(self, tasks: BackgroundTasks) -> None:
        self.tasks = tasks


class CallableObject:
    async def __call__(self, tasks: BackgroundTasks) -> Any:
        return tasks


async def in_endpoint(tasks: BackgroundTasks) -> Any:
    return tasks


def in_def_endpoint(tasks: BackgroundTasks) -> Any:
    return tasks


async def annotated(tasks: Annotated[BackgroundTasks, "with a note"]) -> Any:
    return tasks


async def default_none(tasks: BackgroundTasks = None) -> Any:  # type: ignore[assignment]
    return tasks


async def in_dependency(tasks: Annotated[Any, Depends(dependency)]) -> Any:
    return tasks


async def in_deep_dependency(tasks: Annotated[Any, Depends(deep)]) -> Any:
    return tasks


async def in_class(tasks: Annotated[Any, Depends(CallableClass)]) -> Any:
    return tasks.tasks


async def in_object(tasks: Annotated[Any, Depends(CallableObject())]) -> Any:
    return tasks


async def beside_plain(tasks: fastapi.BackgroundTasks, _: Annotated[Any, Depends(deep)]) -> Any:
    return tasks


async def subclass(tasks: Mine) -> Any:
    return tasks


async def subclass_in_dependency(tasks: BackgroundTasks, _: Annotated[Any, Depends(mine)]) -> Any:
    return tasks


async def most_derived(tasks: MineToo, _: Annotated[Any, Depends(mine)]) -> Any:
    return tasks


def with_partial(tasks: BackgroundTasks, extra: int) -> Any:
    return tasks


CASES = [
    (in_endpoint, OrderedBackgroundTasks),
    (in_def_endpoint, OrderedBackgroundTasks),
    (annotated, OrderedBackgroundTasks),
    (default_none, OrderedBackgroundTasks),
    (in_dependency, OrderedBackgroundTasks),
    (in_deep_dependency, OrderedBackgroundTasks),
    (in_class, OrderedBackgroundTasks),
    (in_object, OrderedBackgroundTasks),
    (beside_plain, OrderedBackgroundTasks),
    (subclass, Mine),
    (subclass_in_dependency, Mine),
    (most_derived, MineToo),
    (functools.partial(with_partial, extra=1), OrderedBackgroundTasks),
]


@pytest.mark.parametrize(("endpoint", "wanted"), CASES)
@pytest.mark.parametrize("where", ["app", "router", "router twice", "mounted"])
async def test_injected(endpoint: Any, wanted: type, where: str) -> None:
    """Where our class is annotated, at any depth, FastAPI hands over an object of exactly that class."""
    if isinstance(endpoint, functools.partial):
        endpoint.__name__ = "partial"  # type: ignore[attr-defined]
    seen: list[Any] = []

    async def endpoint_of_request(tasks: Annotated[Any, Depends(endpoint)]) -> None:
        seen.append(tasks)

    app = make_app()
    router = APIRouter()
    router.get("/x")(endpoint_of_request)
    path = "/x"
    if where == "app":
        app.get("/x")(endpoint_of_request)
    elif where == "router":
        app.include_router(router)
    elif where == "router twice":
        middle = APIRouter()
        middle.include_router(router, prefix="/a")
        app.include_router(middle, prefix="/b")
        path = "/b/a/x"
    else:
        inner = FastAPI()
        inner.get("/x")(endpoint_of_request)
        app.mount("/m", inner)
        path = "/m/x"
    exchange = await get(app, path)
    assert (exchange.status, exchange.error) == (200, None)
    (tasks,) = seen
    assert isinstance(tasks, wanted)
    assert isinstance(tasks, fastapi.BackgroundTasks)
    assert type(tasks).__name__ == wanted.__name__


async def test_order(events: list[Any]) -> None:
    """Endpoint and dependency add to one object, whose tasks run in one position."""
    app = make_app()

    async def adds(tasks: BackgroundTasks) -> None:
        tasks.add_task(events.append, "dependency")

    @app.get("/{n}")
    async def endpoint(n: int, tasks: BackgroundTasks, _: Annotated[None, Depends(adds)]) -> None:
        tasks.add_task(events.append, n)

    async with anyio.create_task_group() as group:
        client = Client(app, group)
        exchanges = [await client.start(f"/{n}") for n in range(3)]
    assert [exchange.error for exchange in exchanges] == [None] * 3
    assert events == ["dependency", 0, "dependency", 1, "dependency", 2]


async def test_plain_stays_plain(log: Log) -> None:
    """An endpoint that does not ask for our class gets FastAPI's own, and one warning says what to write."""
    app = make_app()
    seen: list[Any] = []

    @app.get("/plain")
    async def plain(tasks: fastapi.BackgroundTasks) -> None:
        seen.append(type(tasks))

    @app.get("/starlette")
    async def starlette_plain(tasks: StarletteTasks) -> None:
        seen.append(type(tasks))

    @app.get("/none")
    async def none() -> None:
        seen.append(None)

    @app.get("/beside")
    async def beside(tasks: fastapi.BackgroundTasks, _: Annotated[Any, Depends(deep)]) -> None: ...

    without = FastAPI()
    without.get("/outside")(plain)
    await get(without, "/outside")
    seen.clear()
    assert log == [], "nothing is said where there is no middleware"
    for path in ("/plain", "/starlette", "/none", "/beside") * 2:
        assert (await get(app, path)).status == 200
    assert seen == [fastapi.BackgroundTasks, fastapi.BackgroundTasks, None] * 2
    assert log == [
        f"WARNING test_plain_stays_plain.<locals>.{name} injects FastAPI's own BackgroundTasks, whose tasks "
        "run unordered: write `from fifo_background import BackgroundTasks` where it is defined"
        for name in ("plain", "starlette_plain")
    ]


async def test_plain_with_an_engine(log: Log) -> None:
    """With an engine, too, an endpoint that injects FastAPI's own class is named once."""

    async def plain(tasks: fastapi.BackgroundTasks) -> None: ...

    app = FastAPI()
    app.get("/")(plain)
    app.add_middleware(OrderedBackgroundMiddleware, engine=ListEngine())
    for _ in range(2):
        assert (await get(app)).status == 200
    assert len(log) == 1
    assert "plain injects FastAPI's own BackgroundTasks" in log[0]


async def test_overrides() -> None:
    """`dependency_overrides` can bring our class in, and take it out."""
    app = make_app()
    seen: list[Any] = []

    async def nothing() -> None: ...

    @app.get("/plain")
    async def plain(tasks: fastapi.BackgroundTasks, _: Annotated[Any, Depends(nothing)]) -> None:
        seen.append(isinstance(tasks, OrderedBackgroundTasks))

    @app.get("/ours")
    async def ours(tasks: fastapi.BackgroundTasks, _: Annotated[Any, Depends(deep)]) -> None:
        seen.append(isinstance(tasks, OrderedBackgroundTasks))

    for overrides in ({}, {nothing: deep, deep: nothing}, {dependency: nothing}, {}):
        app.dependency_overrides = overrides
        await get(app, "/plain")
        await get(app, "/ours")
    assert seen == [False, True, True, False, False, False, False, True]


async def test_two_subclasses() -> None:
    """Two subclasses in one request, neither derived from the other: a TypeError that names both."""
    app = make_app()

    @app.get("/")
    async def endpoint(tasks: Other, _: Annotated[Any, Depends(mine)]) -> None: ...

    exchange = await get(app)
    assert isinstance(exchange.error, TypeError)
    assert "asks for both" in str(exchange.error)
    assert "Mine" in str(exchange.error)
    assert "Other" in str(exchange.error)


async def test_future_annotations() -> None:
    """Annotations that are strings are understood."""
    from tests.support import future_annotations

    app = make_app()
    app.include_router(future_annotations.router)
    future_annotations.seen.clear()
    await get(app, "/future")
    ((found, same),) = future_annotations.seen
    assert issubclass(found, OrderedBackgroundTasks)
    assert same


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the syntax is new in Python 3.12")
async def test_type_alias() -> None:
    """A `type` alias is looked through."""
    names: dict[str, Any] = {"BackgroundTasks": BackgroundTasks, "Annotated": Annotated}
    exec("type Tasks = Annotated[BackgroundTasks, 'note']", names)
    assert dependants._plain(names["Tasks"]) is BackgroundTasks


async def test_background_of_the_response(events: list[Any], log: Log) -> None:
    """`Response(background=...)` overrides the injected tasks; the dropped ones are named."""
    app = make_app()

    @app.get("/")
    async def endpoint(tasks: BackgroundTasks) -> Any:
        tasks.add_task(events.append, "injected")
        return fastapi.Response(background=StarletteTasks())

    assert (await get(app)).error is None
    assert events == []
    assert log == [
        "WARNING GET / ended without running 1 task: list.append 1-… in the default lane: "
        "its response did not carry them. "
        "The response had a background of its own, or was not given `background=tasks`, or an exception "
        "(HTTPException) became the response"
    ]


async def test_http_exception(events: list[Any], log: Log) -> None:
    """A handler that raises HTTPException drops its tasks and says so; one of a task reaches the server."""
    app = make_app()

    def fail() -> None:
        raise HTTPException(418)

    @app.get("/handler")
    async def handler(tasks: BackgroundTasks) -> None:
        tasks.add_task(events.append, 1)
        raise HTTPException(404)

    @app.get("/task")
    async def task(tasks: BackgroundTasks) -> None:
        tasks.add_task(fail)

    assert (await get(app, "/handler")).status == 404
    assert len(log) == 1
    assert "ended without running 1 task: list.append 1-…" in log[0]
    exchange = await get(app, "/task")
    assert isinstance(exchange.error, RuntimeError)
    assert "response already started" in str(exchange.error)
    assert isinstance(exchange.error.__cause__, HTTPException)
    assert len(log) == 1, "the failure was handed to the request that waited"


async def test_websocket(events: list[Any]) -> None:
    """A websocket endpoint's tasks, which FastAPI never runs, run when its connection has ended."""
    app = make_app()

    @app.websocket("/ws")
    async def endpoint(websocket: WebSocket, tasks: BackgroundTasks) -> None:
        await websocket.accept()
        tasks.add_task(events.append, "task")
        events.append("added")
        await websocket.close()
        await wait_all_tasks_blocked()
        events.append("closed")

    class Socket(Exchange):
        async def receive(self) -> dict[str, Any]:
            return {"type": "websocket.connect"}

    await Socket(app, "/ws", type="websocket", subprotocols=[]).run()
    assert events == ["added", "closed", "task"]


async def test_yield_dependency(events: list[Any]) -> None:
    """Attached tasks of a request keep FastAPI's own order with dependencies that yield."""
    from importlib.metadata import version

    app = make_app()

    async def session() -> Any:
        yield "session"
        events.append("closed")

    @app.get("/")
    async def endpoint(tasks: BackgroundTasks, _: Annotated[str, Depends(session)]) -> None:
        tasks.add_task(events.append, "task")

    assert (await get(app)).error is None
    number = tuple(map(int, version("fastapi").split(".")[:2]))
    before = (0, 106) <= number < (0, 118)
    assert events == (["closed", "task"] if before else ["task", "closed"])


async def test_detached_yield_dependency(events: list[Any]) -> None:
    """With `wait=False`, dependencies that yield may close before the tasks run."""
    app = FastAPI()
    app.add_middleware(OrderedBackgroundMiddleware, wait=False)
    gate = anyio.Event()

    async def session() -> Any:
        yield "session"
        events.append("closed")

    async def task() -> None:
        await gate.wait()
        events.append("task")

    @app.get("/")
    async def endpoint(tasks: BackgroundTasks, _: Annotated[str, Depends(session)]) -> None:
        tasks.add_task(task)

    assert (await get(app)).error is None
    gate.set()
    await executor_of(app).join()
    assert events == ["closed", "task"]


@pytest.mark.parametrize("first", ["fastapi", "fifo_background"])
def test_import_order(first: str) -> None:
    """Whichever is imported first, the hook takes."""
    second = {"fastapi": "fifo_background", "fifo_background": "fastapi"}[first]
    code = (
        f"import {first}, {second}, fastapi.routing as r;"
        "assert hasattr(r.solve_dependencies, '_fifo_background'); print('hooked')"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "hooked\n"


@pytest.mark.parametrize("fails", [False, True])
def test_unknown_fastapi(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FastAPI in which the hook would do nothing is refused, by its version and with FastAPI's error."""

    async def handle(request: Any) -> Any:
        if fails:
            raise ZeroDivisionError
        return fastapi.Response()

    monkeypatch.setattr(fastapi.routing, "get_request_handler", lambda **kwargs: handle)
    refused = f"FastAPI {fastapi.__version__} injects background tasks"
    with pytest.raises(RuntimeError, match=refused) as caught:
        hook._probe()
    assert isinstance(caught.value.__cause__, ZeroDivisionError) == fails
    before = vars(fastapi.routing)["solve_dependencies"]
    hook.install()
    assert vars(fastapi.routing)["solve_dependencies"] is before, "installed once"
    monkeypatch.setitem(vars(fastapi.routing), "solve_dependencies", before.__wrapped__)
    with pytest.raises(RuntimeError, match=r"Use FastAPI >= 0\.96, or a newer fifo-background"):
        hook.install()
    assert vars(fastapi.routing)["solve_dependencies"] is before.__wrapped__, "FastAPI is left as it was"


def test_wrapped_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrapper that somebody has put around FastAPI's function, or around ours, keeps the hook in place."""
    before = vars(fastapi.routing)["solve_dependencies"]

    @functools.wraps(before)
    def wrapper(**given: Any) -> Any:
        return before(**given)

    monkeypatch.setitem(vars(fastapi.routing), "solve_dependencies", wrapper)
    hook.install()
    assert vars(fastapi.routing)["solve_dependencies"] is wrapper
    hook._probe()


def test_imported_anew() -> None:
    """A package that is purged and imported again hooks FastAPI for its own classes, too."""
    code = """
import sys, anyio, fastapi, fifo_background
from tests.support.asgi import get

def app_of(package):
    app = fastapi.FastAPI()
    app.add_middleware(package.OrderedBackgroundMiddleware)

    def endpoint(tasks: package.BackgroundTasks) -> None:
        print(isinstance(tasks, package.BackgroundTasks))

    app.get("/")(endpoint)
    return app

first = fifo_background
for name in [name for name in sys.modules if name.split(".")[0] == "fifo_background"]:
    del sys.modules[name]
import fifo_background as second
assert first is not second
for package in (first, second):
    anyio.run(get, app_of(package))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert (done.stdout, done.stderr) == ("True\nTrue\n", "")


def test_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes found for routes are kept up to a limit."""
    monkeypatch.setattr(dependants, "_wanted", {})
    monkeypatch.setattr(dependants, "_WANTED_MAX", 2)
    routes = [fastapi.routing.APIRoute(f"/{n}", in_endpoint) for n in range(3)]
    for route in routes:
        assert dependants.class_wanted(route.dependant, None) is not None
    assert len(dependants._wanted) == 1


async def test_entry_of_a_plain_list(events: list[Any]) -> None:
    """One of our objects as an entry of FastAPI's own list runs, in order."""
    ours = BackgroundTasks()
    ours.add_task(events.append, 1)
    await fastapi.BackgroundTasks([ours])()
    assert events == [1]


@pytest.mark.parametrize("sync", [False, True])
async def test_span(sync: bool, events: list[Any]) -> None:
    """FastAPI's own span is opened around each task, names its function, and is current inside it."""
    pytest.importorskip("fastapi.telemetry")
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry import trace

    def task(n: int) -> int:
        events.append((n, trace.get_current_span().name))  # type: ignore[attr-defined]
        return n

    async def async_task(n: int) -> int:
        return task(n)

    app = FastAPI(telemetry={"tracer_provider": sdk.TracerProvider()})
    app.add_middleware(OrderedBackgroundMiddleware)
    jobs: list[Any] = []

    @app.get("/")
    async def endpoint(tasks: BackgroundTasks) -> None:
        jobs.extend(tasks.add_task(task if sync else async_task, n) for n in range(2))

    assert (await get(app)).error is None
    assert events == [(0, "fastapi.background_task"), (1, "fastapi.background_task")]
    assert [job.result() for job in jobs] == [0, 1]


def test_given_tasks() -> None:
    """A caller that passes `background_tasks` to FastAPI's function keeps that object."""
    with pytest.raises(TypeError, match="request"):  # FastAPI's own function was called, with what was given
        vars(fastapi.routing)["solve_dependencies"](dependant=None, background_tasks=StarletteTasks())


def test_executor_as_a_dependency() -> None:
    """`Depends(executor_of)` gives an endpoint its app's executor."""
    app = FastAPI()
    app.add_middleware(OrderedBackgroundMiddleware)

    @app.get("/")
    async def endpoint(executor: SerialExecutor = Depends(executor_of)) -> int:  # noqa: B008
        return await executor.lane("numbers").submit_nowait(int, "7")

    with TestClient(app) as client:
        assert client.get("/").json() == 7


class Both(BackgroundTasks, fastapi.BackgroundTasks):  # type: ignore[name-defined,misc]
    """As somebody writes it who wants FastAPI's class, too."""


def both(tasks: Both) -> str:
    kept.append(tasks)
    return type(tasks).__name__


kept: list[Any] = []


async def test_injected_objects_are_pickled_by_what_is_annotated(events: list[Any]) -> None:
    """A copy, by pickle or by `copy`, of what FastAPI injects is what the endpoint is annotated with."""

    def endpoint(tasks: Mine) -> None:
        tasks.add_task(print, end="")
        copies.extend([copy.copy(tasks), copy.deepcopy(tasks), pickle.loads(pickle.dumps(tasks))])

    copies: list[Any] = []
    app = FastAPI()
    app.get("/")(endpoint)
    app.add_middleware(OrderedBackgroundMiddleware)
    assert (await get(app)).error is None
    for one in copies:
        assert isinstance(one, Mine)
        assert isinstance(one, fastapi.BackgroundTasks)
        assert [task.func for task in one.tasks] == [print]
        await one()


async def test_class_that_is_fastapis_too() -> None:
    """A class that derives from ours and from FastAPI's is injected itself."""
    app = FastAPI()
    app.get("/")(both)
    app.add_middleware(OrderedBackgroundMiddleware)
    kept.clear()
    assert (await get(app)).error is None
    assert [type(tasks) for tasks in kept] == [Both]


def test_fastapi_that_suspends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A FastAPI that needs an event loop to inject what an endpoint asks for is hooked all the same."""
    solve = vars(fastapi.routing)["solve_dependencies"]
    looped: list[Any] = []

    async def suspends(**given: Any) -> Any:
        await _Turn()
        looped.append(asyncio.get_running_loop())
        return await solve(**given)

    monkeypatch.setitem(vars(fastapi.routing), "solve_dependencies", suspends)
    hook._probe()
    assert len(looped) == 1


class _Turn:
    """Lets the event loop have a turn."""

    def __await__(self) -> Any:
        yield


def test_endpoint_that_returns_the_job(events: list[Any]) -> None:
    """`return tasks.add_task(...)` in an endpoint answers null, as with FastAPI's own class."""
    app = FastAPI()

    @app.get("/")
    async def endpoint(tasks: BackgroundTasks):  # type: ignore[no-untyped-def]  # no response model
        return tasks.add_task(events.append, 1)

    app.add_middleware(OrderedBackgroundMiddleware)
    response = TestClient(app).get("/")
    assert (response.status_code, response.json(), events) == (200, None, [1])
