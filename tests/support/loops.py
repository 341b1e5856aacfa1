"""Runs one async test on an event loop by name; a virtual clock jumps when every task waits for time."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import Any

LOOPS = ["asyncio", *(["uvloop"] if find_spec("uvloop") else []), "trio"]
VIRTUAL = ["asyncio", "trio"]


class _JumpingSelector(selectors.DefaultSelector):
    """Never waits for time: it lets the loop's clock jump to the next timer instead."""

    jumped = 0.0

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(None if timeout is None else 0)
        if not events and timeout:
            self.jumped += timeout
        return events


class _JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.selector = _JumpingSelector()
        super().__init__(self.selector)

    def time(self) -> float:
        return self.selector.jumped


async def _left_behind() -> set[asyncio.Task[Any]]:
    """The tasks that do not end; a runner may still be on its way out of its thread.

    A thread takes real time, which a virtual clock jumps over: the limit is in real seconds.
    """
    left = asyncio.all_tasks() - {asyncio.current_task()}
    give_up = time.monotonic() + 5
    while left and time.monotonic() < give_up:
        _, left = await asyncio.wait(left, timeout=0.01)
    return left


def run(name: str, test: Callable[[], Awaitable[None]], *, virtual: bool = False) -> None:
    """Run `test()` to its end on a new loop. Debug mode is on for plain asyncio."""
    if name == "trio":
        import trio
        import trio.testing

        clock = trio.testing.MockClock(autojump_threshold=0) if virtual else None
        trio.run(test, clock=clock)
        return
    if name == "uvloop":
        import uvloop

        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    else:
        loop = _JumpingLoop() if virtual else asyncio.new_event_loop()
        loop.set_debug(not virtual)
    loop.slow_callback_duration = 3600  # on a busy machine its warnings pile up, and prove nothing
    try:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(test())
        left = loop.run_until_complete(_left_behind())
        assert not left, f"the test left tasks behind: {left}"
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
