"""What OpenAPI says of each endpoint: its parameters, answers and errors."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fifo_background.status.events import EventStream
from fifo_background.status.models import JobPage, JobStatus, LanePage, LaneStatus, TaskSummary
from fifo_background.status.query import LONGEST_TEXT, LONGEST_WAIT, MOST, STATES

__all__ = ("described",)

PROBLEM: dict[str, Any] = {
    "title": "Problem",
    "description": "Problem details (RFC 9457).",
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
    },
}
WHY = {
    400: "What was sent cannot be read.",
    403: "The client may not do this.",
    404: "There is no job or lane with this id.",
    405: "The path has no such method.",
    409: "It cannot be done now; the detail says why.",
    413: "The body is too large.",
    422: "A parameter is out of its range; `parameter` names it.",
    500: "The app is not set up, or something failed.",
    503: "The executor is closed.",
}
ALWAYS = (403, 405, 500, 503)
RETRY_AFTER: dict[str, Any] = {
    "description": "Seconds, while the job has not ended.",
    "schema": {"type": "integer"},
}
HEAD_BODY: dict[str, Any] = {
    "required": False,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {
                    "head": {
                        "type": "string",
                        "description": "The job that you take for the head of the lane.",
                    }
                },
            }
        }
    },
}


def _query(name: str, description: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}


def _text(name: str, description: str) -> dict[str, Any]:
    return _query(name, description, type="string", maxLength=LONGEST_TEXT)


def _path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _header(name: str, description: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": {"type": "string"},
    }


LIMIT = _query("limit", "How many.", type="integer", minimum=1, maximum=MOST, default=50)
STATE = _query(
    "state",
    "Only jobs in these states; commas may stand between them.",
    type="array",
    items={"type": "string", "enum": list(STATES)},
    minItems=1,
)
WAIT = _query("wait", "Seconds to wait for the job's end.", type="number", minimum=0, maximum=LONGEST_WAIT)
JOBS = [
    STATE,
    _text("lane", "Only jobs of the lane with this id."),
    _text("function", "Only jobs of this function."),
    _text("q", "Only jobs with this text in their function or lane, or with this number or id."),
    LIMIT,
    _text("cursor", "The `next` of the page before."),
]
LANE_OPERATIONS = {
    "pause": "Start nothing of the lane until it is resumed",
    "resume": "Let a paused lane run again",
    "skip": "Leave out the head; a stopped lane goes on",
    "retry": "Run the failed head of a stopped lane again",
    "clear": "Cancel all that waits in the lane; a stopped lane goes on",
}


def described(name: str) -> dict[str, Any]:
    """The arguments of `add_api_route` that describe the endpoint of that name."""
    if name in LANE_OPERATIONS:
        takes_head = name in ("skip", "retry")
        errors = (400, 404, 409, 413, 422) if takes_head else (404,)
        extra: dict[str, Any] = {"parameters": [_path("lane_id")]}
        if takes_head:
            extra["requestBody"] = HEAD_BODY
        return _operation(LANE_OPERATIONS[name], LaneStatus, errors, extra)
    return _ONES[name]() if name in _ONES else {"include_in_schema": False}


def _operation(
    summary: str,
    model: Any,
    errors: tuple[int, ...] = (),
    extra: dict[str, Any] | None = None,
    responses: dict[int, Any] | None = None,
) -> dict[str, Any]:
    problems: dict[int, Any] = {
        status: {
            "description": f"{HTTPStatus(status).phrase}: {WHY[status]}",
            "content": {"application/problem+json": {"schema": PROBLEM}},
        }
        for status in sorted({*errors, *ALWAYS})
    }
    return {
        "summary": summary,
        "response_model": model,
        "responses": {**problems, **(responses or {})},
        "openapi_extra": extra or {},
    }


def _jobs() -> dict[str, Any]:
    link = {"description": 'The next page, as rel="next".', "schema": {"type": "string"}}
    more = {200: {"headers": {"Link": link}}}
    return _operation("Jobs, newest first", JobPage, (400, 422), {"parameters": JOBS}, more)


def _job() -> dict[str, Any]:
    applied = {"description": "The wait of `Prefer`, as it was used.", "schema": {"type": "string"}}
    more = {200: {"headers": {"Retry-After": RETRY_AFTER, "Preference-Applied": applied}}}
    parameters = [_path("id"), WAIT, _header("Prefer", "`wait=20`: as the parameter, if that is not there.")]
    return _operation("One job", JobStatus, (404, 422), {"parameters": parameters}, more)


def _cancel() -> dict[str, Any]:
    more = {202: {"headers": {"Retry-After": RETRY_AFTER}}}
    operation = _operation("Cancel a job", JobStatus, (404, 409), {"parameters": [_path("id")]}, more)
    return {**operation, "status_code": 202}


def _events() -> dict[str, Any]:
    stream = {
        "description": "Server-sent events: `tick`, with the figures, the lanes and the jobs that ended; "
        "`reset`, where jobs may have been missed; `unchanged`, every 5 seconds in which nothing has changed."
    }
    after = "The id of the last event that was seen."
    parameters = [_header("Last-Event-ID", after), _query("after", after, type="string")]
    operation = _operation("What happens, live", None, (), {"parameters": parameters}, {200: stream})
    return {**operation, "response_class": EventStream, "status_code": 200}


_ONES = {
    "summary": lambda: _operation("The figures", TaskSummary),
    "jobs": _jobs,
    "job": _job,
    "cancel": _cancel,
    "lanes": lambda: _operation("Lanes, the worst first", LanePage, (422,), {"parameters": [LIMIT]}),
    "events": _events,
}
