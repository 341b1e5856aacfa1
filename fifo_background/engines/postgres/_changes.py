"""Tells those who follow that something has changed in the database, and tells other processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fifo_background.exceptions import ExecutorClosed

__all__ = ("Changes",)

# Seconds from a change to its notification, which is that of all changes until then.
_SOON = 0.2


class Changes:
    """Who follows what happens in the database, in one event loop.

    `listen()`: hear of it from here on. `send()`: tell all processes.
    """

    def __init__(self, listen: Callable[[], object], send: Callable[[], object]) -> None:
        self._listen = listen
        self._send = send
        self._version: int = 0
        self._waiting: set[asyncio.Event] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.is_over: bool = False  # the app shuts down

    def tell(self) -> None:
        """This process has changed something."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SOON, self._tell)

    def _tell(self) -> None:
        self._timer = None
        self._send()

    def heard(self) -> None:
        """Something has changed, in any process."""
        self._version += 1
        self._wake()

    def begin(self) -> None:
        self.is_over = False

    def end(self) -> None:
        """Those who follow leave."""
        self.is_over = True
        self._wake()

    def stop(self) -> None:
        """Tell nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def is_followed(self) -> bool:
        return bool(self._waiting)

    def _wake(self) -> None:
        for wake in self._waiting:
            wake.set()

    async def after(self, version: int) -> int:
        """Wait until something has changed since `version` was returned; returns the version now.

        Raises `ExecutorClosed` once the app shuts down.
        """
        wake = asyncio.Event()
        self._waiting.add(wake)
        try:
            while True:
                if self.is_over:
                    raise ExecutorClosed("waiting for changes")
                self._listen()
                if self._version != version:
                    return self._version
                await wake.wait()
        finally:
            self._waiting.discard(wake)
