"""Stores tasks in a transaction of the caller's: of psycopg, or of SQLAlchemy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from fifo_background.engines.postgres._database import STORE

__all__ = ("store_with",)


async def store_with(connection: Any, queue: str, groups: Sequence[dict[str, Any]], most: int | None) -> None:
    """`connection`: psycopg's, or SQLAlchemy's async session or connection. Raises TypeError for others."""
    if isinstance(connection, psycopg.AsyncConnection):
        # of its own, as the cursors of that connection may write JSON and parameters in another way
        await psycopg.AsyncCursor(connection).execute(STORE, (queue, Jsonb(groups, json.dumps), most))
        return
    if isinstance(connection, psycopg.Connection):
        raise TypeError("store(connection=...) needs an async connection, and this is a sync one")
    try:
        from sqlalchemy import text
        from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
    except ImportError:
        pass
    else:
        if isinstance(connection, (AsyncConnection, AsyncSession, async_scoped_session)):
            await connection.execute(
                text("SELECT fifo_background_store(:queue, CAST(:groups AS jsonb), CAST(:most AS int))"),
                {"queue": queue, "groups": json.dumps(groups), "most": most},
            )
            return
    raise TypeError(
        f"store(connection={connection!r}): give a psycopg.AsyncConnection, or SQLAlchemy's AsyncSession "
        "or AsyncConnection"
    )
