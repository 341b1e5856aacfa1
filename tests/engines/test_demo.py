"""`python -m fifo_background postgres`: what it shows, and that it leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree

import pytest

from fifo_background import __main__ as entry

for package in ("fastapi", "uvicorn", "rich", "typer"):
    pytest.importorskip(package)
psutil = pytest.importorskip("psutil")
demo = pytest.importorskip("fifo_background.cli.demo")
server = pytest.importorskip("fifo_background.cli.server")
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files; at the end there is nothing in it, and no process knows of it."""
    folder = Path(tempfile.mkdtemp())
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    try:
        yield folder
        assert list(folder.iterdir()) == []
        assert [process for process in psutil.process_iter() if knows(process, str(folder / "fifo"))] == []
    finally:
        rmtree(folder)


def knows(process: psutil.Process, text: str) -> bool:
    try:
        return any(text in part for part in (*process.cmdline(), *process.environ().values()))
    except psutil.Error:  # it is gone, or somebody else's
        return False


def test_demo(temporary: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a worker killed the order is kept, nothing is lost, and what it had in hand runs again."""
    monkeypatch.setattr(demo, "REQUESTS", 60)
    assert entry.postgres() == 0
    first, order, lost, again, still = capsys.readouterr().out.splitlines()
    assert first == "60 requests to 2 apps; 5 lanes; 2 workers, one of them killed with kill -9"
    assert (order.strip(), lost.strip()) == ("order: kept in each lane", "lost: 0")
    assert re.fullmatch(r"     ran again: (\w+ \d+)(, \w+ \d+)*", again)
    assert re.fullmatch(r"   stood still: (\w+ for \d+\.\d s)(, \w+ for \d+\.\d s)*", still)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(number: int, code: int, temporary: Path) -> None:
    """Ctrl-C, or SIGTERM, ends all of it: while PostgreSQL starts, and while tasks run."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fifo_background", "postgres"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        text=True,
    )
    awaited = "*/data" if number == signal.SIGTERM else "*/books.txt"
    while not list(temporary.glob(awaited)):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    assert process.communicate(timeout=60)[0].strip() == "Ended. Nothing is left behind."
    assert process.returncode == code


def test_no_server(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where PostgreSQL does not start, the demo says what it said."""
    monkeypatch.setattr(server, "__name__", "fifo_background.nowhere")
    assert demo.main() == 1
    assert "the demo could not run: PostgreSQL did not start: " in capsys.readouterr().err


def test_a_server_that_is_left(tmp_path: Path) -> None:
    """A server whose start was not over is ended by its pid, gently at first."""
    ignores = "import signal; signal.signal(signal.SIGQUIT, signal.SIG_IGN); print(1, flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", ignores], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    (tmp_path / "postmaster.pid").write_text(f"{process.pid}\n/data\n")
    server._end(tmp_path, patience=1)
    assert process.wait(10) == -signal.SIGKILL
    process.communicate()


def test_missing_packages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where a package is missing, one line says what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in ("rich", "typer") else name)
    assert entry.postgres() == 2
    assert capsys.readouterr().err == (
        "missing: rich, typer. Run `python -m pip install 'fifo-background[demo-postgres]'` first\n"
    )


def test_no_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the demo's app is not found, an error says where it was looked for."""
    monkeypatch.setattr(demo, "__file__", "/nowhere/fifo_background/cli/demo.py")
    with pytest.raises(RuntimeError, match=r"postgres_app\.py is neither in /nowhere/fifo_background"):
        demo._examples()


# -- what the lines of the tasks say -------------------------------------------------------------------------

KILLED, OTHER = 7, 8


def judged(*lines: str) -> demo.Found:
    """Of lines like "8 begins 1", of one customer with the orders 1 and 2; the worker was killed at 1.0."""
    split = (line.split() for line in lines)
    found = [
        demo.Line(place + 1.5, int(pid), what, "ann", int(n)) for place, (pid, what, n) in enumerate(split)
    ]
    return demo.judge(found, {"ann": [1, 2]}, KILLED, 1.0)


def test_kept() -> None:
    """One after the other: the order is kept."""
    assert judged("8 begins 1", "8 ends 1", "7 begins 2", "7 ends 2") == (0, [], [], {})


def test_again() -> None:
    """What the killed worker had begun, or ended without telling, may begin anew."""
    for before in (("7 begins 1",), ("7 begins 1", "7 ends 1")):
        found = judged(*before, "8 begins 1", "8 ends 1", "8 begins 2", "8 ends 2")
        assert (found.lost, found.disordered) == (0, [])
        assert [line.number for line in found.again] == [1]
        assert found.still == {"ann": len(before) + 0.5}


def test_broken() -> None:
    """Overlapping, swapped and lost orders are seen."""
    assert judged("8 begins 1", "9 begins 2", "8 ends 1", "9 ends 2").disordered == [
        "ann 2",
        "ann 1",
        "ann 2",
    ]
    assert judged("8 begins 2", "8 ends 2", "8 begins 1", "8 ends 1").disordered == ["ann: [2, 1]"]
    assert judged("8 ends 1", "8 begins 2", "8 ends 2").disordered == ["ann 1"]
    assert judged("8 begins 1", "8 ends 1").lost == 1


def test_nobody_to_kill(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no worker is seen with a task in hand, the demo says so, and ends all of it."""
    monkeypatch.setattr(demo, "REQUESTS", 4)
    monkeypatch.setattr(demo, "_in_hand", lambda lines, pid: False)
    assert demo.main() == 1


def test_told(capsys: pytest.CaptureFixture[str]) -> None:
    """A broken order, or a loss, is told, and is the exit code."""
    console = demo.Console(highlight=False)
    assert demo._tell(console, demo.Found(0, ["ann 2"], [], {})) == 1
    assert demo._tell(console, demo.Found(3, [], [], {})) == 1
    out = capsys.readouterr().out
    assert "order: broken: ann 2" in out
    assert "lost: 3" in out
    assert "ran again: nothing" in out
    assert "stood still: none" in out
