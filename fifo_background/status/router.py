"""`router(...)`: the endpoints for FastAPI, in OpenAPI. With its models, the only file that needs it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fifo_background._request import leave_queue
from fifo_background.status.access import Authorize
from fifo_background.status.api import ADD_SLASH, ENDPOINTS, Endpoint, Status, other_method
from fifo_background.status.openapi import described

__all__ = ("router",)


def router(
    *,
    dependencies: Sequence[Any] = (),
    authorize: Authorize | None = None,
    show_results: bool = False,
    show_errors: bool | None = None,
    stream_seconds: float = 8.0,
    prefix: str = "",
) -> APIRouter:
    """The tasks of the app that includes it: `app.include_router(router(prefix="/tasks"))`.

    `request.url_for("tasks:job", id=job.id)` is the URL of one job, as with a mounted `StatusApp`.

    `dependencies`: FastAPI's, for each of its endpoints; what they raise, the app answers. They do not open
    it to others: where they decide who may, give `authorize=lambda request: True`, too.

    `prefix`: FastAPI's. For `authorize`, `show_results`, `show_errors` and `stream_seconds` see `StatusApp`.

    Raises ValueError or TypeError for an invalid setting.
    """
    status = Status(authorize, show_results, show_errors, stream_seconds)
    made = APIRouter(prefix=prefix, tags=["tasks"], dependencies=list(dependencies))
    endpoints = (ADD_SLASH, *ENDPOINTS) if prefix else ENDPOINTS
    for endpoint in endpoints:
        made.route_class = _route_class(status, endpoint)
        function, name = _function(status, endpoint), f"tasks:{endpoint.name}"
        arguments = {"response_model": None, "name": name, **described(endpoint.name)}
        made.add_api_route(endpoint.path, function, methods=[endpoint.method], **arguments)
        if endpoint.method == "GET":
            made.add_api_route(
                endpoint.path,
                function,
                methods=["HEAD"],
                response_model=None,
                name=name,
                include_in_schema=False,
            )
    made.route_class = APIRoute
    return made


def _function(status: Status, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return await status.answer(endpoint, request)

    return answer


def _route_class(status: Status, endpoint: Endpoint) -> type[APIRoute]:
    """A class, as FastAPI makes the routes, and makes them anew where a router is included."""
    other = other_method(endpoint)

    class StatusRoute(APIRoute):
        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            leave_queue(scope)  # before the dependencies, which may take their time
            if scope["method"] in (self.methods or ()):
                await super().handle(scope, receive, send)
                return
            response = await status.answer(other, Request(scope, receive, send))
            await response(scope, receive, send)

    return StatusRoute
