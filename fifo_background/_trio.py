"""The face of a trio run."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any

from fifo_background._sniffio import set_library

if TYPE_CHECKING:
    import trio

    from fifo_background._loop import Handle, Waiter

__all__ = ("TrioLoop",)


class _TrioWaiter:
    __slots__ = ("event",)

    def __init__(self, event: trio.Event) -> None:
        self.event = event

    def __await__(self) -> Generator[Any, None, Any]:
        return self.event.wait().__await__()


class TrioLoop:
    """trio, by its system tasks: they outlive the request that starts them, and end with the run."""

    def __init__(self, token: Any) -> None:
        import trio

        self._trio = trio
        self._ref = weakref.ref(token)
        self._clock = trio.lowlevel.current_clock()
        self._ending = False
        self._tasks: dict[object, Coroutine[Any, Any, None]] = {}
        self._when_over: dict[trio.CancelScope, Callable[[], None]] = {}
        self.cancelled: type[BaseException] = trio.Cancelled

    @property
    def clock(self) -> Callable[[], float]:
        return self._clock.current_time

    def is_current(self) -> bool:
        try:
            return self._trio.lowlevel.current_trio_token() is self._ref()
        except RuntimeError:
            return False

    def is_(self, native: object) -> bool:
        return native is self._ref()

    def is_ending(self) -> bool:
        return self._ending

    def is_ending_seen_from_thread(self) -> bool:
        try:
            self._trio.from_thread.check_cancelled()
        except AttributeError:  # trio < 0.23 cannot tell
            pass
        except self._trio.Cancelled:
            self._ending = True
        return self._ending

    def start(self, run: Coroutine[Any, Any, None], context: Context) -> Handle | None:
        scope = self._trio.CancelScope()

        async def system_task() -> None:
            set_library("trio")  # trio < 0.22 sets it in contexts of its own only
            task = self._trio.lowlevel.current_task()
            self._tasks[task] = run
            try:
                with scope:
                    await run
            except self._trio.Cancelled:  # not by our own scope: the run ends
                self._ending = True
                raise
            finally:
                del self._tasks[task]
                self._when_over.pop(scope)()

        self._trio.lowlevel.spawn_system_task(system_task, context=context)
        return scope

    def when_over(self, handle: trio.CancelScope, call: Callable[..., None], *args: Any) -> None:
        self._when_over[handle] = partial(call, *args)

    def runs(self, run: Coroutine[Any, Any, None], handle: Handle | None) -> bool:
        return self._tasks.get(self._trio.lowlevel.current_task()) is run

    def soon(self, call: Callable[..., object], *args: Any) -> bool:
        token = self._ref()
        if token is None:
            return False
        try:
            token.run_sync_soon(call, *args)
        except self._trio.RunFinishedError:
            return False
        return True

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

    def wake(self, waiters: list[_TrioWaiter]) -> None:
        for waiter in waiters:
            waiter.event.set()
