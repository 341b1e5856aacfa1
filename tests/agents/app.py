"""One app under one APM agent: prints as JSON what the agent saw of requests with background tasks.

    python -m tests.agents.app AGENT early|late fastapi|starlette SIDE

The agent starts before everything is imported, or after it. The sides:

    plain       Starlette's or FastAPI's background tasks
    swapped     ours, with nothing changed but the import
    ordered     ours, and the app has our middleware

and what has to look different from plain: plain tasks, but each function is

    lost        called in a thread of its own, out of the agent's sight
    skipped     not called
    renamed     another one, with another name
    reported    logged with its failure once more
"""

import functools
import inspect
import json
import logging
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import Context
from typing import Any

import anyio
import anyio.to_thread

from tests.agents.watch import AGENTS, Agent, trees
from tests.support.asgi import get

BROKEN = ("lost", "skipped", "renamed", "reported")
CROWD = 3  # requests at once


class Kit:
    """The classes of one side."""

    def __init__(self, side: str, framework: str) -> None:
        self.middleware: Any = None
        if side in ("swapped", "ordered"):
            import fifo_background

            self.task: Any = fifo_background.BackgroundTask
            self.tasks = self.injected = fifo_background.BackgroundTasks
            if side == "ordered":
                self.middleware = fifo_background.OrderedBackgroundMiddleware
            return
        import starlette.background

        self.task = starlette.background.BackgroundTask
        self.tasks = self.injected = starlette.background.BackgroundTasks
        if framework == "fastapi":
            import fastapi

            self.injected = fastapi.BackgroundTasks


class Tasks:
    """The functions that run as tasks, and what they and the endpoints did, in order."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.done: list[Any] = []

    def note(self, what: str) -> None:
        self.done.append((what, self.agent.here() is not None))

    def sync_task(self) -> None:
        with self.agent.mark("in sync_task"):
            self.note("sync_task")

    async def async_task(self) -> None:
        with self.agent.mark("in async_task"):
            await anyio.sleep(0.01)
            self.note("async_task")

    def sync_fails(self) -> None:
        self.note("sync_fails")
        raise ValueError("no")

    async def async_fails(self) -> None:
        self.note("async_fails")
        raise ValueError("no")


def broken(function: Callable[[], Any], side: str) -> Callable[[], Any]:
    """The function, broken as the side says: see above."""
    is_async = inspect.iscoroutinefunction(function)

    def away() -> None:
        call = functools.partial(anyio.run, function) if is_async else function
        with ThreadPoolExecutor(1) as threads:
            threads.submit(Context().run, call).result()

    @contextmanager
    def reports() -> Iterator[None]:
        try:
            yield
        except Exception:
            if side == "reported":
                logging.getLogger("app").exception("failed")
            raise

    def sync_other() -> None:
        with reports():
            if side == "lost":
                away()
            elif side != "skipped":
                function()

    async def async_other() -> None:
        with reports():
            if side == "lost":
                await anyio.to_thread.run_sync(away)
            elif side != "skipped":
                await function()

    other = async_other if is_async else sync_other
    return other if side == "renamed" else functools.wraps(function)(other)


def fillings(kit: Kit, do: Tasks) -> dict[str, Callable[[Any], None]]:
    """What the requests put into their tasks, by path."""

    def sync(tasks: Any) -> None:
        tasks.add_task(do.sync_task)

    def a_sync(tasks: Any) -> None:
        tasks.add_task(do.async_task)

    def many(tasks: Any) -> None:
        for task in (do.sync_task, do.async_task, do.async_task, do.sync_task):
            tasks.add_task(task)

    def failing(task: Callable[[], Any], tasks: Any) -> None:
        for one in (do.async_task, task, do.sync_task):
            tasks.add_task(one)

    def nested(tasks: Any) -> None:
        inner = kit.tasks()
        many(inner)
        tasks.add_task(do.sync_task)
        tasks.tasks.append(inner)
        tasks.add_task(do.async_task)

    def given(tasks: Any) -> None:
        """Entries put into the list, not by `add_task`."""
        tasks.tasks.extend([kit.task(do.sync_task), kit.task(do.async_task)])

    return {
        "sync": sync,
        "async": a_sync,
        "many": many,
        "sync_fails": functools.partial(failing, do.sync_fails),
        "async_fails": functools.partial(failing, do.async_fails),
        "nested": nested,
        "given": given,
        "crowd": many,
    }


def response(fill: Callable[[Any], None], kit: Kit, do: Tasks) -> Any:
    from starlette.responses import PlainTextResponse

    with do.agent.mark("in endpoint"):
        do.note("endpoint")
        tasks = kit.tasks()
        fill(tasks)
    return PlainTextResponse("ok", background=tasks)


def fastapi_app(kit: Kit, do: Tasks) -> Any:
    from fastapi import FastAPI
    from starlette.responses import PlainTextResponse

    app = FastAPI(openapi_url=None, **do.agent.fastapi_options())

    def add(name: str, fill: Callable[[Any], None]) -> None:
        @app.get(f"/{name}")
        async def endpoint(tasks: kit.injected) -> str:  # type: ignore[name-defined]
            with do.agent.mark("in endpoint"):
                do.note("endpoint")
                fill(tasks)
            return "ok"

        @app.get(f"/{name}/thread")
        def endpoint_in_a_thread(tasks: kit.injected) -> str:  # type: ignore[name-defined]
            with do.agent.mark("in endpoint"):
                do.note("endpoint")
                fill(tasks)
            return "ok"

    def add_with_response(name: str, fill: Callable[[Any], None]) -> None:
        @app.get(f"/{name}")
        async def endpoint() -> PlainTextResponse:
            return response(fill, kit, do)

        @app.get(f"/{name}/thread")
        def endpoint_in_a_thread() -> PlainTextResponse:
            return response(fill, kit, do)

    for name, fill in fillings(kit, do).items():
        # FastAPI's own class takes no list for an entry since 0.142; Starlette's does
        (add_with_response if name == "nested" else add)(name, fill)

    @app.get("/single")
    async def single() -> PlainTextResponse:
        return PlainTextResponse("ok", background=kit.task(do.sync_task))

    return app


def starlette_app(kit: Kit, do: Tasks) -> Any:
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    def routes(name: str, fill: Callable[[Any], None]) -> list[Route]:
        async def endpoint(request: Any) -> PlainTextResponse:
            return response(fill, kit, do)

        def endpoint_in_a_thread(request: Any) -> PlainTextResponse:
            return response(fill, kit, do)

        return [Route(f"/{name}", endpoint), Route(f"/{name}/thread", endpoint_in_a_thread)]

    async def single(request: Any) -> PlainTextResponse:
        return PlainTextResponse("ok", background=kit.task(do.sync_task))

    every = [route for name, fill in fillings(kit, do).items() for route in routes(name, fill)]
    return Starlette(routes=[*every, Route("/single", single)])


class Tracebacks(logging.Handler):
    """How often a failure was logged with its traceback, by whomever."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += bool(record.exc_info)


async def request(app: Any, path: str, raised: list[str | None]) -> None:
    """One request; its error is logged as a server does it."""
    exchange = await get(app, path)
    assert exchange.status == 200, exchange.status
    raised.append(exchange.error and repr(exchange.error))
    if exchange.error is not None:
        logging.getLogger("uvicorn.error").error("Exception in ASGI application", exc_info=exchange.error)


async def scenarios(app: Any, agent: Agent, do: Tasks, paths: list[str]) -> dict[str, Any]:
    tracebacks = Tracebacks()
    logging.getLogger().addHandler(tracebacks)
    seen = {}
    agent.seen()
    for path in paths:
        tracebacks.count = 0
        do.done.clear()
        raised: list[str | None] = []
        async with anyio.create_task_group() as group:
            for _ in range(CROWD if path == "/crowd" else 1):
                group.start_soon(request, app, path, raised)
        if path == "/crowd":
            do.done.sort()  # plain tasks of several requests have no order
        seen[path] = {
            "done": [list(what) for what in do.done],
            "raised": raised,
            "logged": tracebacks.count,
            "agent": trees(agent.seen()),
        }
    return seen


def main(name: str, when: str, framework: str, side: str) -> None:
    agent = AGENTS[name]()
    if when == "early":
        agent.start()
    kit = Kit(side, framework)
    make = {"fastapi": fastapi_app, "starlette": starlette_app}[framework]
    if when == "late":
        __import__(framework)
        agent.start()
    do = Tasks(agent)
    if side in BROKEN:
        for function in ("sync_task", "async_task", "sync_fails", "async_fails"):
            setattr(do, function, broken(getattr(do, function), side))
    app = make(kit, do)
    if kit.middleware is not None:
        app.add_middleware(kit.middleware)
    agent.instrument(app)
    paths = [path for name in fillings(kit, do) for path in (f"/{name}", f"/{name}/thread")]
    paths.remove("/crowd/thread")
    seen = anyio.run(scenarios, app, agent, do, [*paths, "/single"])
    assert ("fifo_background" in sys.modules) == (side in ("swapped", "ordered"))
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
