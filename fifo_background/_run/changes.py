"""Tells those who follow an executor that something has changed. Costs next to nothing while nobody does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fifo_background._core.state import OPEN
from fifo_background.exceptions import ExecutorClosed

if TYPE_CHECKING:
    from fifo_background._run.runner import Runner

__all__ = ("Changes",)


class Changes:
    """What those who follow one runner wait for.

    Any thread may set `noted`; all else is the event loop's.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.noted: bool = False  # something has changed since a follower has looked
        self.waiters: list[Any] = []
        self._version: int = 0  # rises where a follower finds that something was noted

    def wake(self) -> None:
        """Those who wait look again."""
        self.noted = True
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            self._runner.backend.wake(waiter)

    async def wait(self, version: int) -> int:
        """Wait until something has changed since `version` was returned; returns the version now.

        Raises `ExecutorClosed` once the executor closes.
        """
        while True:
            if self._runner.scheduler.status is not OPEN:
                raise ExecutorClosed("waiting for changes")
            if self.noted:
                self.noted = False
                self._version += 1
            if self._version != version:
                return self._version
            waiter = self._runner.backend.waiter()
            self.waiters.append(waiter)
            try:
                if not self.noted:  # a thread that has set it just now knew of no waiter
                    await waiter
            finally:
                self.waiters = [other for other in self.waiters if other is not waiter]
