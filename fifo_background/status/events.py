"""Server-sent events: the same for every client, with its own cursor into the history of ended jobs.

Written to `send` directly: a generator with a cancel scope around its `yield` would fail. A stream ends by
itself, so that a server that stops need not wait for it; the client comes back with `Last-Event-ID`.
"""

from __future__ import annotations

import re
from contextlib import suppress

import anyio
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fifo_background import ExecutorClosed
from fifo_background.status.executors import ShownExecutor
from fifo_background.status.waiting import until_disconnected
from fifo_background.status.watch import Picture, Tick, Watch

__all__ = ("EventStream",)

# Seconds that the last message may take with a client that does not read.
LAST_MESSAGE = 1.0

_EVENT_ID = re.compile(r"([A-Za-z0-9_.-]{1,100})-([0-9]{1,18})")


class EventStream(Response):
    """Ticks, until the client leaves, the executor closes, or the time is over."""

    media_type = "text/event-stream"

    def __init__(
        self,
        request: Request,
        executor: ShownExecutor,
        watch: Watch,
        seconds: float,
        errors: bool,
        operate: bool,
    ) -> None:
        # not by Response's own, which gives a Content-Length
        self.status_code = 200
        self.background: BackgroundTask | None = None  # FastAPI sets it: what a dependency has added
        # compressed, as by older versions of Starlette's middleware, the events would come at the end
        self.init_headers({"X-Accel-Buffering": "no", "Content-Encoding": "identity"})
        self._executor = executor
        self._watch = watch
        self._seconds = seconds
        self._errors = errors
        self._operate = operate
        self._last_id = request.headers.get("last-event-id") or request.query_params.get("after")
        self._cursor = -1  # how many ended jobs the client has heard of
        self._seen = 0  # the number of the picture that it was sent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await send(start)
        left = False
        if scope["method"] != "HEAD":
            with suppress(OSError):  # newer servers raise it when the client is gone
                left = await self._stream(receive, send)
        if not left:
            with suppress(OSError), anyio.move_on_after(LAST_MESSAGE):
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        if self.background is not None:
            await self.background()

    async def _stream(self, receive: Receive, send: Send) -> bool:
        """Send ticks. True if the client has left."""
        self._watch.join()
        try:
            with anyio.move_on_after(self._seconds):
                return await self._until_left(receive, send)
        finally:
            self._watch.leave()
        return False

    async def _until_left(self, receive: Receive, send: Send) -> bool:
        left = False
        async with anyio.create_task_group() as group:

            async def listen() -> None:
                nonlocal left
                await until_disconnected(receive)
                left = True
                group.cancel_scope.cancel()

            group.start_soon(listen)
            with suppress(ExecutorClosed, OSError):
                await self._ticks(send)
            group.cancel_scope.cancel()
        return left

    async def _ticks(self, send: Send) -> None:
        async def write(text: bytes) -> None:
            await send({"type": "http.response.body", "body": text, "more_body": True})

        await write(b"retry: 1000\n\n")
        if self._last_id is not None and not await self._resume(self._last_id):
            await write(_RESET)
        while True:
            picture = await self._watch.after(self._executor, self._seen)
            if picture is None:
                await write(_UNCHANGED)
                continue
            self._seen = picture.number
            await write(await self._tick(picture))
            while self._cursor < picture.ended:
                await write(await self._tick(picture))

    async def _resume(self, last_id: str) -> bool:
        """Go on behind the tick of that id. False if that cannot be done without losing jobs."""
        found = _EVENT_ID.fullmatch(last_id)
        if not found:
            return False
        epoch, last = await self._executor.last_end()
        if found[1] != epoch or int(found[2]) > last:
            return False
        if await self._executor.ended(int(found[2]), 1) is None:
            return False
        self._cursor = int(found[2])
        return True

    async def _tick(self, picture: Picture) -> bytes:
        """The next tick of this client. It begins with a reset if the client has missed too much."""
        after = picture.ended if self._cursor < 0 else self._cursor
        reset, tick = b"", await self._tick_after(picture, after)
        if tick is None:
            reset, tick = _RESET, await self._tick_after(picture, picture.ended)
        assert tick is not None
        self._cursor = tick.ended
        return reset + tick.event

    async def _tick_after(self, picture: Picture, after: int) -> Tick | None:
        return await picture.tick(self._executor, after, errors=self._errors, operate=self._operate)


_RESET = b"event: reset\ndata: {}\n\n"
# No comment, which a browser would keep from the page: it has to know that the connection is alive.
_UNCHANGED = b"event: unchanged\ndata: {}\n\n"
