"""Errors as RFC 9457 problem details."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fifo_background.status.responses import Json

__all__ = ("Failed", "Problem", "closed", "no_method", "no_page", "refused")


class Problem(Exception):
    """A request that is not answered as it asks; `more` are members of the problem beside the usual ones."""

    def __init__(
        self, status: int, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(detail)
        self.status: int = status
        self.detail: str = detail
        self.headers: Mapping[str, str] = headers or {}
        self.more: dict[str, Any] = more

    @classmethod
    def of(cls, error: HTTPException) -> Problem:
        """What a user's `authorize` raised, with its headers (a `WWW-Authenticate`, say)."""
        return cls(error.status_code, str(error.detail), headers=error.headers)

    def response(self) -> Response:
        try:
            title = HTTPStatus(self.status).phrase
        except ValueError:  # a user's own status
            title = "Error"
        content = {"type": "about:blank", "title": title, "status": self.status, "detail": self.detail}
        response = Json(content | self.more, self.status, media_type="application/problem+json")
        for name, value in self.headers.items():
            response.headers[name] = value
        return response


def no_page() -> Problem:
    return Problem(404, "There is no such page. The endpoints are listed in the documentation of StatusApp.")


def no_method(method: str, allowed: str) -> Problem:
    """A 405, with the methods that the path has."""
    return Problem(405, f"{method} is not a method of this path: use {allowed}.", headers={"Allow": allowed})


def closed() -> Problem:
    return Problem(503, "The executor is closed, or its app is shutting down.", headers={"Retry-After": "1"})


def refused(error: Exception) -> Problem | None:
    """The 503 for an error that says when to come back, as those of an engine do."""
    retry_after = getattr(error, "retry_after", None)
    return (
        None if retry_after is None else Problem(503, str(error), headers={"Retry-After": str(retry_after)})
    )


class Failed(Response):
    """Tells the client nothing about an error that nobody expected, and raises it: the server logs it."""

    def __init__(self, error: Exception) -> None:
        told = Problem(500, "Something failed. The log of the server says what.").response()
        super().__init__(told.body, told.status_code, media_type=told.media_type)
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(scope, receive, send)
        raise self._error
