"""Connections to PostgreSQL that come back at once when the server does.

A pool waits longer and longer between its tries to connect, so an app answers 503 for seconds after
PostgreSQL is back. Here whoever needs a connection makes one where none is idle.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.json import set_json_dumps, set_json_loads

__all__ = ("Connection", "Connections", "connect", "cut")

Connection = psycopg.AsyncConnection[Any]

# What notices a peer that is gone, where the DSN does not say. In seconds; `tcp_user_timeout` in ms.
_KEEPALIVE = {
    "connect_timeout": "3",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "application_name": "fifo-background",
}

# Between two tries to connect to a server that refuses, in seconds.
_AGAIN = 0.1


async def connect(dsn: str) -> Connection:
    """One connection in autocommit mode: each statement is a transaction.

    The app may have set another encoding for its own ones, and other readers and writers of JSON.
    """
    connection = await psycopg.AsyncConnection.connect(_with_keepalive(dsn), autocommit=True)
    set_json_dumps(json.dumps, connection)
    set_json_loads(json.loads, connection)
    return connection


def _with_keepalive(dsn: str) -> str:
    """The DSN, with what notices a peer that is gone."""
    given = conninfo_to_dict(dsn)
    missing = {name: value for name, value in _KEEPALIVE.items() if name not in given}
    return make_conninfo(dsn, **missing, client_encoding="UTF8")


class Connections:
    """At most `most` connections of one event loop; `keep` says whether idle ones are kept."""

    def __init__(self, dsn: str, most: int, *, keep: bool = True) -> None:
        self._dsn = dsn
        self._free = asyncio.Semaphore(most)
        self.keep: bool = keep
        self._idle: list[Connection] = []
        self._calls: set[_Call] = set()  # asyncio keeps only weak references to tasks

    async def row(self, query: str, *values: Any, seconds: float, tries: int = 2) -> Any:
        """The first row of a statement, with a new connection where the one that is used was lost.

        What is lost may have been done: only for statements that may be repeated, or `tries=1`. Raises
        `psycopg.OperationalError` after `seconds`, whatever the server does. A caller that is cancelled
        leaves the statement to itself, until then.
        """
        deadline = monotonic() + seconds
        loop = asyncio.get_running_loop()
        while True:
            tries -= 1
            call = _Call()
            task = loop.create_task(self._execute(call, query, values, deadline))
            call.task = task
            self._calls.add(call)
            task.add_done_callback(partial(self._has_ended, call))
            try:
                await asyncio.wait({task}, timeout=max(deadline - monotonic(), 0))
            except asyncio.CancelledError:
                loop.call_later(max(deadline - monotonic(), 0), call.cut)
                raise
            if not task.done():
                call.cut()
                raise psycopg.OperationalError(f"no answer within {seconds:g} s")
            try:
                return task.result()
            except (psycopg.OperationalError, psycopg.InterfaceError):
                await self.drop_idle()  # what was idle meanwhile is lost, too
                if not tries or monotonic() + _AGAIN >= deadline:
                    raise

    def _has_ended(self, call: _Call, task: asyncio.Task[Any]) -> None:
        self._calls.discard(call)
        if not task.cancelled():
            task.exception()  # an error that nobody waits for anymore is none

    async def _execute(self, call: _Call, query: Any, values: tuple[Any, ...], deadline: float) -> Any:
        async with self._free:
            call.connection = connection = await self._take(deadline)
            kept = False
            try:
                cursor = await connection.execute(query, values or None)
                row = await cursor.fetchone() if cursor.description else None
                kept = self.keep and not connection.broken
            except psycopg.DatabaseError as error:
                kept = self.keep and not (connection.closed or isinstance(error, psycopg.OperationalError))
                raise
            finally:
                call.connection = None
                if kept:
                    self._idle.append(connection)
                else:
                    await _close(connection)
            return row

    async def _take(self, deadline: float) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        while True:
            try:
                return await connect(self._dsn)
            except psycopg.OperationalError:
                if monotonic() + _AGAIN >= deadline:
                    raise
                await asyncio.sleep(_AGAIN)

    async def drop_idle(self) -> None:
        """Close those that nobody uses."""
        idle, self._idle = self._idle, []
        for connection in idle:
            await _close(connection)


class _Call:
    """A statement that is executed in a task of its own, so that nobody has to wait for its end."""

    task: asyncio.Task[Any]
    connection: Connection | None = None

    def cut(self) -> None:
        """End it now. To cancel it would wait for an answer of the server."""
        if self.connection is None:
            self.task.cancel()
        else:
            cut(self.connection)


def cut(connection: Connection) -> None:
    """End a connection under whoever waits for an answer."""
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as copy:
        copy.shutdown(socket.SHUT_RDWR)


async def _close(connection: Connection) -> None:
    with suppress(psycopg.Error, OSError):
        await connection.close()
