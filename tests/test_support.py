"""What anyio's plugin and `tests/support/loops.py` make of tests that fail."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.loops import LOOPS, VIRTUAL

ROOT = Path(__file__).parent.parent
OUTCOME = re.compile(r"^(ERROR|FAILED|PASSED) test_it.py::test_(\S+)(?: - ([\w.]+))?", re.MULTILINE)
UNRAISABLE = "pytest.PytestUnraisableExceptionWarning"
TESTS = """
import gc, time
import anyio, anyio.to_thread, pytest
from tests.support import loops

loops.PATIENCE = 0

async def test_fails():
    raise LookupError

async def test_leaves_a_task(anyio_backend_name):
    if anyio_backend_name == "trio":
        return
    import asyncio
    kept.append(asyncio.ensure_future(asyncio.sleep(3600)))

async def test_crashes_trio(anyio_backend_name):
    if anyio_backend_name != "trio":
        return
    import trio
    async def crash():
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("in a system task")
    trio.lowlevel.spawn_system_task(crash)
    await anyio.wait_all_tasks_blocked()

async def test_awaits_nothing():
    anyio.sleep(0)
    gc.collect()

@pytest.mark.virtual_clock
async def test_sleeps():
    begin = time.monotonic()
    await anyio.sleep(3600)
    assert anyio.current_time() == 3600
    await anyio.to_thread.run_sync(time.sleep, 0.05)
    assert 0.05 < time.monotonic() - begin < 60

def test_sync():
    pass

kept = []
"""


def test_tests_that_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An async test that fails shows its own error on each loop, and fails if it leaves something behind."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # it takes seconds to import others
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "conftest.py").write_text("from tests.conftest import *")
    (tmp_path / "test_it.py").write_text(TESTS)
    options = ["-q", "-rfEp", "-p", "anyio", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", "."]
    strict = ["-W", "error:coroutine", "-W", f"error::{UNRAISABLE}"]
    said = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *strict],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    on_asyncio = [loop for loop in LOOPS if loop != "trio"]
    assert sorted(OUTCOME.findall(said)) == sorted(
        [
            *(("FAILED", f"fails[{loop}]", "LookupError") for loop in LOOPS),
            *(("FAILED", f"leaves_a_task[{loop}]", "AssertionError") for loop in on_asyncio),
            ("PASSED", "leaves_a_task[trio]", ""),
            *(("PASSED", f"crashes_trio[{loop}]", "") for loop in LOOPS),
            ("ERROR", "crashes_trio[trio]", "trio.TrioInternalError"),
            *(("FAILED", f"awaits_nothing[{loop}]", UNRAISABLE) for loop in LOOPS),
            *(("PASSED", f"sleeps[{loop}]", "") for loop in VIRTUAL),
            ("PASSED", "sync", ""),
        ]
    )
