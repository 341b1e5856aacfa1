"""What follows a move: waiters are woken, timers are set, and what has happened is logged, in this order.

What is said comes last, as a logging handler may do anything.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast

from fifo_background import _log
from fifo_background._core.effects import Failed, Held, Lost, Unrun
from fifo_background._core.history import Record, Returned
from fifo_background._core.job import Job
from fifo_background._core.lane import Lane, plain_key
from fifo_background._core.special import Callback
from fifo_background._core.state import FAILED

if TYPE_CHECKING:
    from fifo_background._run.runner import Runner

__all__ = ("Dispatch",)


class Dispatch:
    """Carries out what a scheduler's moves leave to be done, except starting jobs."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._scheduler = runner.scheduler
        self.watchers: list[Any] = []  # waiters of who closes: woken when something has ended

    def carry_out(self) -> None:
        if self._scheduler.woken:
            self.wake()
        if self._scheduler.effects:
            self._carry_out_effects()
        if self.watchers:
            self.wake_watchers()

    def wake(self) -> None:
        scheduler, backend = self._scheduler, self._runner.backend
        woken, scheduler.woken = scheduler.woken, []
        for waiter in woken:
            if type(waiter) is Callback:
                backend.soon(partial(self._call_back, waiter))
            else:
                backend.wake(waiter)

    def _call_back(self, callback: Callback) -> None:
        try:
            callback()
        except BaseException as error:
            _log.callback_failed(callback.job, callback.function, error)
            known = callback.job._outcome.error if callback.job._own_state is FAILED else None
            if error is not known and issubclass(type(error), (KeyboardInterrupt, SystemExit)):
                self.reraise(callback.job, error)

    def reraise(self, job: Job[Any], error: BaseException) -> None:
        """A task or callback has raised a KeyboardInterrupt or SystemExit, which is the loop's to raise."""
        if not self._runner.backend.reraise(error):
            _log.cannot_reraise(job, error)

    def wake_watchers(self) -> None:
        watchers, self.watchers = self.watchers, []
        for waiter in watchers:
            self._runner.backend.wake(waiter)

    def _carry_out_effects(self) -> None:
        effects = list(self._scheduler.effects)
        self._scheduler.effects.clear()  # for those that come meanwhile
        for effect in effects:
            if type(effect) is Held:
                self.look_again(effect.lane, effect.delay)
        for effect in effects:
            if type(effect) is Failed:
                self._say_failed(effect)
                self._keep_message(effect.job)
            elif type(effect) is Returned:
                self._keep_result(effect)
            elif type(effect) is Lost:
                _log.lost(effect.position, effect.jobs, self._runner.settings.hold_timeout)
            elif type(effect) is Unrun:
                self._say_unrun(effect)

    def _keep_message(self, job: Job[Any]) -> None:
        if job._record is not None:
            self._scheduler.history.keep_message(job._record, job._outcome.error)

    def _keep_result(self, effect: Returned) -> None:
        self._scheduler.history.keep_result(cast(Record, effect.job._record), effect.result)

    def _say_unrun(self, effect: Unrun) -> None:
        position = effect.position
        _log.unrun(effect.job, effect.parts, plain_key(position.lane.key), position.owner)

    def _say_failed(self, effect: Failed) -> None:
        job, position = effect.job, effect.position
        # of these servers and task groups say nothing: they are always logged
        unseen: tuple[type[BaseException], ...] = (self._runner.backend.cancelled, GeneratorExit)
        if job._on_loop:
            unseen += (KeyboardInterrupt, SystemExit)
        reported = job._outcome.reported or (
            effect.handed_over and not issubclass(type(job._outcome.error), unseen)
        )
        stopped = position.lane.key if effect.stopped else _log.NO_LANE
        key, shows = plain_key(position.lane.key), self._runner.settings.log_arguments
        facts = {
            other: _log.Fact(key, position.owner, effect.tasks.get(other) if shows else None)
            for other in effect.skipped
        }
        _log.failed(
            *(job, position.owner, position.context, effect.skipped, stopped),
            facts=facts,
            with_error=not reported,
        )

    def look_again(self, lane: Lane, delay: float) -> None:
        """The head of the lane is held: look again when its time is over."""
        runner, scheduler = self._runner, self._scheduler

        def ring() -> None:
            lane.timer = None
            scheduler.turns.wants_turn(lane)
            runner.pump()

        if not lane.occupied and lane.listed:
            if lane.timer is not None:
                lane.timer.cancel()
            lane.timer = runner.backend.later(delay, ring)
            lane.rings = scheduler.clock() + delay
