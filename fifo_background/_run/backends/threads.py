"""Between the event loop and its worker threads: calls into the loop, and functions run in a thread."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
import starlette.background

from fifo_background._core.lane import Trip
from fifo_background._run.backends.api import Backend, Waiter, running_loop

__all__ = ("Threads", "in_loop_of_caller")

T = TypeVar("T")


def in_loop_of_caller(function: Callable[[], T], what: str) -> T:
    """Call in the running event loop, or in the one that owns this worker thread, and wait for the result.

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
    except RuntimeError as error:
        if "worker thread" not in str(error):  # the function's own
            raise
        raise RuntimeError(
            f"{what} can be called in the event loop and in anyio worker threads of it (def endpoints, def "
            "tasks, anyio.to_thread.run_sync). From another thread, hand the call to the loop: "
            f"loop.call_soon_threadsafe({what})"
        ) from None


class Threads:
    """Runs functions in anyio's worker threads, with tokens of our own: no limit but that of the lanes."""

    def __init__(self) -> None:
        self._limiter: anyio.CapacityLimiter | None = None

    async def run(self, function: Callable[[], T], backend: Backend, trip: Trip) -> T:
        """`anyio.to_thread.run_sync`, but no cancel ends it before the thread has left `function`.

        A native cancel makes anyio's own return while the thread still runs. `trip.stop` is set then, so that
        the end does not wait for a whole batch.
        """
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(float("inf"))
        stay = _Stay(function, backend)
        try:
            in_threadpool: Any = vars(starlette.background)["run_in_threadpool"]
            result: T
            if _is_own(in_threadpool):
                result = await anyio.to_thread.run_sync(stay.run, limiter=self._limiter)
            else:  # an agent carries its state into threads there; this takes a token of anyio's
                result = await in_threadpool(stay.run)
            if stay.is_outside:
                raise RuntimeError(
                    "a replaced `run_in_threadpool` or `run_sync` did not run the function that it was given"
                )
            return result
        except BaseException:
            trip.stop = True
            with anyio.CancelScope(shield=True):
                while (waiter := stay.abandon()) is not None:
                    try:
                        await waiter
                    except backend.cancelled:
                        pass  # the first cancel is raised below
            raise


def _is_own(function: Any) -> bool:
    """Whether this is the function that Starlette defines, not one that wraps or replaces it."""
    return type(function) is FunctionType and function.__module__ == "starlette.concurrency"


class _Stay:
    """One function's trip to a worker thread, and the waiter that is told when it is over."""

    def __init__(self, function: Callable[[], Any], backend: Backend) -> None:
        self._function = function
        self._backend = backend
        # Whoever takes it out decides whether the function runs: one atomic act.
        self._entrance: list[None] = [None]
        self._left = False
        self._waiter: Waiter | None = None

    def run(self) -> Any:
        try:
            self._entrance.pop()
        except IndexError:  # abandoned before it began
            return None
        try:
            return self._function()
        finally:
            self._left = True  # before the look at the waiter, which `abandon` sets before it looks here
            if (waiter := self._waiter) is not None:
                self._backend.soon(lambda: self._backend.wake(waiter))

    @property
    def is_outside(self) -> bool:
        """Whether no thread has entered it."""
        return bool(self._entrance)

    def abandon(self) -> Waiter | None:
        """Nobody waits for the result anymore. A waiter for the end of the stay, None if there is none."""
        try:
            self._entrance.pop()
            return None
        except IndexError:
            pass
        self._waiter = self._backend.waiter()
        return None if self._left else self._waiter
