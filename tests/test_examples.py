"""The examples, run as a reader runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import anyio.to_thread
import pytest
from starlette.testclient import TestClient

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
ROOT = Path(__file__).parent.parent


def run(*args: str, says: str = "") -> list[str]:
    """The lines that a Python command prints, run from the root of the checkout; `says` is its stderr."""
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
    assert (done.returncode, done.stderr) == (0, says)
    return done.stdout.splitlines()


def test_stack_overflow() -> None:
    """The first story: all requests are answered before a result is stored, and then in their order."""
    order, answered, stored_by_then = run("examples/stack_overflow.py")
    assert order == "0 1 2 3 4 5 6 7"
    assert answered.startswith("all 8 requests were answered after ")
    assert stored_by_then == "results stored when the last request was answered: 0"


def test_client_ignores_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo asks its own server, whatever proxy the environment names."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert run("examples/stack_overflow.py")[0] == "0 1 2 3 4 5 6 7"


def test_one_thread_token() -> None:
    """The app of the first story has one thread token, on every version of anyio."""
    from fifo_background import BackgroundTasks
    from fifo_background.__main__ import _load_example

    app = _load_example().make_app(BackgroundTasks, 1)

    @app.get("/tokens")
    async def tokens() -> float:
        return anyio.to_thread.current_default_thread_limiter().total_tokens

    with TestClient(app) as client:
        assert client.get("/tokens").json() == 1


def test_game_stats() -> None:
    """The second story: with ours each player's newest score stays, with plain tasks an old one."""
    assert run("examples/game_stats.py") == GAME_STATS


GAME_STATS = [
    "plain   stored 7 6 5 4 3 2 1 0; ann sees 0, bob sees 1",
    "ordered stored 0 1 2 3 4 5 6 7; ann sees 6, bob sees 7",
]
SLOWLY = """
import sys, time
sys.path.insert(0, "examples")
import game_stats, stack_overflow
ask = stack_overflow._ask
stack_overflow._ask = lambda *args: time.sleep(2 * game_stats.SLOW) or ask(*args)
game_stats.main()
"""


def test_game_stats_under_load() -> None:
    """The second story ends the same on a busy machine, where a push takes longer than to store a result."""
    assert run("-c", SLOWLY) == GAME_STATS


def test_lanes() -> None:
    """In one queue bob waits for ann, with lanes he does not; each player's results stay in order."""
    assert run("examples/lanes.py") == [
        "one queue ann 1, bob 2, ann 3, bob 4",
        "lanes     bob 2, bob 4, ann 1, ann 3",
    ]


def test_retries() -> None:
    """A retry holds the lane: `0 0 1 2 3`."""
    assert run("examples/retries.py", says="stamina.retry_scheduled\n") == ["0 0 1 2 3"]


def test_demo() -> None:
    """`python -m fifo_background` shows both orders; ours is that of the requests, the plain one is not."""
    title, plain, ordered = run("-m", "fifo_background")
    assert title.startswith("10 requests")
    assert "out of order; all answered after" in plain
    assert "ordered: 0 1 2 3 4 5 6 7 8 9   in order; all answered after" in ordered


def test_demo_in_process(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo ends with 0 if our order was kept, 1 if not, and 2 if something is missing."""
    from fifo_background import __main__ as demo

    assert demo.main() == 0
    assert "in order" in capsys.readouterr().out

    class Broken:
        make_app = staticmethod(lambda tasks_class, total: None)
        order_seen = staticmethod(lambda app, paths: ([1, 0], 0.0, 0))

    with monkeypatch.context() as patch:
        patch.setattr(demo, "_load_example", lambda: Broken)
        assert demo.main() == 1
    assert "please report this" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert demo.main() == 2
    assert "pip install 'fifo-background[demo]'" in capsys.readouterr().err
    monkeypatch.setattr(demo, "__file__", "/nowhere/fifo_background/__main__.py")
    with pytest.raises(SystemExit, match=r"stack_overflow.py is neither in"):
        demo._load_example()
