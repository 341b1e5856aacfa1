"""Pure ASGI: an app whose tasks an engine keeps, its requests and its lifespan."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fifo_background._engine import Engine, EngineRequest
from fifo_background._refused import refusal_in, refuse
from fifo_background._request import SCOPE_KEY
from fifo_background._run.current import current, current_party
from fifo_background._settings import Settings

__all__ = ("lifespan_with_engine", "request_with_engine")


async def request_with_engine(
    engine: Engine, settings: Settings, app: ASGIApp, scope: Scope, receive: Receive, send: Send
) -> None:
    """What `OrderedBackgroundMiddleware` does with a request of an app that has an engine."""
    if isinstance(scope.get(SCOPE_KEY), EngineRequest):  # one that its handler passes on
        await app(scope, receive, send)
        return
    request = scope[SCOPE_KEY] = engine.request(scope, send)
    request.passes(settings, current_party())
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


async def lifespan_with_engine(
    engine: Engine, app: ASGIApp, scope: Scope, receive: Receive, send: Send
) -> None:
    """What it does with a lifespan."""
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
