"""A clean end: refuse new work, drain, drop and cancel what is left, and say what did not run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio

from fifo_background import _log
from fifo_background._core.job import Job
from fifo_background._core.operations import close
from fifo_background._core.scheduler import CLOSED
from fifo_background.exceptions import WouldDeadlock

if TYPE_CHECKING:
    from fifo_background._run.runner import Runner

__all__ = ("Closing",)

# Seconds that the tasks which the end cancels have to clean up.
CLEAN_UP = 1.0


class Closing:
    """The end of one executor: the first call does it, others wait for it."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._at_it = False

    async def aclose(self) -> None:
        runner = self._runner
        runner.check_in_loop()
        party = runner.waits.party()
        if isinstance(party, Job):
            raise WouldDeadlock(party.name, "it is one of the tasks that `aclose` waits for")
        while self._at_it:
            await self._until(lambda: not self._at_it, math.inf)
        if runner.scheduler.status is CLOSED:
            return
        self._at_it = True
        try:
            await self._drain_and_stop()
        finally:
            self._at_it = False
            runner.pump()

    async def _drain_and_stop(self) -> None:
        runner, scheduler = self._runner, self._runner.scheduler
        scheduler.drain()
        facts = _log.facts_of(scheduler.waiting)
        scheduler.moving = True
        try:
            dropped = close(scheduler)
        finally:
            scheduler.moving = False
        if scheduler.unfinished:
            _log.draining(scheduler.unfinished, runner.settings.drain_timeout)
        runner.pump()
        if dropped:
            _log.not_run("shutdown: dropped, as open requests or paused lanes held them:", dropped, facts)
        await self._until(self._is_drained, runner.settings.drain_timeout)
        cancelled = runner.stop("shutdown: dropped")
        # before the app's own shutdown code closes what they clean up with
        await self._until(lambda: not any(lane.stopping for lane in cancelled), CLEAN_UP)
        left = [lane.job for lane in cancelled if lane.stopping and lane.job is not None]
        if left:
            _log.left_behind(left)

    def _is_drained(self) -> bool:
        runner = self._runner
        runner.scheduler.drain()
        runner.drop_closed_heads()
        runner.pump()
        return not runner.scheduler.waiting and not runner.scheduler.occupied and not runner.tasks_alive

    async def _until(self, holds: Callable[[], bool], limit: float) -> None:
        """Wait until `holds`, which is looked at whenever something has ended, for `limit` seconds."""
        runner = self._runner
        with anyio.move_on_after(limit, shield=True):
            while not holds():
                waiter = runner.backend.waiter()
                runner.watchers.append(waiter)
                try:
                    await waiter
                finally:
                    runner.watchers = [other for other in runner.watchers if other is not waiter]
