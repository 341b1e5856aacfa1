"""The event loops on which tests run, each as a backend of anyio with its options."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import selectors
import time
from collections.abc import Awaitable, Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any
from unittest import mock

import anyio

from fifo_background._run.backends.sniffio import set_library

LOOPS = ["asyncio", *(["uvloop"] if find_spec("uvloop") else []), "trio"]
VIRTUAL = ["asyncio", "trio"]
PATIENCE = 5.0
ANYIO_3 = version("anyio").startswith("3.")

Backend = tuple[str, dict[str, Any]]
Test = Callable[..., Awaitable[None]]


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


def _patient_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.SelectorEventLoop()
    loop.slow_callback_duration = 3600  # on a busy machine its warnings pile up, and prove nothing
    return loop


@contextlib.contextmanager
def backend_of(loop: str, *, virtual: bool = False) -> Iterator[Backend]:
    """The loop of that name as anyio takes it: a backend, and its options."""
    if loop == "trio":
        with _trio_tells_how_it_ends():
            yield "trio", _trio_options(virtual)
        return
    if loop == "uvloop":
        options: dict[str, Any] = {"use_uvloop": True}
    else:
        options = {"debug": not virtual, **_made_by(_JumpingLoop if virtual else _patient_loop)}
    with _policy_restored():
        yield "asyncio", options


def _trio_options(virtual: bool) -> dict[str, Any]:
    if not virtual:
        return {}
    from trio.testing import MockClock

    return {"clock": MockClock(autojump_threshold=0)}


def _made_by(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> dict[str, Any]:
    """The option of anyio for it; anyio 3 has only one for a policy."""
    if not ANYIO_3:
        return {"loop_factory": new_loop}
    policy = asyncio.DefaultEventLoopPolicy()
    policy.new_event_loop = new_loop  # type: ignore[method-assign]
    return {"policy": policy}


@contextlib.contextmanager
def _policy_restored() -> Iterator[None]:
    """anyio 3 leaves its policy behind, also that of uvloop."""
    try:
        yield
    finally:
        if ANYIO_3:
            asyncio.set_event_loop_policy(None)


@contextlib.contextmanager
def _trio_tells_how_it_ends() -> Iterator[None]:
    """Raise a crash of trio, as `trio.run` does: the runner of anyio's plugin drops how its run has ended."""
    from anyio._backends._trio import TestRunner

    ended = TestRunner._main_task_finished
    outcomes: list[Any] = []

    def told(runner: TestRunner, outcome: Any) -> None:
        ended(runner, outcome)
        outcomes.append(outcome)

    with mock.patch.object(TestRunner, "_main_task_finished", told):
        yield
    for outcome in outcomes:
        outcome.unwrap()


def leaves_nothing(backend: Backend, test: Test) -> Test:
    """The test, which fails if it leaves tasks of asyncio behind. trio's tasks end with their nurseries."""
    if backend[0] == "trio":
        return test

    @functools.wraps(test)
    async def checked(*args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        set_library(None)  # anyio has told sniffio which library runs; a server does not
        before = asyncio.all_tasks()  # the test's own, and in newer anyio one that waits for it
        await test(*args, **kwargs)
        left = await _left_behind(before)
        assert not left, f"the test left tasks behind: {left}"

    return checked


def on_asyncio() -> bool:
    """Whether the caller runs on asyncio or uvloop, not on trio."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _left_behind(before: set[asyncio.Task[Any]]) -> set[asyncio.Task[Any]]:
    """The tasks that do not end; a runner may still be on its way out of its thread.

    A thread takes real time, which a virtual clock jumps over: the limit is in real seconds.
    """
    left = asyncio.all_tasks() - before
    give_up = time.monotonic() + PATIENCE
    while left and time.monotonic() < give_up:
        _, left = await asyncio.wait(left, timeout=0.01)
    return left


def run(loop: str, test: Test, *, virtual: bool = False) -> None:
    """Run `test()` to its end on a new loop, as the plugin does; for tests that need many loops."""
    with backend_of(loop, virtual=virtual) as backend:
        name, options = backend
        anyio.run(leaves_nothing(backend, test), backend=name, backend_options=options)
