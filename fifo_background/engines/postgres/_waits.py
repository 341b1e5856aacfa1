"""Waits for the ends of stored tasks, which other processes tell by notifications."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fifo_background._core.state import JobState
from fifo_background.engines.postgres._database import Database
from fifo_background.exceptions import WouldDeadlock

__all__ = ("Waits",)


class Waits:
    """Who waits for which task, in one event loop. `listen()`: hear of ends from here on."""

    def __init__(self, database: Database, listen: Callable[[], object]) -> None:
        self._database = database
        self._listen = listen
        self._wakes: dict[str, set[asyncio.Event]] = {}

    async def for_end(self, id: str) -> JobState:
        """Raises `WouldDeadlock` for a task that is not stored: its request stores it when it responds."""
        self._listen()
        wake = asyncio.Event()
        self._wakes.setdefault(id, set()).add(wake)
        try:
            while True:
                wake.clear()  # before the look: an end that is told meanwhile is looked for again
                state = await self._database.watch(id)
                if state is None:
                    raise WouldDeadlock(
                        "the request",
                        "the task is stored when its response begins, or the database has forgotten it",
                    )
                if JobState(state).ended:
                    return JobState(state)
                await wake.wait()
        finally:
            waiting = self._wakes[id]
            waiting.discard(wake)
            if not waiting:
                del self._wakes[id]

    async def for_idle(self) -> None:
        """Wait for a moment at which nothing waits or runs."""
        while (newest := await self._database.newest_open()) is not None:
            await self.for_end(newest)

    def heard(self, text: str) -> None:
        what, _, id = text.partition(" ")
        if what == "ended":
            for wake in self._wakes.get(id, ()):
                wake.set()

    def missed(self) -> None:
        """Notifications may have been lost: all look again."""
        for waiting in tuple(self._wakes.values()):
            for wake in waiting:
                wake.set()
