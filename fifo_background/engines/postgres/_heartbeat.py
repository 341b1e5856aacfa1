"""Heartbeats of a worker, from a thread with an event loop of its own: a busy one does not stop them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import psycopg

from fifo_background.engines.postgres._connections import Connections
from fifo_background.engines.postgres._lease import Lease, now

__all__ = ("Heard", "Heartbeat")

_BEAT = "UPDATE procrastinate_workers SET last_heartbeat = clock_timestamp() WHERE id = %s RETURNING id"

# A heartbeat that is not answered is sent again, on a new connection, after so many times their interval.
_PATIENCE = 1.5


class Heartbeat:
    """Renews a lease every `seconds` until `stop`; sets `lost` where others have taken the worker's jobs."""

    def __init__(self, dsn: str, worker: int, seconds: float, lease: Lease, lost: asyncio.Event) -> None:
        self._dsn = dsn
        self._worker = worker
        self._seconds = seconds
        self._lease = lease
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._stops = False
        self._ends: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run()), name="fifo_background heartbeat", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """No more heartbeats, and the one under way does not count."""
        self._lease.end_renewals()
        self._stops = True
        if self._ends is not None:
            loop, ends = self._ends
            with suppress(RuntimeError):  # the thread has ended
                loop.call_soon_threadsafe(ends.set)

    async def _run(self) -> None:
        ends = asyncio.Event()
        self._ends = asyncio.get_running_loop(), ends
        connections = Connections(self._dsn, 1)
        while not self._stops and await self._beat(connections):
            with suppress(TimeoutError, asyncio.TimeoutError):
                await asyncio.wait_for(ends.wait(), self._seconds)
        await connections.drop_idle()

    async def _beat(self, connections: Connections) -> bool:
        """Whether the worker is still known."""
        sent = now()
        try:
            known = await connections.row(_BEAT, self._worker, seconds=self._seconds * _PATIENCE, tries=20)
        except psycopg.Error:
            return True  # the lease tells how long one may try
        if known is None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._lost.set)
            return False
        self._lease.renew(sent)
        return True


class Heard:
    """The last heartbeats of all workers, and since when each is the last one, by the clock of this host.

    That of the server may be set, and then they all look old, or new, at once.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[str, float, float]] = {}

    def note(self, heartbeats: Mapping[str, Sequence[Any]]) -> None:
        """What the database has: of each worker the last heartbeat, and after how many seconds it is lost."""
        last, at = self._last, now()
        self._last = {
            id: (heartbeat, last[id][1] if id in last and last[id][0] == heartbeat else at, lost_after)
            for id, (heartbeat, lost_after) in heartbeats.items()
        }

    def silent(self) -> dict[str, tuple[str, float]]:
        """Of those that have missed at least one: the last heartbeat, and for how many seconds it is that."""
        at = now()
        return {
            id: (heartbeat, at - since)
            for id, (heartbeat, since, lost_after) in self._last.items()
            if at - since >= lost_after / 2
        }
