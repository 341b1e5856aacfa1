"""The plugin of anyio runs an `async def` test on every loop; `virtual_clock` tests where time can jump."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.support.apps import Work
from tests.support.log import Log
from tests.support.loops import LOOPS, VIRTUAL, Backend, backend_of, leaves_nothing
from tests.support.status import FACES, Site

# Names a folder that all processes of a run share. Not pytest's own: PostgreSQL, which never runs as root,
# opens the folders above its data to others, and pytest closes them again.
FOLDER = "FIFO_BACKGROUND_TEST_FOLDER"


def _made_folder(config: pytest.Config) -> str:
    folder = tempfile.mkdtemp(prefix="fifo-background-tests-")
    config.add_cleanup(functools.partial(shutil.rmtree, folder, ignore_errors=True))
    return folder


def pytest_configure(config: pytest.Config) -> None:
    os.environ[FOLDER] = os.environ.get(FOLDER) or _made_folder(config)
    config.addinivalue_line("markers", "virtual_clock: time jumps when every task waits for it")
    config.addinivalue_line("markers", "one_loop: nothing in it depends on the event loop")
    config.addinivalue_line("markers", "version_free: nothing in it depends on a version of what is below us")


@pytest.hookimpl(tryfirst=True)  # before the plugin looks for the marker
def pytest_pycollect_makeitem(collector: Any, name: str, obj: Any) -> None:
    """Do what newer plugins do with `anyio_mode = "auto"`, which anyio 3.5 does not know."""
    if inspect.iscoroutinefunction(obj) and collector.istestfunction(obj, name):
        pytest.mark.anyio(obj)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "anyio_backend" in metafunc.fixturenames:
        loops = VIRTUAL if metafunc.definition.get_closest_marker("virtual_clock") else LOOPS
        if metafunc.definition.get_closest_marker("one_loop"):
            loops = LOOPS[:1]
        elif "postgres" in metafunc.fixturenames:
            loops = [loop for loop in LOOPS if loop != "trio"]
        metafunc.parametrize("anyio_backend", loops, indirect=True)


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    virtual = request.node.get_closest_marker("virtual_clock") is not None
    with backend_of(request.param, virtual=virtual) as backend:
        yield backend


@pytest.hookimpl(tryfirst=True)  # before the plugin runs the test
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    if inspect.iscoroutinefunction(pyfuncitem.obj):
        backend: Any = pyfuncitem.funcargs["anyio_backend"]
        pyfuncitem.obj = leaves_nothing(backend, pyfuncitem.obj)


@pytest.fixture(autouse=True)
def ctrl_c_raises() -> None:
    """A loop that a test has left behind may keep its handler: then Ctrl-C would not reach the next loop."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def log() -> Iterator[Log]:
    said = Log()

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.add(record)

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


@pytest.fixture
def work(events: list[Any]) -> Work:
    """Tasks that record what they do in `events`."""
    return Work(events)


@pytest.fixture(params=FACES)
def site(request: pytest.FixtureRequest) -> Site:
    """An app that shows its tasks, in each face."""
    return Site(request.param)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """The PostgreSQL of the test run; a test that asks for it runs on asyncio and uvloop."""
    from tests.support.postgres import Server

    with Server.running(Path(os.environ[FOLDER])) as server:
        yield server


@pytest.fixture(scope="session")
def dsn(postgres: Any) -> str:
    """A database with the tables, in which each test takes a queue of its own."""
    from tests.support.postgres import migrated

    return anyio.run(migrated, postgres.database())
