"""The examples, run as a reader runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
ROOT = Path(__file__).parent.parent


def run(*args: str) -> list[str]:
    """The lines that a Python command prints, run from the root of the checkout."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *args],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_stack_overflow() -> None:
    """The first story: results are stored in the order of the requests."""
    assert run("examples/stack_overflow.py")[0] == "0 1 2 3 4 5 6 7"


def test_game_stats() -> None:
    """The second story: with ours the newest result stays, with plain tasks an old one."""
    plain, ordered = run("examples/game_stats.py")
    assert plain.startswith("plain   stored ")
    assert not plain.endswith("see 7")
    assert ordered == "ordered stored 0 1 2 3 4 5 6 7; the players see 7"


def test_demo() -> None:
    """`python -m fifo_background` shows both orders; ours is that of the requests, the plain one is not."""
    title, plain, ordered = run("-m", "fifo_background")
    assert title.startswith("10 requests")
    assert "out of order; all answered after" in plain
    assert "ordered: 0 1 2 3 4 5 6 7 8 9   in order; all answered after" in ordered
