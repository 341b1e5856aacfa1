"""Pure ASGI: an app whose tasks an engine keeps, its requests and its lifespan."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fifo_background._engine import Engine, EngineRequest
from fifo_background._refused import refusal_in, refuse
from fifo_background._request import SCOPE_KEY
from fifo_background._run.current import current

__all__ = ("call_with_engine",)


async def call_with_engine(engine: Engine, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """What `OrderedBackgroundMiddleware` does for an app that has an engine."""
    kind = scope["type"]
    if kind == "lifespan":
        await _lifespan(engine, app, scope, receive, send)
        return
    # of two middlewares, the outer one keeps the tasks
    if (kind != "http" and kind != "websocket") or isinstance(scope.get(SCOPE_KEY), EngineRequest):
        await app(scope, receive, send)
        return
    request = scope[SCOPE_KEY] = engine.request(scope, send)
    token = current.set(request)
    try:
        await app(scope, receive, request.send)
    except BaseException as error:
        await request.end(error)
        refusal = refusal_in(error)
        if refusal is None or not request.unanswered:
            raise
    else:
        await request.end(None)
        return
    finally:
        current.reset(token)
    await refuse(refusal, scope, receive, send)


async def _lifespan(engine: Engine, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    is_open = False

    async def close_then_receive() -> Message:
        nonlocal is_open
        message = await receive()
        if message["type"] == "lifespan.startup" and not is_open:
            try:
                await engine.open()
            except Exception as error:  # servers take an app that only raises for one without a lifespan
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                raise
            is_open = True
        if message["type"] == "lifespan.shutdown" and is_open:
            is_open = False
            await engine.close()
        return message

    try:
        await app(scope, close_then_receive, send)
    finally:
        if is_open:
            await engine.close()
