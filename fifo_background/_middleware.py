"""Pure ASGI: gives its app one executor per event loop, watches each response end, drains at shutdown."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any

from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fifo_background._executor import current, here
from fifo_background._job import Job
from fifo_background._log import logger
from fifo_background._loop import running_loop
from fifo_background._request import RESPONDED, TrackedRequest
from fifo_background._routes import asks_for_tasks
from fifo_background._serial import SerialExecutor
from fifo_background._settings import AfterFailure, OnError, Order, Settings
from fifo_background._threads import in_loop_of_caller
from fifo_background.exceptions import QueueFull

__all__ = ("OrderedBackgroundMiddleware", "executor_of")

_KEY = "fifo_background"


class OrderedBackgroundMiddleware:
    """Runs the background tasks of its app's requests one after the other, first in, first out.

    `order`: when a request takes its place in the line. "added" (default): at its first `add_task`;
    "arrived": when it reaches this middleware, so that handlers that run in threads or wait for something
    cannot reorder it; "responded": when its response has ended. Use "responded" for streaming and other
    long handlers.

    `arrives` (a function of the ASGI scope, for "arrived"): whether a request may add tasks, and so takes a
    place. Default: whether its FastAPI endpoint, or a dependency, asks for our class.

    `lane` (a function of the ASGI scope; its result is hashable): the lane for the tasks of a request that
    name none. Asked when the first of them is added, when `scope["path_params"]` is there; with "arrived"
    before routing. Default: one lane for all.

    `hold` (seconds, default 5.0): how long a request that has its place but does not respond may keep
    ready tasks behind it waiting; then it loses the place and takes a new one after its response.

    `wait` (default True): whether a request waits for its own tasks, as in Starlette. With False it ends
    as soon as they are in line, which frees its database session; dependencies with `yield` may then
    close before the tasks run.

    `on_error`: what a failed task means for the tasks after it, of the same request. "skip_rest" (default,
    Starlette's rule) or "run_all". Tasks of other requests always run.

    `after_failure`: "next" (default), or "stop": a lane stops when a task of it fails, until
    `executor.lane(key)` is told `retry_head()`, `skip_head()` or `clear()`; requests that wait for tasks in
    it get `LaneStopped`.

    `max_lanes_running` (default 16): how many lanes have a running task at once, at most; they take turns.

    `max_pending` (default None, no limit): how many tasks may wait; one more `add_task` raises `QueueFull`,
    which is answered with 503 and `Retry-After` if nobody handles it.

    `timeout` (seconds, default None): after it an async task is cancelled and fails with TimeoutError; a sync
    task cannot be stopped and is named in the log.

    `drain_timeout` (seconds, default 30.0): how long `lifespan.shutdown` waits for what is in line.

    Raises ValueError or TypeError for a setting that cannot be.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        order: Order = "added",
        hold: float = 5.0,
        wait: bool = True,
        on_error: OnError = "skip_rest",
        after_failure: AfterFailure = "next",
        lane: Callable[[Scope], Hashable] | None = None,
        arrives: Callable[[Scope], bool] | None = None,
        max_lanes_running: int = 16,
        max_pending: int | None = None,
        timeout: float | None = None,
        drain_timeout: float = 30.0,
    ) -> None:
        self.app: ASGIApp = app
        self.settings: Settings = Settings(
            order=order,
            hold=hold,
            wait=wait,
            on_error=on_error,
            after_failure=after_failure,
            lane=lane,
            arrives=arrives,
            max_lanes_running=max_lanes_running,
            max_pending=max_pending,
            timeout=timeout,
            drain_timeout=drain_timeout,
        )
        self._arrives: Callable[[Scope], bool] | None = None
        if order == "arrived":
            self._arrives = arrives or functools.partial(asks_for_tasks, app)
        self._executors: weakref.WeakKeyDictionary[object, SerialExecutor] = weakref.WeakKeyDictionary()
        self._latest: SerialExecutor | None = None
        self._warned: set[str] = set()

    @property
    def executor(self) -> SerialExecutor:
        """The app's executor in the running event loop; in a worker thread, in the loop that owns it."""
        return in_loop_of_caller(self._executor_here)

    def _executor_here(self) -> SerialExecutor:
        latest = self._latest
        if latest is not None and latest.is_current():
            return latest
        loop = running_loop()
        executor = self._executors.get(loop)
        if executor is None:
            executor = SerialExecutor.of_app(self.settings)
            executor.check_caller()
            self._executors[loop] = executor
        self._latest = executor
        return executor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind != "http" and kind != "websocket":
            await (self._lifespan if kind == "lifespan" else self.app)(scope, receive, send)
            return
        around = here()
        if around is not None and around is scope.get(_KEY):
            self._warn_once(
                "two middlewares",
                "a request passes two OrderedBackgroundMiddleware: the outer one's executor and settings "
                "are used, the inner one does nothing. Remove one of them.",
            )
            await self.app(scope, receive, send)
            return
        executor = self._latest
        if executor is None or not executor.is_current():
            executor = self._executor_here()
        request = scope[_KEY] = TrackedRequest(executor, self.settings, scope, send)
        if self._arrives is not None and kind == "http" and self._arrives(scope):
            request.arrive()
        if around is not None and isinstance(around, Job):
            request.inside = around
        request.token = current.set(request)
        try:
            await self.app(scope, receive, request.send)
        except BaseException as error:
            request.end(error)
            refusal = _refusal(error)
            if refusal is not None and request.unanswered:
                await _refuse(refusal, scope, receive, send)
                return
            if request.owes_websocket_tasks(error):
                await self._finish(request)
            raise
        finally:
            current.reset(request.token)
            scope[_KEY] = executor  # for what goes on after the request
        if request.handed_over is not None and request.stage is RESPONDED:
            self._warn_held_back(request)
        request.end(None)
        if request.handed_over is not None:
            await self._finish(request)

    async def _finish(self, request: TrackedRequest) -> None:
        """Wait for the tasks that were awaited before the response had ended."""
        batch = request.handed_over
        if batch is not None and self.settings.wait:
            await request.executor.wait(batch, request)
            batch.raise_first()

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        executor = self._executor_here()
        if not executor.is_open:  # the app is started again, in the same event loop
            self._latest = None
            del self._executors[running_loop()]
            executor = self._executor_here()

        async def drain_then_receive() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await executor.aclose()
            return message

        scope[_KEY] = executor
        await self.app(scope, drain_then_receive, send)

    def _warn_held_back(self, request: TrackedRequest) -> None:
        self._warn_once(
            "response held back",
            f"{request}: its tasks were awaited before its response had ended, by the handler itself or "
            "because something inside OrderedBackgroundMiddleware holds back the end of the response "
            "(BaseHTTPMiddleware before Starlette 1.7 does): they run after the response all the same, "
            "but dependencies with yield may close before them",
        )

    def _warn_once(self, of: str, text: str) -> None:
        if of not in self._warned:
            self._warned.add(of)
            logger.warning(text)


def _refusal(error: BaseException) -> QueueFull | None:
    """The `QueueFull` that a request failed of. The task group of a middleware inside ours may wrap it."""
    parts: Any = getattr(error, "exceptions", None)
    while isinstance(parts, tuple) and len(parts) == 1:
        error = parts[0]
        parts = getattr(error, "exceptions", None)
    return error if isinstance(error, QueueFull) else None


async def _refuse(error: QueueFull, scope: Scope, receive: Receive, send: Send) -> None:
    """What a client gets for a `QueueFull` that nobody handled."""
    headers = {"Retry-After": str(error.retry_after)}
    await PlainTextResponse("Service Unavailable", status_code=503, headers=headers)(scope, receive, send)


def _layers(app: Any) -> Iterator[Any]:
    """The app and what it wraps, from the outside in."""
    seen: set[int] = set()
    while app is not None and id(app) not in seen:
        seen.add(id(app))
        yield app
        app = getattr(app, "middleware_stack", None) or getattr(app, "app", None)


def executor_of(app_or_connection: Any) -> SerialExecutor:
    """The executor of an app, or of the app that handles a request or websocket, in the running event loop.

    In an anyio worker thread, that of the loop which owns the thread. Raises LookupError if no
    `OrderedBackgroundMiddleware` is found.
    """
    if isinstance(app_or_connection, HTTPConnection):
        request = app_or_connection.scope.get(_KEY)
        if isinstance(request, TrackedRequest):
            return request.executor
        if isinstance(request, SerialExecutor):  # the request has ended
            return request
        app_or_connection = app_or_connection.scope.get("app")
    for layer in _layers(app_or_connection):
        if isinstance(layer, OrderedBackgroundMiddleware):
            return layer.executor
    added: Any = getattr(app_or_connection, "user_middleware", ())
    if any(getattr(one, "cls", None) is OrderedBackgroundMiddleware for one in added):
        raise LookupError(
            f"{app_or_connection!r} has not been started yet: call `executor_of` in its lifespan, or later"
        )
    raise LookupError(
        f"no OrderedBackgroundMiddleware found in {app_or_connection!r}: "
        "add `app.add_middleware(OrderedBackgroundMiddleware)` before the app starts"
    )
