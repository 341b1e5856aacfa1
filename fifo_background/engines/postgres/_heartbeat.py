"""Heartbeats of a worker, from a thread and connection of their own: a busy event loop does not stop them."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any

import psycopg

from fifo_background.engines.postgres._connections import with_keepalive
from fifo_background.engines.postgres._lease import Lease, now

__all__ = ("Heartbeat",)

_BEAT = "UPDATE procrastinate_workers SET last_heartbeat = clock_timestamp() WHERE id = %s RETURNING id"


class Heartbeat:
    """Renews a lease every `seconds` until `stop`; sets `lost` where others have taken the worker's jobs."""

    def __init__(self, dsn: str, worker: int, seconds: float, lease: Lease, lost: asyncio.Event) -> None:
        self._dsn = dsn
        self._worker = worker
        self._seconds = seconds
        self._lease = lease
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._stops = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fifo_background heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """No more heartbeats; the one under way may still count."""
        self._stops.set()

    def _run(self) -> None:
        connection: psycopg.Connection[Any] | None = None
        while not self._stops.is_set():
            sent = now()
            try:
                if connection is None:
                    connection = psycopg.connect(with_keepalive(self._dsn), autocommit=True)
                    sent = now()
                is_known = connection.execute(_BEAT, (self._worker,)).fetchone() is not None
            except (psycopg.Error, OSError):
                _close(connection)
                connection = None
                self._stops.wait(min(self._seconds, 0.2))
                continue
            if not is_known:
                with suppress(RuntimeError):  # the loop is closed
                    self._loop.call_soon_threadsafe(self._lost.set)
                break
            if not self._stops.is_set():
                self._lease.renew(sent)
            self._stops.wait(self._seconds)
        _close(connection)


def _close(connection: psycopg.Connection[Any] | None) -> None:
    if connection is not None:
        with suppress(psycopg.Error, OSError):
            connection.close()
