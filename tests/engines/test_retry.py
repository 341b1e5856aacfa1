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
from fifo_background.engines.postgres import PostgresEngine, Retry
from tests.engines import work
from tests.engines.work import fresh, ran  # noqa: F401
from tests.support.asgi import get, started


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
