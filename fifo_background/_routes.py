"""Which requests may add tasks, told before they are routed: those whose endpoint asks for our class.

Finds the endpoint by the routes' own `matches`, as a router does, and calls nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from starlette.routing import Match
from starlette.types import ASGIApp, Scope

__all__ = ("asks_for_tasks", "wants_ours")

# Whether what FastAPI solves for a route, a `dependant`, asks for our class. Set once, by `_fastapi`.
wants_ours: Callable[[Any, Any], bool] = lambda dependant, provider: False  # noqa: E731


def asks_for_tasks(app: ASGIApp, scope: Scope) -> bool:
    """Whether the endpoint of `app` that will handle the request asks for our class.

    False for what cannot be seen: an endpoint without FastAPI, an app that hides its routes.
    """
    routes = _routes_of(app)
    if routes is None:
        routes = _routes_of(scope.get("app"))
    return routes is not None and _asks(routes, dict(scope))


def _asks(routes: Iterable[Any], scope: Scope) -> bool:
    for route in _flat(routes):
        try:
            match, child_scope = route.matches(scope)
        except Exception:  # a foreign route; the router will meet the same error, and report it
            return False
        if match is not Match.FULL:
            continue
        dependant = getattr(route, "dependant", None)
        if dependant is not None:
            return wants_ours(dependant, getattr(route, "dependency_overrides_provider", None))
        inner = _routes_of(getattr(getattr(route, "starlette_route", None) or route, "app", None))
        return inner is not None and _asks(inner, {**scope, **child_scope})
    return False


def _flat(routes: Iterable[Any]) -> Iterator[Any]:
    """The routes, with those of included routers, which newer versions of FastAPI keep apart, in place."""
    for route in routes:
        candidates = getattr(route, "effective_candidates", None)
        if candidates is None:
            yield route
        else:
            yield from _flat(candidates())


def _routes_of(app: Any) -> Iterable[Any] | None:
    """The routes of an app, inside whatever is wrapped around it."""
    seen: set[int] = set()
    while app is not None and id(app) not in seen:
        seen.add(id(app))
        routes = getattr(app, "routes", None)
        if isinstance(routes, (list, tuple)):
            return routes
        app = getattr(app, "app", None)
    return None
