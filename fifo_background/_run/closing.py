"""A clean end: refuse new work, drain, drop and cancel what is left, and say what did not run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import anyio

from fifo_background import _log
from fifo_background._core.job import Job
from fifo_background._core.lane import Lane
from fifo_background._core.operations import close, drop_all, drop_closed_heads
from fifo_background._core.state import CLOSED, CLOSING
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

    def _facts(self, jobs: Iterable[Job[Any]]) -> _log.Facts:
        return _log.facts_of(jobs, self._runner.settings.log_arguments)

    def loop_ends(self) -> None:
        self.stop("the event loop ended: dropped")

    def stop(self, why: str) -> list[Lane]:
        """Drop what waits, cancel what runs, and say so; returns the lanes whose task was cancelled."""
        runner, scheduler = self._runner, self._runner.scheduler
        scheduler.drain()
        facts = self._facts(scheduler.waiting)
        left = scheduler.in_move(lambda: drop_all(scheduler))
        runner.changes.wake()
        _log.not_run(why, left, facts)
        cancelled = []
        for lane in list(scheduler.turns.occupied):
            job = lane.running
            if lane.trip is None:
                lane.stopping = True
                cancelled.append(lane)
                if not runner.backend.ending and lane.handle is not None:
                    lane.handle.cancel()
            elif job is not None:
                _log.runs_on(job)
        runner.pump()
        return cancelled

    def drop_closed_heads(self) -> None:
        """While closing: what a lane that was paused keeps is dropped, at once."""
        scheduler = self._runner.scheduler
        if scheduler.status is CLOSING and not all(lane.is_open for lane in scheduler.lanes.all()):
            facts = self._facts(scheduler.waiting)
            dropped = scheduler.in_move(lambda: drop_closed_heads(scheduler))
            _log.not_run("shutdown: a paused or stopped lane dropped", dropped, facts)

    async def _drain_and_stop(self) -> None:
        runner, scheduler = self._runner, self._runner.scheduler
        scheduler.drain()
        facts = self._facts(scheduler.waiting)
        dropped = scheduler.in_move(lambda: close(scheduler))
        runner.changes.wake()
        if scheduler.unfinished:
            _log.draining(scheduler.unfinished, runner.settings.drain_timeout)
        runner.pump()
        if dropped:
            why = "shutdown: dropped, as open requests or paused or stopped lanes held them:"
            _log.not_run(why, dropped, facts)
        del facts  # during the drain it keeps no task
        await self._until(self._is_drained, runner.settings.drain_timeout)
        cancelled = self.stop("shutdown: dropped")
        # before the app's own shutdown code closes what they clean up with
        await self._until(lambda: not any(lane.stopping for lane in cancelled), CLEAN_UP)
        left = [lane.job for lane in cancelled if lane.stopping and lane.job is not None]
        if left:
            _log.left_behind(left, self._facts(left))

    def _is_drained(self) -> bool:
        runner = self._runner
        runner.scheduler.drain()
        self.drop_closed_heads()
        runner.pump()
        return not runner.scheduler.waiting and not runner.scheduler.turns.occupied and not runner.tasks_alive

    async def _until(self, holds: Callable[[], bool], limit: float) -> None:
        """Wait until `holds`, which is looked at whenever something has ended, for `limit` seconds."""
        runner = self._runner
        with anyio.move_on_after(limit, shield=True):
            while not holds():
                waiter = runner.backend.waiter()
                runner.dispatch.watchers.append(waiter)
                try:
                    await waiter
                finally:
                    watchers = runner.dispatch.watchers
                    runner.dispatch.watchers = [other for other in watchers if other is not waiter]
