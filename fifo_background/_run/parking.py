"""While jobs are queued and none runs, a task waits in their place: it is told if the event loop ends."""

from __future__ import annotations

from contextvars import Context
from typing import TYPE_CHECKING

from fifo_background._run.backends.api import Handle, Waiter

if TYPE_CHECKING:
    from fifo_background._run.runner import Runner

__all__ = ("Parking",)

# How often in a row a cancelled parked task is replaced: somebody may cancel tasks until there are none, and
# must come to an end.
PARKS = 8


class Parking:
    """The parked task of one runner."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.waiter: Waiter | None = None  # of the parked task, if there is one
        self._left = 0  # how often it is replaced until the next pump

    def look(self) -> None:
        """After a pump: park, or leave."""
        self._left = PARKS
        self._look()

    def _look(self) -> None:
        runner, scheduler, backend = self._runner, self._runner.scheduler, self._runner.backend
        is_idle = bool(scheduler.queued) and not scheduler.turns.occupied
        if is_idle and self.waiter is None and not backend.ending:
            waiter = self.waiter = backend.waiter()

            async def wait() -> None:
                await waiter

            run = wait()
            try:
                backend.when_over(backend.start(run, Context()), self._is_over)
            except RuntimeError:  # the loop has ended just now
                run.close()
                self.waiter = None
        elif not is_idle and self.waiter is not None:
            runner.backend.wake(self.waiter)

    def _is_over(self, task: Handle) -> None:
        """Perhaps somebody has cancelled it, as all others of the loop."""
        self.waiter = None
        if self._runner.scheduler.queued and self._left:
            self._left -= 1
            self._look()
