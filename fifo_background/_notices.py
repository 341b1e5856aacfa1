"""What a middleware tells the log once: where the set-up of its app, or server, loses order or tasks."""

from __future__ import annotations

from collections.abc import Callable

from fifo_background import _log
from fifo_background._processes import several_processes

__all__ = ("Notices",)


class Notices:
    """The notices of one middleware."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def _say_once(self, say: Callable[[str], None], text: str) -> None:
        if self._first(text):
            say(text)

    def _first(self, what: str) -> bool:
        """Whether this is asked for the first time."""
        is_first = what not in self._said
        self._said.add(what)
        return is_first

    def two_middlewares(self) -> None:
        self._say_once(
            _log.warn,
            "a request passes two OrderedBackgroundMiddleware: the outer one's executor and settings are "
            "used, the inner one does nothing. Remove one of them.",
        )

    def no_lifespan(self) -> None:
        self._say_once(
            _log.inform,
            "OrderedBackgroundMiddleware has seen no lifespan: shutdown does not drain its executor. Add "
            "it to the outermost app by `app.add_middleware(OrderedBackgroundMiddleware)`, and run the "
            "server with `--lifespan on`",
        )

    def nobody_asks(self, asks: Callable[[], bool]) -> None:
        """`asks`: whether a route of the app asks for this package's class, looked for once."""
        if self._first("arrived") and not asks():
            _log.warn(
                'order="arrived": no FastAPI route asks for BackgroundTasks of fifo_background, so no '
                "request takes its position when it arrives. Give "
                "`may_add_tasks=lambda scope: scope['path'] == ...`, or use order=\"added\""
            )

    def other_processes(self) -> None:
        seen = several_processes()
        if seen is not None:
            self._say_once(
                _log.warn,
                f"this app runs in several processes ({seen}). Each has a queue of its own, so order is kept "
                "within each process only. Start one worker; or install `fifo-background[postgres]`, and all "
                "processes keep one order: "
                "`app.add_middleware(OrderedBackgroundMiddleware, engine=PostgresEngine(dsn))`",
            )

    def held_back(self, request: object) -> None:
        if self._first("held back"):
            _log.warn(
                f"{request}: its tasks were awaited before its response had ended, by the handler itself or "
                "because something inside OrderedBackgroundMiddleware holds back the end of the response "
                "(BaseHTTPMiddleware before Starlette 1.7 does). They run after the response, "
                "but dependencies with yield may close before them"
            )
