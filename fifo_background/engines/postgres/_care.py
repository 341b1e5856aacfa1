"""What a worker does beside running tasks, as often as its heart beats."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import psycopg

from fifo_background._executor import SerialExecutor
from fifo_background.engines.postgres._database import Database
from fifo_background.engines.postgres._heartbeat import Heard
from fifo_background.engines.postgres._in_hand import Hand
from fifo_background.engines.postgres._measured import Measured

__all__ = ("Care",)


class Care:
    """Compares what is in hand with what the database knows. `changed()` tells those who follow."""

    def __init__(
        self,
        database: Database,
        in_hand: Hand,
        measured: Measured,
        most_crashes: int,
        seconds: float,
        changed: Callable[[], None],
    ) -> None:
        self._database = database
        self._in_hand = in_hand
        self._measured = measured
        self._most_crashes = most_crashes
        self._seconds = seconds  # between two looks
        self._changed = changed
        self._heard: Heard = Heard()

    async def look_after(self, worker: int) -> None:
        """Lost workers, jobs that this one has without knowing it, and cancels."""
        while True:
            try:
                await self._database.recover(self._most_crashes, self._heard)
                await self._give_back_unknown(worker)
                if self._measured.is_read:
                    self._measured.waiting, self._measured.oldest = await self._database.backlog()
                await self._look_for_cancels()
            except psycopg.Error:
                pass  # the next one comes
            await asyncio.sleep(self._seconds)

    async def _give_back_unknown(self, worker: int) -> None:
        """The answer that brought a job may be lost: then the database believes that this worker has it."""
        unknown = [key for key in await self._database.in_hand_of(worker) if key not in self._in_hand]
        if unknown:
            await self._in_hand.answered()
        for key in unknown:
            if key not in self._in_hand:
                await self._database.give_back(worker, *key)

    async def _look_for_cancels(self) -> None:
        """Cancels are not heard while a task is on its way here, or the listener has no connection."""
        ids = self._in_hand.running_ids
        if ids:
            self._in_hand.cancel(await self._database.cancelled(ids))

    async def tell_progress(self, executor: SerialExecutor) -> None:
        """Of the tasks that run in that executor."""
        version = 0
        while True:
            version = await executor.changed(version)
            for one in self._in_hand:
                id, progress = one.running_id, one.new_progress()
                if id is not None and progress is not None:
                    try:
                        await self._database.progress(id, progress._asdict())
                        self._changed()
                    except psycopg.Error:
                        pass
            await asyncio.sleep(self._seconds)
