"""What holds on every engine of a FastAPI app: injected objects, dependencies, `def` endpoints."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from starlette.middleware import Middleware

from fifo_background import BackgroundTasks, OrderedBackgroundMiddleware, SerialExecutor, executor_of
from tests.engines import work
from tests.engines.test_contract import Kind, kind  # noqa: F401
from tests.engines.work import fresh, ran  # noqa: F401
from tests.support.asgi import get, started

fastapi = pytest.importorskip("fastapi")


async def first(tasks: BackgroundTasks) -> None:
    tasks.add_task(work.quick, "dependency")


def second(tasks: BackgroundTasks, before: Annotated[None, fastapi.Depends(first)]) -> BackgroundTasks:
    tasks.lane(None).add_task(work.sync, "def dependency")
    return tasks


async def asynchronous(tasks: BackgroundTasks, same: Annotated[Any, fastapi.Depends(second)]) -> str:
    tasks.add_task(work.sync, "endpoint")
    return str(same.tasks == tasks.tasks)


def in_thread(tasks: BackgroundTasks, same: Annotated[Any, fastapi.Depends(second)]) -> str:
    tasks.add_task(work.quick, "endpoint")
    return str(same.tasks == tasks.tasks)


async def invalid(n: int, tasks: BackgroundTasks) -> None: ...


async def refuses(tasks: BackgroundTasks, before: Annotated[None, fastapi.Depends(first)]) -> None:
    raise fastapi.HTTPException(403)


async def submits(executor: Annotated[SerialExecutor, fastapi.Depends(executor_of)]) -> None:
    await executor.submit(work.quick, "submitted")


def app_of(kind: Kind) -> Any:  # noqa: F811
    app = fastapi.FastAPI(middleware=[Middleware(OrderedBackgroundMiddleware, **kind.settings({}))])
    for endpoint in (asynchronous, in_thread, invalid, refuses, submits):
        app.get(f"/{endpoint.__name__}")(endpoint)
    return app


@pytest.mark.parametrize("endpoint", ["asynchronous", "in_thread"])
async def test_dependencies(endpoint: str, kind: Kind) -> None:  # noqa: F811
    """Dependencies and endpoints, `async def` and `def`, add to one list, in their order."""
    app = app_of(kind)
    async with started(app):
        exchange = await get(app, f"/{endpoint}")
        assert (exchange.status, exchange.messages[1]["body"]) == (200, b'"True"')
        await executor_of(app).join()
    assert ran == ["dependency", "def dependency", "endpoint"]


async def test_refused_requests(kind: Kind) -> None:  # noqa: F811
    """A request that FastAPI refuses, or whose endpoint raises `HTTPException`, runs nothing."""
    app = app_of(kind)
    async with started(app):
        assert [(await get(app, path)).status for path in ("/invalid", "/refuses")] == [422, 403]
        await executor_of(app).join()
    assert ran == []


async def test_executor_as_dependency(kind: Kind) -> None:  # noqa: F811
    """`Depends(executor_of)` gives the executor of the engine."""
    app = app_of(kind)
    async with started(app):
        assert (await get(app, "/submits")).status == 200
        await executor_of(app).join()
    assert ran == ["submitted"]
