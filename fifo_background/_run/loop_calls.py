"""Lane operations and statistics: they are the loop's, and its worker threads wait for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from fifo_background._core.statistics import NOTHING_YET, ExecutorStatistics, snapshot
from fifo_background._run.backends.threads import in_loop_of_caller

if TYPE_CHECKING:
    from fifo_background._run.runner import Runner

__all__ = ("LoopCalls",)

T = TypeVar("T")


class LoopCalls:
    """What is asked of one runner from outside of its tasks and requests."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._picture: ExecutorStatistics = NOTHING_YET

    def move(self, function: Callable[[], T], what: str) -> T:
        """Call `function` in a move; a worker thread waits for it.

        Raises RuntimeError in other threads, and where the caller has interrupted a move.
        """
        runner = self._runner

        def move() -> T:
            runner.check_in_loop()
            if runner.scheduler.moving:
                raise RuntimeError(
                    f"{what} was called from a finalizer or signal handler that interrupted the executor. "
                    f"Hand the call to the loop: loop.call_soon_threadsafe({what})"
                )
            runner.scheduler.drain()
            try:
                return runner.scheduler.in_move(function)
            finally:
                runner.pump_soon()
                runner.dispatch.wake_watchers()

        return move() if runner.is_current() else in_loop_of_caller(move, what)

    def statistics(self) -> ExecutorStatistics:
        """A frozen snapshot of the lanes now; the last one if the caller has interrupted a move."""
        runner, scheduler = self._runner, self._runner.scheduler
        if runner.is_current() and scheduler.moving:
            return self._picture

        def look() -> ExecutorStatistics:
            runner.check_in_loop()
            if scheduler.inbox:
                scheduler.drain()
                runner.pump_soon()
            self._picture = snapshot(scheduler, runner.waits.rings.of_jobs)
            return self._picture

        return look() if runner.is_current() else in_loop_of_caller(look, "executor.statistics")
