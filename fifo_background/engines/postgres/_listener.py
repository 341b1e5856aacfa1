"""Hears what other processes do: notifications of PostgreSQL, on a connection of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

import psycopg
from psycopg import sql

from fifo_background.engines.postgres._connections import Connection, connect, cut

__all__ = ("Listener",)

_logger = logging.getLogger("fifo_background")

# After so many seconds of silence it asks whether the server is there.
_SILENCE = 10.0

# For so many seconds it waits for an answer.
_ANSWER = 5.0

# Between two tries to connect, in seconds: at first, and at most.
_FIRST, _MOST = 0.1, 1.0


class Listener:
    """Calls `heard(text)` for each notification, and `missed()` whenever some may have been lost."""

    def __init__(
        self, dsn: str, channel: str, heard: Callable[[str], None], missed: Callable[[], None]
    ) -> None:
        self._dsn = dsn
        self._channel = channel
        self._heard = heard
        self._missed = missed
        self.is_connected: asyncio.Event = asyncio.Event()

    async def run(self) -> None:
        """Listen until it is cancelled."""
        pause = _FIRST
        while True:
            try:
                await self._listen()
            except (psycopg.Error, OSError) as error:
                if self.is_connected.is_set():
                    pause = _FIRST
                    _logger.warning("the connection that listens to PostgreSQL was lost: %s", error)
                self.is_connected.clear()
                await asyncio.sleep(pause)
                pause = min(2 * pause, _MOST)

    async def _listen(self) -> None:
        connection = await connect(self._dsn)
        try:
            await _execute(connection, sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)))
            self.is_connected.set()
            self._missed()  # what has happened before
            while True:
                async for notification in connection.notifies(timeout=_SILENCE):
                    self._heard(notification.payload)
                await _execute(connection, sql.SQL("SELECT 1"))
        finally:
            with suppress(psycopg.Error, OSError):
                await connection.close()


async def _execute(connection: Connection, query: sql.SQL | sql.Composed) -> None:
    """A server that is gone without a word is one whose connection was lost."""
    limit = asyncio.get_running_loop().call_later(_ANSWER, cut, connection)
    try:
        await connection.execute(query)
    finally:
        limit.cancel()
