"""`tasks.options(retry=...)`: with an engine, a task that fails runs again while its lane waits."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fifo_background import BackgroundTasks, OrderedBackgroundMiddleware, executor_of
from fifo_background.engines.postgres import PostgresEngine, Retry, TaskFailed
from tests.engines import work
from tests.engines.work import fresh, ran  # noqa: F401
from tests.support.asgi import get, started


@pytest.mark.parametrize("comes", [True, False])
async def test_function_of_another_version(comes: bool, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that a worker does not have is looked for again: in a deploy, workers of the old version
    fetch tasks of the new one. Its lane waits meanwhile; where it does not come the task has failed."""
    engine = PostgresEngine(dsn, packages=["tests"], queue=uuid4().hex)
    waits: list[int] = []

    def seconds_after(retry: Retry, attempt: int) -> float | None:
        waits.append(attempt)
        if comes and attempt == 2:
            work.sync = sync
        return 0.0 if attempt < retry.attempts else None

    monkeypatch.setattr(Retry, "seconds_after", seconds_after)
    app = Starlette(middleware=[Middleware(OrderedBackgroundMiddleware, engine=engine)])
    async with started(app):
        executor = executor_of(app)
        await executor.lane(None).pause()
        job = await executor.submit(work.sync, 1)
        await executor.submit(work.quick, 2)
        sync = work.sync
        monkeypatch.delattr(work, "sync")
        await executor.lane(None).resume()
        if comes:
            assert await job == 1
        else:
            with pytest.raises(TaskFailed, match=r"NotThereError: .*work:sync is not there"):
                await job
        await executor.join()
    assert ran == ([1, 2] if comes else [2])
    assert waits == list(range(1, 3 if comes else 11))


@pytest.mark.parametrize("retry", [3, Retry(attempts=3, wait=0)])
async def test_retry_holds_the_lane(dsn: str, retry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task runs again until it succeeds, and what was added after it waits for that."""
    monkeypatch.setattr(
        Retry, "seconds_after", lambda self, attempt: 0.0 if attempt < self.attempts else None
    )

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.options(retry=retry, timeout=5).add_task(work.fails_until, 1, 3)
        tasks.options(retry=None).add_task(work.quick, 2)
        return Response(background=tasks)

    engine = PostgresEngine(dsn, packages=["tests"], queue=uuid4().hex)
    app = Starlette(
        routes=[Route("/", handler)], middleware=[Middleware(OrderedBackgroundMiddleware, engine=engine)]
    )
    async with started(app):
        assert (await get(app, "/")).status == 200
        await executor_of(app).join()
    assert ran == [1, 1, 1, 2]
