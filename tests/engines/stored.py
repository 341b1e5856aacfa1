"""Apps whose engine is PostgreSQL, each with a queue of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import psycopg
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from fifo_background import BackgroundTasks
from fifo_background.engines.postgres import PostgresEngine
from tests.support.apps import make_app

Handler = Callable[[Request], Awaitable[Response]]

# Workers that hear of each other soon.
QUICK: dict[str, Any] = {"heartbeat": 0.1, "lost_after": 1.0}


def engine_of(dsn: str, **settings: Any) -> PostgresEngine:
    """With patience: on a busy machine, a store may take longer than a client should wait."""
    given = {"packages": ["tests"], "queue": uuid4().hex, "store_timeout": 20.0, **settings}
    return PostgresEngine(dsn, **given)


def stored_app(engine: PostgresEngine, *handlers: Handler, **settings: Any) -> Starlette:
    return make_app(*handlers, engine=engine, **settings)


def handler(*calls: Any, status: int = 200) -> Handler:
    """A handler, named `handle`, that adds these calls."""

    async def handle(request: Request) -> Response:
        tasks = BackgroundTasks()
        for func, *args in calls:
            tasks.add_task(func, *args)
        return Response(background=tasks, status_code=status)

    return handle


async def rows(dsn: str, query: str, *values: Any) -> list[Any]:
    """What a statement gives, in a transaction of its own."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        cursor = await connection.execute(query.encode(), values or None)
        return await cursor.fetchall() if cursor.description else []


async def states(dsn: str, engine: PostgresEngine) -> list[tuple[str, str]]:
    """The tasks of a queue, in the order in which they were stored."""
    query = """SELECT split_part(function, ':', 2), state FROM fifo_background_tasks WHERE queue = %s
        ORDER BY number"""
    return [tuple(row) for row in await rows(dsn, query, engine.queue)]
