"""The one hook into FastAPI: a parameter annotated with our class gets an object of that class.

FastAPI builds what it injects itself, whatever subclass is annotated. Its `solve_dependencies` takes a
`background_tasks` to use instead; the hook passes one of the annotated class, for that app and route only.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import fastapi
import fastapi.encoders
import fastapi.routing

from fifo_background import _log
from fifo_background._background import OrderedBackgroundTasks
from fifo_background._core.job import Job
from fifo_background._engine import EngineRequest
from fifo_background._fastapi.dependants import class_wanted, wants_plain
from fifo_background._request import TrackedRequest
from fifo_background._run.current import current_party

__all__ = ("install",)

# Endpoints that were warned of: by `id(dependant)`, with the dependant, so that no other can get its id.
_warned: dict[int, Any] = {}


def install() -> None:
    """Wrap `fastapi.routing.solve_dependencies`, once for each import of this module.

    Raises RuntimeError, and leaves FastAPI as it was, if FastAPI does not take it.
    """
    original = fastapi.routing.__dict__["solve_dependencies"]
    inner = original
    while inner is not None:
        if getattr(inner, "_fifo_background", None) is _warned:  # somebody may have wrapped ours since
            return
        inner = getattr(inner, "__wrapped__", None)

    @functools.wraps(original)
    def solve_dependencies(**given: Any) -> Any:
        if given.get("background_tasks") is None:
            dependant, provider = given["dependant"], given.get("dependency_overrides_provider")
            wanted = class_wanted(dependant, provider)
            if wanted is not None:
                tasks = given["background_tasks"] = wanted()
                tasks._fifo_in_app_of(given["request"].scope)
            elif wants_plain(dependant, provider):
                _warn_of_plain(dependant)
        return original(**given)

    vars(solve_dependencies)["_fifo_background"] = _warned
    fastapi.routing.__dict__["solve_dependencies"] = solve_dependencies
    try:
        _probe()
    except BaseException:
        fastapi.routing.__dict__["solve_dependencies"] = original
        raise
    # `return tasks.add_task(...)` in an endpoint is null in JSON, as with FastAPI's own class
    vars(fastapi.encoders)["ENCODERS_BY_TYPE"][Job] = _nothing


def _nothing(job: object) -> None: ...


def _warn_of_plain(dependant: Any) -> None:
    if id(dependant) in _warned or not isinstance(current_party(), (TrackedRequest, EngineRequest)):
        return
    _warned[id(dependant)] = dependant
    endpoint = getattr(dependant.call, "__qualname__", dependant.call)
    _log.warn(
        f"{endpoint} injects FastAPI's own BackgroundTasks, whose tasks run unordered: write `from "
        "fifo_background import BackgroundTasks` where it is defined"
    )


def _probe() -> None:
    """Drive one request through FastAPI. Refuse a FastAPI in which the hook would silently do nothing."""
    given: list[object] = []

    async def endpoint(tasks: OrderedBackgroundTasks) -> Any:
        given.append(tasks)
        response: Any = fastapi.Response()
        response.background = nothing  # its own: the tasks are not awaited
        return response

    async def nothing() -> None: ...

    endpoint.__annotations__.update({"tasks": OrderedBackgroundTasks, "return": fastapi.Response})
    app = fastapi.FastAPI(openapi_url=None)
    app.add_api_route("/", endpoint, response_model=None)
    app.user_middleware.clear()  # agents trace what passes theirs, or the app itself
    stack = app.build_middleware_stack()
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "client": None,
        "server": None,
        "app": app,
        "state": {},
    }

    async def send(message: Any) -> None: ...

    error: BaseException | None = None
    try:
        _drive(lambda: stack(scope, cast(Any, None), send))
    except Exception as raised:
        error = raised
    if not given or not isinstance(given[0], OrderedBackgroundTasks):
        raise RuntimeError(
            f"fifo-background does not know how FastAPI {fastapi.__version__} injects background tasks, "
            "and would leave them unordered. Use FastAPI >= 0.96, or a newer fifo-background."
        ) from error


def _drive(make: Any) -> None:
    """Run a coroutine to its end: without an event loop, unless something in it needs one."""
    coroutine: Coroutine[Any, Any, None] = make()
    try:
        coroutine.send(None)
    except StopIteration:
        return
    except Exception:
        pass
    else:
        coroutine.close()
    with ThreadPoolExecutor(1) as thread:  # a loop may run in this one
        thread.submit(lambda: asyncio.run(make())).result()
