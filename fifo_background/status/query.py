"""Reads what a client asks for: parameters of the query, the cursor, `Prefer`, a small body."""

from __future__ import annotations

import json
import math
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from contextlib import aclosing
from typing import Any

from starlette.requests import ClientDisconnect, Request

from fifo_background import JobState
from fifo_background.status.problems import Problem

__all__ = (
    "GROUPS",
    "LONGEST_TEXT",
    "LONGEST_WAIT",
    "MOST",
    "Query",
    "cursor_of",
    "head_in_body",
    "preferred_wait",
)

MOST = 200
LONGEST_WAIT = 30.0
LONGEST_TEXT = 500
LARGEST_BODY = 10_000

# States by one word.
GROUPS: dict[str, frozenset[JobState]] = {
    "waiting": frozenset({JobState.PENDING, JobState.QUEUED}),
    "not_run": frozenset({JobState.SKIPPED, JobState.CANCELLED, JobState.SUPERSEDED, JobState.DROPPED}),
    "ended": frozenset(state for state in JobState if state.ended),
}
STATES = {state.value: frozenset({state}) for state in JobState} | GROUPS

_CURSOR = re.compile(r"[A-Za-z0-9_-]{1,40}")
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
_WAIT = re.compile(r"""\s*wait\s*=\s*"?([0-9]{1,9})"?\s*(?:;.*)?""", re.IGNORECASE | re.DOTALL)


def _wrong(name: str, detail: str) -> Problem:
    return Problem(422, f"{name}: {detail}", parameter=name)


class Query:
    """The parameters of a request's query; each method raises a problem that names the parameter."""

    def __init__(self, request: Request) -> None:
        self._given = request.query_params

    def text(self, name: str) -> str | None:
        values = self._given.getlist(name)
        if len(values) > 1:
            raise _wrong(name, "is given twice")
        if values and len(values[0]) > LONGEST_TEXT:
            raise _wrong(name, f"has more than {LONGEST_TEXT} characters")
        return values[0] if values else None

    def limit(self) -> int:
        given = self.text("limit")
        if given is None:
            return 50
        if not re.fullmatch("[0-9]{1,9}", given) or not 1 <= int(given) <= MOST:
            raise _wrong("limit", f"must be a number from 1 to {MOST}")
        return int(given)

    def states(self) -> frozenset[JobState] | None:
        """The states that are asked for, one parameter for each or with commas between them."""
        given = self._given.getlist("state")
        if not given:
            return None
        names = [name for value in given for name in value.split(",")]
        if not STATES.keys() >= set(names):
            raise _wrong("state", f"must be one or more of: {', '.join(STATES)}")
        return frozenset().union(*(STATES[name] for name in names))

    def wait(self) -> float | None:
        given = self.text("wait")
        if given is None:
            return None
        try:
            seconds = float(given) if given.isascii() and "_" not in given else math.nan
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds <= LONGEST_WAIT:
            raise _wrong("wait", f"must be a number of seconds from 0 to {LONGEST_WAIT:g}")
        return seconds

    def before(self) -> int | None:
        """The number of the last job of the page before, by its cursor."""
        given = self.text("cursor")
        if given is None:
            return None
        number = _decoded(given)
        if number is None:
            raise Problem(400, "cursor: must be the `next` of a page", parameter="cursor")
        return number


def cursor_of(number: int) -> str:
    """The cursor of the page behind the job of that number. Clients are to make nothing of it."""
    return urlsafe_b64encode(b"n%d" % number).rstrip(b"=").decode()


def _decoded(cursor: str) -> int | None:
    if not _CURSOR.fullmatch(cursor):
        return None
    try:
        text = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except ValueError:
        return None
    if text[:1] != "n" or not _NUMBER.fullmatch(text[1:]):
        return None
    number = int(text[1:])
    return number if cursor_of(number) == cursor else None  # one number has one cursor


def preferred_wait(request: Request) -> int | None:
    """The seconds of `Prefer: wait=20` (RFC 7240), at most as many as may be. None if it asks for nothing."""
    for preference in ",".join(request.headers.getlist("prefer")).split(","):
        found = _WAIT.fullmatch(preference)
        if found:
            return min(int(found[1]), int(LONGEST_WAIT))
    return None


async def head_in_body(request: Request) -> str | None:
    """The job that the client takes for the head: `{"head": id}`. None for an empty body."""
    given = await _json_of(request)
    if given is None:
        return None
    if not isinstance(given, dict) or not isinstance(given.get("head"), (str, type(None))):
        raise Problem(422, 'The body must be empty, or {"head": the id of a job}.')
    head: str | None = given.get("head")
    return head


async def _json_of(request: Request) -> Any:
    body = b""
    try:
        async with aclosing(request.stream()) as parts:
            async for part in parts:
                body += part
                if len(body) > LARGEST_BODY:
                    raise Problem(413, f"The body has more than {LARGEST_BODY} bytes.")
    except ClientDisconnect:
        raise Problem(400, "The body did not arrive.") from None
    if not body.strip():
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise Problem(400, "The body is not JSON.") from None
