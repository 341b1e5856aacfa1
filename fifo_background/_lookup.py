"""Finds the middleware of an app, which need not have been started, its engine, and its executor."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from starlette.requests import HTTPConnection

from fifo_background._engine import Engine, EngineRequest
from fifo_background._executor import SerialExecutor
from fifo_background._middleware import OrderedBackgroundMiddleware
from fifo_background._request import SCOPE_KEY, TrackedRequest
from fifo_background._run.per_loop import Life

__all__ = ("added_to", "engine_of", "executor_of", "is_ordered", "layers")


def layers(app: Any) -> Iterator[Any]:
    """The app and what it wraps, from the outside in."""
    seen: set[int] = set()
    while app is not None and id(app) not in seen:
        seen.add(id(app))
        yield app
        app = getattr(app, "middleware_stack", None) or getattr(app, "app", None)


def added_to(app: Any) -> list[dict[str, Any]]:
    """The settings of each `OrderedBackgroundMiddleware` that the app gets when it is started."""
    added: Any = getattr(app, "user_middleware", ())
    # older Starlettes have no arguments in between
    return [settings for kind, *_, settings in added if kind is OrderedBackgroundMiddleware]


def is_ordered(app: Any) -> bool:
    """Whether an app has the middleware, or will once it is started."""
    return any(isinstance(layer, OrderedBackgroundMiddleware) or added_to(layer) for layer in layers(app))


def engine_of(app: Any) -> Engine | None:
    """What keeps the tasks of an app, or will once it is started; None if they are in memory."""
    for layer in layers(app):
        if isinstance(layer, OrderedBackgroundMiddleware) and layer._engine is not None:
            return layer._engine
        for settings in added_to(layer):
            if settings.get("engine") is not None:
                engine: Engine = settings["engine"]
                return engine
    return None


def executor_of(app_or_connection: Any) -> SerialExecutor:
    """The executor of an app, or of the app that handles a request or websocket.

    As a FastAPI dependency: `executor: SerialExecutor = Depends(executor_of)`. It never waits. Raises
    LookupError if no `OrderedBackgroundMiddleware` is found, and RuntimeError in a thread where the app has
    executors in two event loops, or none yet.

    With an engine it returns the engine's executor, whose operations are awaited. A type checker cannot know
    that: `engine.executor` is the same object, with its type.
    """
    asked = app_or_connection
    if isinstance(app_or_connection, HTTPConnection):
        found = app_or_connection.scope.get(SCOPE_KEY)
        if isinstance(found, TrackedRequest):
            return SerialExecutor._of_runner(found.runner)
        if isinstance(found, EngineRequest):
            stored: SerialExecutor = found.executor
            return stored
        if isinstance(found, Life):  # the request has ended
            return SerialExecutor._of_runner(found.runner)
        app_or_connection = app_or_connection.scope.get("app")
    for layer in layers(app_or_connection):
        if isinstance(layer, OrderedBackgroundMiddleware):
            return layer.executor
    if added_to(app_or_connection):
        raise LookupError(
            f"{app_or_connection!r} has not been started yet: call `executor_of` in its lifespan, or later"
        )
    raise LookupError(
        f"no OrderedBackgroundMiddleware found in {app_or_connection!r}: add "
        "`app.add_middleware(OrderedBackgroundMiddleware)` before the app starts"
        + (
            ""
            if isinstance(asked, HTTPConnection)
            else ". For a mounted app, pass the outer app, or use `executor_of(request)`"
        )
    )


# FastAPI looks at the annotation of a dependency's parameter.
vars(executor_of)["__signature__"] = inspect.Signature(
    [
        inspect.Parameter(
            "app_or_connection", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=HTTPConnection
        )
    ]
)
