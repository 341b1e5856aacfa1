"""The router for FastAPI: its OpenAPI says what it does."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked

pytest.importorskip("fastapi")

from fastapi import Depends, FastAPI, WebSocket
from pydantic import BaseModel

from fifo_background import BackgroundTasks, OrderedBackgroundMiddleware
from fifo_background.status import models, router
from fifo_background.status.api import ENDPOINTS
from tests.support.apps import Work
from tests.support.asgi import Exchange
from tests.support.log import Log
from tests.support.status import Site

METHODS = {"get", "post"}


@pytest.fixture
def schema() -> Any:
    app = FastAPI()
    app.include_router(router(prefix="/tasks"))
    return app.openapi()


def test_endpoints(schema: Any) -> None:
    """Every endpoint of the API is in OpenAPI, under its tag, and the page is not."""
    listed = {(method, path) for path, one in schema["paths"].items() for method in one}
    pages = ("page", "file")
    assert listed == {(one.method.lower(), f"/tasks{one.path}") for one in ENDPOINTS if one.name not in pages}
    for one in schema["paths"].values():
        for operation in one.values():
            assert operation["tags"] == ["tasks"]
            assert operation["summary"]


def test_errors_are_problems(schema: Any) -> None:
    """Every error that is listed is a problem, and no operation lists FastAPI's own 422."""
    for one in schema["paths"].values():
        for operation in one.values():
            errors = {int(status) for status in operation["responses"] if status >= "4"}
            assert errors >= {403, 405, 500, 503}
            for status in errors:
                assert list(operation["responses"][str(status)]["content"]) == ["application/problem+json"]
    assert "HTTPValidationError" not in schema["components"]["schemas"]


def test_parameters(schema: Any) -> None:
    """Every parameter of a path is listed, and those of queries are optional."""
    for path, one in schema["paths"].items():
        for operation in one.values():
            listed = operation.get("parameters", [])
            assert {f"{{{parameter['name']}}}" for parameter in listed if parameter["in"] == "path"} == {
                part for part in path.split("/") if part.startswith("{")
            }
            assert all(parameter["required"] == (parameter["in"] == "path") for parameter in listed)


def test_unique_ids(schema: Any) -> None:
    """Each operation has an id of its own."""
    ids = [operation["operationId"] for one in schema["paths"].values() for operation in one.values()]
    assert len(set(ids)) == len(ids)


def test_success(schema: Any) -> None:
    """A cancelled job is a 202, a stream is text/event-stream, all else is a 200 of JSON."""
    for path, one in schema["paths"].items():
        for operation in one.values():
            (status,) = [status for status in operation["responses"] if status < "4"]
            assert status == ("202" if path.endswith("/cancel") else "200")
            content = operation["responses"][status]["content"]
            assert list(content) == ["text/event-stream" if path.endswith("/events") else "application/json"]
            assert content.popitem()[1]["schema"]


def fields(model: type[BaseModel]) -> dict[str, Any]:
    """The names and types of a model's fields, as they are in JSON, in either version of pydantic."""
    found: dict[str, Any] = getattr(model, "model_fields", None) or vars(model)["__fields__"]
    return {getattr(field, "alias", None) or name: field for name, field in found.items()}


def check(model: Any, content: Any) -> None:
    """The content is exactly what the model says, down to the last key."""
    parse = getattr(model, "model_validate", None) or model.parse_obj
    made = parse(content)
    dump = getattr(made, "model_dump", None) or made.dict
    assert dump(by_alias=True) == content
    assert fields(model).keys() == content.keys()


async def test_models(events: list[Any]) -> None:
    """What the API answers is what the models say."""
    site, work = Site("router", {"lane_after_failure": "stop"}), Work(events)

    async def fail() -> None:
        raise ValueError

    failed = site.executor.lane("a").submit_nowait(fail)
    for n in (1, 1, 2, 3):
        site.executor.submit_nowait(work.gated, n)
        site.executor.lane("a").submit_nowait(work.quick, n)
    await failed.wait()
    await wait_all_tasks_blocked()
    check(models.JobStatus, (await site.get(f"/jobs/{failed.id}")).json())
    check(models.JobPage, (await site.get("/jobs?limit=3")).json())
    check(models.LanePage, (await site.get("/lanes")).json())
    check(models.TaskSummary, (await site.get("/summary")).json())
    lane = (await site.get(f"/jobs/{failed.id}")).json()["lane"]["id"]
    check(models.LaneStatus, (await site.post(f"/lanes/{lane}/clear")).json())
    for n in (1, 2, 3):
        work.gate(n).set()
    await site.executor.join()


def test_names_of_routes() -> None:
    """A name of an app's own route is not taken, and `url_for` finds them by the name of a mount."""
    app = FastAPI()
    app.include_router(router(prefix="/tasks"))

    @app.get("/job/{id}")
    def job(id: str) -> None: ...

    assert app.url_path_for("job", id="1") == "/job/1"
    assert app.url_path_for("tasks:job", id="1") == "/tasks/jobs/1"


@pytest.mark.virtual_clock
@pytest.mark.parametrize("leaves", [True, False])
@pytest.mark.parametrize("path", ["/", "/jobs", "/jobs/1", "/events"])
async def test_tasks_of_dependencies(path: str, leaves: bool, events: list[Any], log: Log) -> None:
    """A task that a dependency of the app adds to each request runs, also behind an event stream."""

    def audit(tasks: BackgroundTasks) -> None:
        tasks.add_task(events.append, path)

    app = FastAPI(dependencies=[Depends(audit)])
    app.include_router(router(prefix="/tasks", stream_seconds=2))
    site = Site()
    site.app = OrderedBackgroundMiddleware(app)
    exchange = site.exchange(path)
    if leaves:
        exchange.disconnected.set()
    await exchange.run()
    await site.executor.join()
    assert exchange.error is None
    assert events == [path]
    assert all("WARNING" not in said or "has seen no lifespan" in said for said in log)


async def test_wait_for_a_job_behind_its_own_task(events: list[Any]) -> None:
    """A job that cannot start before a task of the request's dependency is shown at once."""

    def audit(tasks: BackgroundTasks) -> None:
        tasks.add_task(events.append, "audit")

    app = FastAPI()
    app.include_router(router(prefix="/tasks"), dependencies=[Depends(audit)])

    @app.websocket("/ws")
    async def talk(websocket: WebSocket, tasks: BackgroundTasks) -> None:
        await websocket.accept()
        jobs.append(tasks.add_task(events.append, "ws"))
        await websocket.receive()

    class Socket(Exchange):
        async def receive(self) -> dict[str, Any]:
            if not self._asked:
                self._asked = True
                return {"type": "websocket.connect"}
            await self.disconnected.wait()
            return {"type": "websocket.disconnect", "code": 1000}

    jobs: list[Any] = []
    site = Site()
    site.app = OrderedBackgroundMiddleware(app)
    async with anyio.create_task_group() as group:
        socket = Socket(site.app, "/ws", type="websocket", subprotocols=[])
        group.start_soon(socket.run)
        await wait_all_tasks_blocked()
        answer = await site.get(f"/jobs/{jobs[0].id}?wait=20")
        assert (answer.status, answer.json()["state"]) == (200, "pending")
        socket.disconnected.set()
    await site.executor.join()
    assert events == ["audit", "ws"]
