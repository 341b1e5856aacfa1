"""What every response of the status pages has: its headers, and JSON that takes any text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import anyio.lowlevel
from starlette.responses import Response

__all__ = ("HEADERS", "Json", "dumped", "dumped_in_steps", "secured")

# Bytes of JSON that are made in one turn of the event loop.
STEP = 100_000

# Nothing from elsewhere runs or is asked, nobody frames the page, nothing is kept. No CORS header on purpose.
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def dumped(content: Any) -> bytes:
    """JSON in ASCII: an error's message may hold half of a surrogate pair, which UTF-8 cannot say."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode("ascii")


async def dumped_in_steps(items: Iterable[Any]) -> bytes:
    """JSON of a list whose items may be large: other tasks run in between."""
    made: list[bytes] = []
    size = 0
    for item in items:
        if size > STEP:
            size = 0
            await anyio.lowlevel.checkpoint()
        made.append(dumped(item))
        size += len(made[-1])
    return b"[%b]" % b",".join(made)


class Json(Response):
    """A response of JSON, or of bytes that are JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return content if isinstance(content, bytes) else dumped(content)


def secured(response: Response) -> Response:
    """The response, with the headers that all have."""
    for name, value in HEADERS.items():
        response.headers[name] = value
    return response
