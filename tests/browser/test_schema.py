"""schemathesis tries the API as OpenAPI describes it, under a real server.

Nothing fails on the server's side, every error is a problem, and every answer is as described.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from schemathesis.specs.openapi import checks

from tests.browser.app import Site
from tests.browser.conftest import Served

CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
SCHEMA = schemathesis.openapi.from_dict(Site().fastapi().openapi())
OPERATIONS = {
    operation.label: operation
    for operation in (found.ok() for found in SCHEMA.get_all_operations())
    if operation.path.startswith("/tasks")
}
WRONG = schemathesis.GenerationMode.NEGATIVE
Ids = Callable[[str], Iterator[dict[str, str]]]
PROBLEM = "application/problem+json"
few = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """With jobs in each state. Streams end at once."""
    made = Served(Site(authorize=lambda request: True, show_errors=True, stream_seconds=0.02).fastapi())
    made.add("short", lane="mail", count=3)
    for job in made.jobs():
        made.job(job["id"])
    for _ in range(3):
        made.add("stumbles", lane="billing", gate="charge")
    made.add("gated", lane="player", gate="go", count=300)
    yield made
    made.open("go")
    made.stop()


@pytest.fixture(scope="module")
def ids(served: Served) -> Ids:
    """Path parameters that there are: of ended jobs to look at, of waiting ones to cancel, of each lane."""
    jobs = served.jobs(state="ended")
    waiting = served.jobs(state="waiting", limit=200)
    lanes = served.client.get("/tasks/lanes").json()["items"]
    of_path = {
        "/tasks/jobs/{id}": [{"id": job["id"]} for job in jobs],
        "/tasks/jobs/{id}/cancel": [{"id": job["id"]} for job in [*waiting, *jobs]],
    }
    of_lanes = [{"lane_id": lane["id"]} for lane in lanes]
    turns = {path: itertools.cycle(known) for path, known in of_path.items()}
    return lambda path: turns.setdefault(path, itertools.cycle(of_lanes))


def validate(case: Any, served: Served) -> None:
    response = case.call(base_url=served.url)
    # a stream is text to OpenAPI; schemathesis takes that for the schema of each event
    events = case.operation.path.endswith("/events")
    case.validate_response(response, checks=CHECKS[:-1] if events else CHECKS)
    if response.status_code >= 400:
        assert response.headers["content-type"] == [PROBLEM]
        problem = response.json()
        assert problem["status"] == response.status_code
        assert problem["detail"]


def is_other_path(case: Any) -> bool:
    """Whether the path is not the operation's any more: such a one the app answers by itself."""
    return any("/" in str(value) or value in ("", ".", "..") for value in case.path_parameters.values())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_anything(operation: str, served: Served) -> None:
    """Whatever is sent, most of it wrong."""

    @few
    @given(OPERATIONS[operation].as_strategy() | OPERATIONS[operation].as_strategy(generation_mode=WRONG))
    def sent(case: Any) -> None:
        assume(not is_other_path(case))
        validate(case, served)

    sent()


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if "{" in name])
def test_what_is_there(operation: str, served: Served, ids: Ids) -> None:
    """The same, with ids of jobs and lanes that there are."""

    @few
    @given(OPERATIONS[operation].as_strategy())
    def sent(case: Any) -> None:
        case.path_parameters.update(next(ids(OPERATIONS[operation].path)))
        validate(case, served)

    sent()
