"""What every response of the status pages has: its headers, and JSON that takes any text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

__all__ = ("HEADERS", "Json", "dumped", "secured")

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


class Json(Response):
    """A response of JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return dumped(content)


def secured(response: Response) -> Response:
    """The response, with the headers that all have."""
    for name, value in HEADERS.items():
        response.headers[name] = value
    return response
