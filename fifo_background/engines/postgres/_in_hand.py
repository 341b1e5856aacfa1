"""The jobs that a worker has in hand, and the task of each that runs."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from fifo_background._core.job import Job
from fifo_background._core.special import Progress
from fifo_background.engines.postgres._stored import Claim, Claimed, Running

__all__ = ("Hand", "InHand")


class InHand:
    """A job of the database that this worker has, and the task of it that runs."""

    def __init__(self, claim: Claim) -> None:
        self.claim: Claim = claim
        self.gives_back: bool = False  # it is to run again, somewhere else
        self._task: Claimed | None = None
        self._running: Running | None = None
        self._job: Job[Any] | None = None  # of the executor in memory
        self._cancelled: Job[Any] | None = None  # the job that somebody has asked to cancel
        self._told: Progress | None = None  # what the database knows

    def begin(self, task: Claimed, running: Running) -> None:
        """A task of it is about to run."""
        self._task, self._running = task, running
        self._told = None  # of this one, the database knows nothing

    def started(self, job: Job[Any]) -> None:
        """The executor has it."""
        self._job = job

    def end(self) -> None:
        """It has ended, and what it has left behind is not it."""
        if self._running is not None:
            self._running.is_running = False
        self._task = self._running = self._job = None

    @property
    def running_id(self) -> str | None:
        """The id of the task that the executor has."""
        return None if self._job is None or self._task is None else self._task.id

    @property
    def waits(self) -> bool:
        """Whether its task waits for another one, and lends its slot."""
        return self._running is not None and self._running.waits > 0

    def cancel(self) -> None:
        if self._job is not None and self._job is not self._cancelled:
            self._cancelled = self._job  # once: its cleanup is not cancelled
            self._job.cancel()

    def interrupt(self) -> None:
        """It is to run again somewhere else, unless it ends at this moment."""
        self.gives_back = True
        if self._job is not None:
            self._job.cancel()

    def new_progress(self) -> Progress | None:
        """What its task has reported, if that was not given before."""
        progress = None if self._job is None else self._job.progress
        if progress == self._told:
            return None
        self._told = progress
        return progress


class Hand:
    """All of them, by the job and its attempts: a retry may be here before the run ahead of it has left."""

    def __init__(self) -> None:
        self._jobs: dict[tuple[int, int], InHand] = {}
        self._asks: set[asyncio.Future[None]] = set()

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[InHand]:
        return iter(tuple(self._jobs.values()))

    def __contains__(self, key: tuple[int, int]) -> bool:
        return key in self._jobs

    def take(self, claim: Claim) -> InHand:
        one = self._jobs[claim.key] = InHand(claim)
        return one

    def leave(self, one: InHand) -> None:
        del self._jobs[one.claim.key]

    @property
    def slots(self) -> int:
        """How many of a worker's slots they take."""
        return sum(1 for one in self._jobs.values() if not one.waits)

    @property
    def running_ids(self) -> list[str]:
        return [id for one in self._jobs.values() if (id := one.running_id) is not None]

    def cancel(self, ids: Collection[str]) -> None:
        """Somebody has asked to cancel these tasks."""
        for one in self:
            if one.running_id in ids:
                one.cancel()

    def interrupt(self) -> None:
        for one in self:
            one.interrupt()

    # -- what is on its way ----------------------------------------------------------------------------------

    @contextmanager
    def asking(self) -> Iterator[None]:
        """A question is under way whose answer may bring a job."""
        asks: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asks.add(asks)
        try:
            yield
        finally:
            self._asks.discard(asks)
            asks.set_result(None)

    async def answered(self, seconds: float | None = None) -> None:
        """Wait for the answers to what is asked now: what they bring is in hand then."""
        if self._asks:
            await asyncio.wait(tuple(self._asks), timeout=seconds)
