"""An `async def` test runs once on every event loop; `virtual_clock` tests on those that can jump."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.log import Log
from tests.support.loops import LOOPS, VIRTUAL, run


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "virtual_clock: time jumps when every task waits for it")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if inspect.iscoroutinefunction(metafunc.function):
        virtual = metafunc.definition.get_closest_marker("virtual_clock") is not None
        metafunc.fixturenames.append("event_loop_name")
        metafunc.parametrize("event_loop_name", VIRTUAL if virtual else LOOPS)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    given = {name: pyfuncitem.funcargs[name] for name in names}
    virtual = pyfuncitem.get_closest_marker("virtual_clock") is not None
    loop = pyfuncitem.callspec.params["event_loop_name"]
    run(loop, functools.partial(pyfuncitem.obj, **given), virtual=virtual)
    return True


@pytest.fixture
def log() -> Iterator[Log]:
    said = Log()

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(f"{record.levelname} {record.getMessage()}")
            said.records.append(record)

    handler = Keep()
    logger = logging.getLogger("fifo_background")
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


@pytest.fixture
def events() -> list[Any]:
    """The events of a test, in order."""
    return []
