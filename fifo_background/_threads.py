"""Between the event loop and its worker threads: calls into the loop, and stays in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread

from fifo_background._lane import Runner
from fifo_background._loop import EventLoop, Waiter, running_loop

__all__ = ("Threads", "in_loop_of_caller")

T = TypeVar("T")


def in_loop_of_caller(function: Callable[[], T]) -> T:
    """Call in the running event loop, or in the one that owns this worker thread.

    Raises RuntimeError in any other thread.
    """
    try:
        running_loop()
    except RuntimeError:
        pass
    else:
        return function()
    try:
        return anyio.from_thread.run_sync(function)
    except RuntimeError:
        raise RuntimeError(
            "this can be called from the event loop and from anyio worker threads of it (def endpoints, def "
            "tasks, anyio.to_thread.run_sync). From another thread, hand the call to the loop: "
            "loop.call_soon_threadsafe(executor.submit_nowait, func)"
        ) from None


class Threads:
    """Runs functions in anyio's worker threads, with tokens of our own: no limit but that of the lanes."""

    def __init__(self) -> None:
        self._limiter: anyio.CapacityLimiter | None = None

    async def run(self, function: Callable[[], T], loop: EventLoop, runner: Runner | None = None) -> T:
        """`anyio.to_thread.run_sync`, but no cancel ends it before the thread has left `function`.

        A native cancel makes anyio's own return while the thread still runs. A cancelled `runner` is told
        to stop, so that the end does not wait for all the jobs behind the running one.
        """
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(float("inf"))
        stay = _Stay(function, loop)
        try:
            return await anyio.to_thread.run_sync(stay.run, limiter=self._limiter)
        except BaseException:
            if runner is not None:
                runner.stopped = True
            with anyio.CancelScope(shield=True):
                while (waiter := stay.abandon()) is not None:
                    try:
                        await waiter
                    except loop.cancelled:
                        pass  # the first cancel is raised below
            raise


class _Where(Enum):
    OUTSIDE = "outside"
    INSIDE = "inside"
    LEFT = "left"


class _Stay:
    """One function's stay in a worker thread, and who has to know when it is over."""

    def __init__(self, function: Callable[[], Any], loop: EventLoop) -> None:
        self._function = function
        self._loop = loop
        self._lock = threading.Lock()
        self._where = _Where.OUTSIDE
        self._waiter: Waiter | None = None

    def run(self) -> Any:
        with self._lock:
            if self._where is _Where.LEFT:  # abandoned before it began
                return None
            self._where = _Where.INSIDE
        try:
            return self._function()
        finally:
            with self._lock:
                self._where = _Where.LEFT
                waiter = self._waiter
            if waiter is not None:
                self._loop.soon(self._loop.wake, [waiter])

    def abandon(self) -> Waiter | None:
        """Nobody waits for the result any more. A waiter for the end of the stay, None if there is none."""
        with self._lock:
            if self._where is not _Where.INSIDE:
                self._where = _Where.LEFT
                return None
            self._waiter = self._loop.waiter()
            return self._waiter
