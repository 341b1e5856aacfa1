"""Which requests may add tasks, told before they are routed: those whose endpoint asks for our class.

Finds the endpoint by the routes' own `matches`, as a router does, and calls nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from starlette.routing import Match
from starlette.types import ASGIApp, Scope

from fifo_background._fastapi.dependants import class_wanted

__all__ = ("any_asks_for_tasks", "asks_for_tasks")


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
            return _wants_ours(route)
        inner = _routes_of(getattr(getattr(route, "starlette_route", None) or route, "app", None))
        return inner is not None and _asks(inner, {**scope, **child_scope})
    return False


def _wants_ours(route: Any) -> bool:
    try:
        return (
            class_wanted(route.dependant, getattr(route, "dependency_overrides_provider", None)) is not None
        )
    except TypeError:  # two unrelated classes: FastAPI's own call will say so
        return True


def any_asks_for_tasks(app: ASGIApp, scope: Scope) -> bool:
    """Whether any route of the app asks for our class."""
    look = [_routes_of(app) or _routes_of(scope.get("app")) or ()]
    seen: set[int] = set()
    while look:
        for route in _flat(look.pop()):
            if id(route) in seen:
                continue
            seen.add(id(route))
            if getattr(route, "dependant", None) is not None and _wants_ours(route):
                return True
            inner = _routes_of(getattr(getattr(route, "starlette_route", None) or route, "app", None))
            if inner is not None:
                look.append(inner)
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
