"""`StatusApp`: the endpoints for Starlette, and for any app that mounts ASGI apps."""

from __future__ import annotations

from starlette import routing
from starlette.requests import Request
from starlette.routing import BaseRoute, Route, Router
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketClose

from fifo_background._request import leave_queue
from fifo_background.status.access import Authorize
from fifo_background.status.api import ADD_SLASH, ENDPOINTS, NOTHING, Endpoint, Status, other_method

__all__ = ("StatusApp",)

# Whether a mounted app gets the path whole, as ASGI says. Starlette below 0.33 takes the root off.
PATH_HAS_ROOT = hasattr(routing, "get_route_path")


class StatusApp:
    """The tasks of the app that it is mounted in: `app.mount("/tasks", StatusApp(), name="tasks")`.

    The page is at `/tasks/`; `request.url_for("tasks:job", id=job.id)` is the URL of one job. The app needs
    `OrderedBackgroundMiddleware`. Requests to it take no position in the queue.

    `authorize` (a function of the request, sync or async): whether the client may look and operate: True or
    "operate", "read" (it may only look), or False. It is called in the event loop. What it raises as
    `HTTPException` is the answer. Default: only clients on this machine may, by a loopback address, the Host
    localhost, 127.0.0.1 or [::1], and no `Forwarded`, `X-Forwarded-*`, `Via`, `X-Real-IP` or other header
    of a proxy. A proxy on this machine that sends none and changes the Host cannot be told apart: give
    `authorize` behind one.

    `show_results` (default False): whether it shows the results of jobs, which the middleware keeps only with
    `results=True`.

    `show_errors` (default None: to clients on this machine): whether it shows the messages of errors. The
    types of errors are shown always; arguments and tracebacks never.

    `stream_seconds` (default 8.0): after this time an event stream ends, and its client comes back. A
    server that stops waits that long for clients that read.

    Raises ValueError or TypeError for an invalid setting.
    """

    def __init__(
        self,
        *,
        authorize: Authorize | None = None,
        show_results: bool = False,
        show_errors: bool | None = None,
        stream_seconds: float = 8.0,
    ) -> None:
        self._status = Status(authorize, show_results, show_errors, stream_seconds)
        routes = [Route(one.path, _Path(self._status, one), name=one.name) for one in ENDPOINTS]
        self._router = Router(routes, redirect_slashes=False, default=self._no_route)

    @property
    def routes(self) -> list[BaseRoute]:
        """Its routes, by which `url_for` finds them."""
        return self._router.routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await WebSocketClose()(scope, receive, send)
            return
        leave_queue(scope)
        if scope["type"] == "http" and PATH_HAS_ROOT:
            scope = {**scope, "path": _with_root(scope["path"], scope.get("root_path", ""))}
        await self._router(scope, receive, send)

    async def _no_route(self, scope: Scope, receive: Receive, send: Send) -> None:
        at_mount = scope["path"] in ("", scope.get("root_path", ""))
        endpoint = ADD_SLASH if at_mount and scope["method"] in ("GET", "HEAD") else NOTHING
        await _Path(self._status, endpoint)(scope, receive, send)


def _with_root(path: str, root: str) -> str:
    """The path with all of its root.

    A proxy may have taken a part of it off, as with `FastAPI(root_path="/api")`: then `path` begins with the
    rest of `root`, where this app is mounted, and Starlette finds nothing in a mount.
    """
    if not path.startswith(root):
        for start, letter in enumerate(root):
            rest = root[start:]
            if letter == "/" and (path == rest or path.startswith(f"{rest}/")):
                return root[:start] + path
    return path


class _Path:
    """Answers all methods of one path. No function, as an app's handlers of errors are around functions."""

    def __init__(self, status: Status, endpoint: Endpoint) -> None:
        self._status = status
        self._endpoint = endpoint
        self._other = endpoint if endpoint is NOTHING else other_method(endpoint)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        endpoint = self._endpoint if method == self._endpoint.method else self._other
        response = await self._status.answer(endpoint, Request(scope, receive, send))
        await response(scope, receive, send)
