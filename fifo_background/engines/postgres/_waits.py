"""Waits for the ends of stored tasks, which other processes tell by notifications."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fifo_background._core.state import JobState
from fifo_background.engines.postgres._database import Database
from fifo_background.engines.postgres._stored import Running, running
from fifo_background.exceptions import STORE_ELSEWHERE, ExecutorClosed, WouldDeadlock

__all__ = ("Waits",)

# What the database says in place of the state of a task that waits in a lane that has stopped.
STOPPED = "stopped"


class Waits:
    """Who waits for which task, in one event loop.

    `listen()`: hear of ends from here on. `rest()`: nobody waits anymore.
    """

    def __init__(self, database: Database, listen: Callable[[], object], rest: Callable[[], object]) -> None:
        self._database = database
        self._listen = listen
        self._rest = rest
        self._wakes: dict[str, set[asyncio.Event]] = {}
        self._is_over: bool = False  # the app has shut down

    async def for_end(self, id: str, name: str) -> JobState:
        """Raises `WouldDeadlock` where it could not come, `ExecutorClosed` once the app has shut down."""
        task = running(self._database.queue)
        if task is None:
            return JobState(await self._until(self._has_ended, id, name))
        await self._refuse_ring(task, id, name)
        task.begin_wait()
        try:
            return JobState(await self._until(self._has_ended, id, name))
        finally:
            task.end_wait()

    async def for_end_or_stop(self, id: str, name: str) -> JobState | None:
        """None where its lane has stopped, and it waits in there; not for use in a task."""
        state = await self._until(lambda state: state == STOPPED or self._has_ended(state), id, name)
        return None if state == STOPPED else JobState(state)

    @staticmethod
    def _has_ended(state: str) -> bool:
        return state != STOPPED and JobState(state).ended

    async def _refuse_ring(self, task: Running, id: str, name: str) -> None:
        if id == task.id:
            raise _would_deadlock(task, "it would wait for itself")
        found = await self._database.task(id)
        if found is not None and found["lane"] == task.lane and not JobState(found["state"]).ended:
            raise _would_deadlock(task, f"{name} {id} stands behind it, in its own lane")

    async def _until(self, wanted: Callable[[str], bool], id: str, name: str) -> str:
        """Its state, once that is as it is wanted."""
        self._listen()
        wake = asyncio.Event()
        self._wakes.setdefault(id, set()).add(wake)
        try:
            while True:
                if self._is_over:
                    raise ExecutorClosed(f"the wait for {name} {id}")
                wake.clear()  # before the look: an end that is told meanwhile is looked for again
                state = await self._database.watch(id)
                if state is None:
                    raise WouldDeadlock(
                        "the request",
                        f"{name} {id} is stored when its response begins (write `await tasks.store()` to "
                        "store it now), or the database has forgotten it",
                        instead=STORE_ELSEWHERE,
                    )
                if wanted(state):
                    return state
                await wake.wait()
        finally:
            waiting = self._wakes[id]
            waiting.discard(wake)
            if not waiting:
                del self._wakes[id]
            if not self._wakes:
                self._rest()

    async def for_idle(self) -> None:
        """Wait for a moment at which nothing waits or runs. Raises `WouldDeadlock` in a task."""
        task = running(self._database.queue)
        if task is not None:
            raise _would_deadlock(task, "join() waits for all tasks, this one included")
        while (newest := await self._database.newest_open()) is not None:
            await self._until(self._has_ended, newest, "a task")

    def open(self) -> None:
        self._is_over = False

    def close(self) -> None:
        """The app has shut down: nobody hears of ends anymore."""
        self._is_over = True
        self.missed()

    def heard(self, text: str) -> None:
        what, _, id = text.partition(" ")
        if what == "ended":
            for wake in self._wakes.get(id, ()):
                wake.set()
        elif what == "stopped":  # a lane: some wait for that, too
            self.missed()

    def missed(self) -> None:
        """Notifications may have been lost: all look again."""
        for waiting in tuple(self._wakes.values()):
            for wake in waiting:
                wake.set()


def _would_deadlock(task: Running, why: str) -> WouldDeadlock:
    return WouldDeadlock(f"{task.name} {task.id}", why, instead=STORE_ELSEWHERE)
