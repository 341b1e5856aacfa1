"""Pure ASGI: gives its app one executor per event loop, watches each response end, drains at shutdown."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from importlib.util import find_spec
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fifo_background._core.state import CLOSED
from fifo_background._engine import Engine
from fifo_background._executor import SerialExecutor
from fifo_background._notices import Notices
from fifo_background._refused import refusal_in, refuse
from fifo_background._request import RESPONDED, SCOPE_KEY, TrackedRequest
from fifo_background._run.backends.api import running_loop
from fifo_background._run.current import current, current_party
from fifo_background._run.per_loop import Life, PerLoop
from fifo_background._settings import (
    NOT_GIVEN,
    AfterFailure,
    NotGiven,
    Order,
    RestAfterFailure,
    Settings,
    check_engine,
)
from fifo_background._with_engine import lifespan_with_engine, request_with_engine
from fifo_background.exceptions import Refused

if find_spec("fastapi") is not None:
    from fifo_background._fastapi.routes import any_asks_for_tasks, asks_for_tasks
else:

    def asks_for_tasks(app: ASGIApp, scope: Scope) -> bool:
        return False

    def any_asks_for_tasks(app: ASGIApp, scope: Scope) -> bool:
        return False


__all__ = ("OrderedBackgroundMiddleware",)


class OrderedBackgroundMiddleware:
    """Runs the background tasks of its app's requests one after the other, first in, first out.

    `engine` (default None: in memory, in this process): what keeps the tasks instead, such as a
    `PostgresEngine`, for the same order over several processes and hosts.

    `order`: when a request takes its position in the queue. "added" (default): at its first `add_task`.
    "arrived": when it reaches this middleware, so that handlers that run in threads, or wait for something,
    cannot change the order. "responded": when its response has ended. Use "responded" for streaming and other
    long handlers.

    `may_add_tasks` (a function of the ASGI scope, for "arrived"): whether a request may add tasks, and so
    takes a position. Default: whether its FastAPI endpoint, or a dependency, has a parameter of this
    package's class.

    `lane_key` (a function of the ASGI scope; its result is hashable): the lane for those tasks of a request
    that name no lane. It is called when the first of them is added: `scope["path_params"]` is there then.
    With "arrived" it is called before routing. Default: one lane for all.

    `hold_timeout` (seconds, default 5.0): how long ready tasks wait for a request ahead that has not
    responded. Then the request loses its position, and takes a new one after its response.

    `wait` (default True): whether a request waits for its own tasks, as in Starlette. With False it ends as
    soon as they are queued, which frees its database session; dependencies with `yield` may then close before
    the tasks run.

    `rest_after_failure`: "skip" (default, as in Starlette): a failed task skips the later tasks of its
    request in the same lane. "run": they run. It does not affect other requests.

    `lane_after_failure`: "continue" (default), or "stop": a lane stops when a task of it fails, until you
    call `retry_head()`, `skip_head()` or `clear()` on `executor.lane(key)`. Requests that wait for tasks in
    it get `LaneStopped`.

    `max_lanes_running` (default 16): how many lanes may run a task at the same time. They take turns.

    `max_waiting` (default None, no limit): how many tasks may wait; one more `add_task` raises `QueueFull`.
    If nobody handles it, the client gets 503 with `Retry-After`.

    `timeout` (seconds, default None): after this time an async task is cancelled and fails with TimeoutError;
    a sync task cannot be stopped, and the log names it.

    `drain_timeout` (seconds, default 30.0): how long `lifespan.shutdown` waits for queued tasks. uvicorn
    first waits for attached requests under its own `--timeout-graceful-shutdown` (no limit by default).

    `history` (default 1000): how many ended jobs `executor.jobs()` and the status page still know; 0 switches
    it off. `history_seconds` (default 86400.0, a day): for how long.

    `results` (default False): whether the history keeps the results of tasks that are JSON, for the status
    page. `results_bytes` (default 10,000,000): how much memory all kept results may take; a single one at
    most a tenth of it, 1,000,000 bytes, and 5,000 values.

    `log_arguments` (default False): whether the log shows the arguments of tasks that did not run.

    Raises ValueError or TypeError for an invalid setting.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        engine: Engine | None = None,
        order: Order | NotGiven = NOT_GIVEN,
        hold_timeout: float | NotGiven = NOT_GIVEN,
        wait: bool | NotGiven = NOT_GIVEN,
        rest_after_failure: RestAfterFailure = "skip",
        lane_after_failure: AfterFailure = "continue",
        lane_key: Callable[[Scope], Hashable] | None = None,
        may_add_tasks: Callable[[Scope], bool] | NotGiven | None = NOT_GIVEN,
        max_lanes_running: int | NotGiven = NOT_GIVEN,
        max_waiting: int | None = None,
        timeout: float | None = None,
        drain_timeout: float = 30.0,
        history: int = 1000,
        history_seconds: float = 86_400.0,
        results: bool = False,
        results_bytes: int = 10_000_000,
        log_arguments: bool = False,
    ) -> None:
        self.app: ASGIApp = app
        given: dict[str, Any] = {
            name: value
            for name, value in {
                "order": order,
                "hold_timeout": hold_timeout,
                "wait": wait,
                "may_add_tasks": may_add_tasks,
                "max_lanes_running": max_lanes_running,
            }.items()
            if value is not NOT_GIVEN
        }
        if engine is not None:
            given = {"wait": False, **given}
        settings = Settings(
            **given,
            rest_after_failure=rest_after_failure,
            lane_after_failure=lane_after_failure,
            lane_key=lane_key,
            max_waiting=max_waiting,
            timeout=timeout,
            drain_timeout=drain_timeout,
            history=history,
            history_seconds=history_seconds,
            results=results,
            results_bytes=results_bytes,
            log_arguments=log_arguments,
        )
        if engine is not None:
            check_engine(engine)
        self.settings: Settings = settings if engine is None else engine.bind(settings, frozenset(given))
        self._engine: Engine | None = engine
        self._may_add: Callable[[Scope], bool] | None = None
        if settings.order == "arrived":
            self._may_add = settings.may_add_tasks or functools.partial(asks_for_tasks, app)
        self._lives = PerLoop(self.settings)
        self._latest: Life | None = None
        self._notices = Notices()

    @property
    def executor(self) -> SerialExecutor:
        """The app's executor in the running event loop; in a thread without a loop, the only one there is.

        Raises RuntimeError in a thread while the app has executors in two loops, or none.
        """
        if self._engine is not None:
            found: SerialExecutor = self._engine.executor
            return found
        try:
            running_loop()
        except RuntimeError:
            return SerialExecutor._of_runner(self._lives.in_thread().runner)
        return SerialExecutor._of_runner(self._life().runner)

    def _life(self) -> Life:
        life = self._latest
        if life is None or not life.runner.is_current():
            life = self._latest = self._lives.here()
        return life

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind != "http" and kind != "websocket":
            await (self._lifespan if kind == "lifespan" else self.app)(scope, receive, send)
            return
        made_by, outer = current_party(), scope.get(SCOPE_KEY)
        # with the settings of this middleware, it is a request that the handler made with a copy of its scope
        if outer is not None and outer is made_by and outer.settings is not self.settings:
            self._notices.two_middlewares()
            await self.app(scope, receive, send)
            return
        if self._engine is not None:
            await request_with_engine(self._engine, self.settings, self.app, scope, receive, send)
            return
        life = self._life()
        if not life.looked:
            self._look_once(life, scope)
        request = scope[SCOPE_KEY] = TrackedRequest(life.runner, self.settings, scope, send, made_by)
        if self._may_add is not None and kind == "http" and self._may_add(scope):
            request.arrive()
        refusal: Refused | None = None
        token = current.set(request)
        try:
            await self.app(scope, receive, request.send)
        except BaseException as error:
            request.end(error)
            refusal = refusal_in(error)
            if refusal is None or not request.unanswered:
                if request.ends_normally(error):
                    await self._finish(request)
                raise
        finally:
            current.reset(token)
            scope[SCOPE_KEY] = life  # for what goes on after the request
        if refusal is not None:
            await refuse(refusal, scope, receive, send)  # outside of the request's context
            return
        held_back = bool(request.handed_over) and request.stage is RESPONDED
        request.end(None)
        if held_back:
            self._notices.held_back(request)
        if request.handed_over is not None:
            await self._finish(request)

    async def _finish(self, request: TrackedRequest) -> None:
        """Wait for the tasks that were awaited before the response had ended."""
        if request.handed_over:
            await request.runner.waits.attached(request.handed_over, request)

    # -- the lifespan ----------------------------------------------------------------------------------------

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._engine is not None:
            await lifespan_with_engine(self._engine, self.app, scope, receive, send)
            return
        life = self._life()
        if life.ends and not life.lifespans:  # it was closed by hand
            self._end_life(life)
            life = self._life()
        while life.ends:  # the app is started again, before its last end is over
            waiter = life.runner.backend.waiter()
            life.waiters.append(waiter)
            await waiter
            life = self._life()
        life.lifespans += 1
        life.open_lifespans += 1
        is_open = True
        takes_part = False  # an app without a lifespan raises, or returns, at once

        def shut_down() -> bool:
            """Whether this is the last lifespan that is told to shut down."""
            nonlocal is_open
            if is_open:
                is_open = False
                life.open_lifespans -= 1
                return not life.open_lifespans
            return False

        async def drain_then_receive() -> Message:
            nonlocal takes_part
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                takes_part = True
                if shut_down():
                    await life.runner.closing.aclose()
            return message

        async def note_start(message: Message) -> None:
            nonlocal takes_part
            takes_part = True
            if message["type"] == "lifespan.startup.complete":
                life.saw_lifespan = True
                self._notices.other_processes()
            await send(message)

        scope[SCOPE_KEY] = life
        try:
            await self.app(scope, drain_then_receive, note_start)
        except BaseException as error:
            takes_part = takes_part or not issubclass(type(error), Exception)  # it was cancelled
            raise
        finally:
            shut_down()
            life.lifespans -= 1
            if takes_part and not life.lifespans:
                self._end_life(life)

    def _end_life(self, life: Life) -> None:
        """The last lifespan has ended: what is left runs no more, and the next use gets a fresh executor."""
        life.is_over, self._latest = True, None
        if life.runner.scheduler.status is not CLOSED:  # its startup failed, or it was cancelled
            life.runner.closing.stop("the lifespan ended before its shutdown: dropped")
        for waiter in life.waiters:
            life.runner.backend.wake(waiter)

    def _look_once(self, life: Life, scope: Scope) -> None:
        life.looked = True
        if not life.saw_lifespan:
            self._notices.other_processes()
            self._notices.no_lifespan()
        if self._may_add is not None and self.settings.may_add_tasks is None:
            self._notices.nobody_asks(lambda: any_asks_for_tasks(self.app, scope))
