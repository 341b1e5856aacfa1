"""trio as a backend, by its system tasks: they outlive the request that starts them, and end with the run."""

from __future__ import annotations

import signal
import threading
import weakref
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import TYPE_CHECKING, Any

from fifo_background._run.backends.sniffio import set_library

if TYPE_CHECKING:
    import trio

    from fifo_background._run.backends.api import Handle, Waiter

__all__ = ("TrioBackend",)


class _TrioWaiter:
    __slots__ = ("event",)

    def __init__(self, event: trio.Event) -> None:
        self.event = event

    def __await__(self) -> Generator[Any, None, Any]:
        return self.event.wait().__await__()


class TrioBackend:
    """One run of trio."""

    def __init__(self, token: Any) -> None:
        import trio

        self._trio = trio
        self._ref = weakref.ref(token)
        self._clock = trio.lowlevel.current_clock()
        self.ending: bool = False
        self.loop_ends: Callable[[], object] = bool
        self._told = False
        self._over: dict[trio.CancelScope, Callable[[Any], object]] = {}
        self.cancelled: type[BaseException] = trio.Cancelled

    @property
    def clock(self) -> Callable[[], float]:
        return self._clock.current_time

    @property
    def is_dead(self) -> bool:
        token = self._ref()
        if token is None:
            return True
        try:
            token.run_sync_soon(_nothing)
        except self._trio.RunFinishedError:
            return True
        return False

    def is_current(self) -> bool:
        try:
            return self._trio.lowlevel.current_trio_token() is self._ref()
        except RuntimeError:
            return False

    def is_ending_seen_from_thread(self) -> bool:
        try:
            vars(self._trio.from_thread)["check_cancelled"]()
        except KeyError:  # trio < 0.23 cannot tell
            pass
        except self._trio.Cancelled:
            self.ending = True
        return self.ending

    def ends_by(self, error: BaseException) -> bool:
        # our own scopes are asked for, and a user's scopes catch what they cancel
        if isinstance(error, self._trio.Cancelled):
            self._run_ends()
        return self.ending

    def is_cancelling(self) -> bool:
        return False  # a user's own cancel scope ends with the job

    def start(self, run: Coroutine[Any, Any, None], context: Context) -> Handle | None:
        scope = self._trio.CancelScope()

        async def system_task() -> None:
            set_library("trio")  # trio < 0.22 sets it in contexts of its own only
            try:
                await self._trio.lowlevel.checkpoint_if_cancelled()  # in a run that ends nothing starts
                with scope:
                    await run
            except self._trio.Cancelled:  # not by our own scope: the run ends
                self._run_ends()
                raise
            finally:
                run.close()
                self._over.pop(scope, bool)(scope)
                if self.ending:
                    self._run_ends()

        try:
            task = self._trio.lowlevel.spawn_system_task(system_task)
        except RuntimeError as error:
            if type(error) is RuntimeError:  # not, for example, RecursionError: the run has ended
                self._run_ends()
            raise
        task.context = context  # not given to trio, which would enter it here: a run that ends may be in it
        return scope

    def when_over(self, handle: trio.CancelScope, call: Callable[[Any], object]) -> None:
        self._over[handle] = call

    def _run_ends(self) -> None:
        self.ending = True
        if not self._told:
            self._told = True
            self.loop_ends()

    def soon(self, call: Callable[[], object]) -> bool:
        token = self._ref()
        if token is None:
            return False
        try:
            token.run_sync_soon(call)
        except self._trio.RunFinishedError:
            return False
        return True

    work_soon = soon  # `start` looks whether the run ends

    def later(self, delay: float, call: Callable[[], None]) -> Handle:
        scope = self._trio.CancelScope()

        async def system_task() -> None:
            with scope:
                await self._trio.sleep(delay)
                call()

        self._trio.lowlevel.spawn_system_task(system_task)
        return scope

    def waiter(self) -> Waiter:
        return _TrioWaiter(self._trio.Event())

    def wake(self, waiter: _TrioWaiter) -> None:
        waiter.event.set()

    def reraise(self, error: BaseException) -> bool:
        # A system task must not raise, and trio has no other way to make its main task raise something. So
        # that is told as by Ctrl-C, by trio's handler, or by the one that a server has set in its place.
        if threading.current_thread() is not threading.main_thread():
            return False
        if signal.getsignal(signal.SIGINT) in (None, signal.SIG_IGN, signal.default_int_handler):
            return False  # nobody hears it, or it would be raised here
        signal.raise_signal(signal.SIGINT)
        return True


def _nothing() -> None: ...
