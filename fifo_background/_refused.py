"""The 503 that a client gets for a `QueueFull`, or a `StoreError`, that nobody handled."""

from __future__ import annotations

from typing import Any

from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from fifo_background._run.groups import GROUPS
from fifo_background.exceptions import Refused

__all__ = ("refusal_in", "refuse")


def refusal_in(error: BaseException) -> Refused | None:
    """What says that a client gets 503. A task group of an inner middleware may wrap it."""
    cause: Any = error
    while issubclass(type(cause), GROUPS) and len(cause.exceptions) == 1:
        cause = cause.exceptions[0]
    refusal: Refused | None = cause if issubclass(type(cause), Refused) else None
    return refusal


async def refuse(error: Refused, scope: Scope, receive: Receive, send: Send) -> None:
    headers = {"Retry-After": str(error.retry_after)}
    await PlainTextResponse("Service Unavailable", status_code=503, headers=headers)(scope, receive, send)
