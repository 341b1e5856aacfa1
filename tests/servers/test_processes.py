"""Real servers with one worker, which says nothing, and with several, of which each that can tell says so."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from signal import SIGTERM

import pytest
import test_end
from test_end import Server, serving

UVICORN = "uvicorn end_app:app --port {port}"
HYPERCORN = "hypercorn end_app:app -b 127.0.0.1:{port}"
GUNICORN = "gunicorn end_app:app -b 127.0.0.1:{port} --no-control-socket"
GRANIAN = "granian end_app:app --interface asgi --port {port}"
FOUND = find_spec("uvicorn_worker")  # the class is in uvicorn itself before
UVICORN_WORKER = f"-k {'uvicorn_worker' if FOUND else 'uvicorn.workers'}.UvicornWorker"
MODULES = {
    UVICORN_WORKER: "uvicorn_worker" if FOUND else "uvicorn.workers",
    "-k asgi": "gunicorn.workers.gasgi",
    "-k trio": "trio",
    "-k uvloop": "uvloop",
    "--loop uvloop": "uvloop",
}

ONE = [
    UVICORN,
    f"{UVICORN} --reload",
    f"{UVICORN} --reload --workers 2",  # uvicorn ignores the number
    f"{UVICORN} --lifespan off",
    HYPERCORN,
    f"{HYPERCORN} -w 0",
    f"{HYPERCORN} --reload",
    f"{HYPERCORN} -k trio",
    f"{GUNICORN} {UVICORN_WORKER}",
    f"{GUNICORN} {UVICORN_WORKER} -w 1 --reload",
    f"{GUNICORN} -k asgi",
    f"{GRANIAN} --workers 1",
]
# What is seen, and how many of the workers see it.
SEVERAL = {
    f"{UVICORN} --workers 2": ("uvicorn with 2 workers", 2),
    f"{UVICORN} --workers 2 --loop asyncio": ("uvicorn with 2 workers", 2),
    f"{HYPERCORN} -w 2": ("hypercorn with 2 workers", 2),
    f"{HYPERCORN} -w 2 --reload": ("hypercorn with 2 workers", 2),
    f"{HYPERCORN} -w 2 -k uvloop": ("hypercorn with 2 workers", 2),
    f"{HYPERCORN} -w 2 -k trio": ("hypercorn with 2 workers", 2),
    f"{GUNICORN} -w 2 {UVICORN_WORKER} --preload": ("gunicorn with 2 workers", 2),
    f"{GUNICORN} -w 2 -k asgi": ("gunicorn with 2 workers", 2),
    f"{GRANIAN} --workers 2 --loop uvloop": ("granian's worker 2", 1),
    f"{GRANIAN} --workers 2 --runtime-mode mt": ("granian's worker 2", 1),
}


def skip_if_missing(command: str) -> None:
    server = command.split()[0]
    for module in (server, *(module for part, module in MODULES.items() if part in command)):
        if find_spec(module.partition(".")[0]) is None or find_spec(module) is None:
            pytest.skip(f"{module} is not installed")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with workers or a reloader imports the app up to four times, before it listens."""
    monkeypatch.setattr(test_end, "PATIENCE", 60.0)


def warnings_of(server: Server) -> list[str]:
    return server.lines("LOG this app runs in several processes")


def says_nothing(command: str, folder: Path) -> None:
    with serving(command, folder, "plain") as server:
        server.add("sync")
        server.signal(SIGTERM)
    assert warnings_of(server) == []


def says(seen: str, times: int, command: str, folder: Path) -> None:
    with serving(command, folder, "plain") as server:
        # a worker that is still starting may miss the signal
        server.until(lambda: len(server.lines("@ lifespan.startup")) == 2)
        server.until(lambda: len(warnings_of(server)) == times)
        for _ in range(10):
            server.ask("POST", "/add?task=sync_0")
        server.signal(SIGTERM)
    assert [line.partition(".")[0] for line in warnings_of(server)] == [f" ({seen})"] * times


@pytest.mark.parametrize("command", ONE, ids=str)
def test_one(command: str, tmp_path: Path) -> None:
    """An app in one process says nothing of several, whether or not the server restarts it."""
    skip_if_missing(command)
    says_nothing(command, tmp_path)


@pytest.mark.parametrize("command", SEVERAL, ids=str)
def test_several(command: str, tmp_path: Path) -> None:
    """An app in several processes says so at its start, once in each worker that can tell, and no more."""
    skip_if_missing(command)
    says(*SEVERAL[command], command, tmp_path)


@pytest.mark.parametrize("command", [UVICORN, f"{GUNICORN} {UVICORN_WORKER}"])
def test_web_concurrency(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`WEB_CONCURRENCY` counts where the server reads it, and not where its command says another number."""
    skip_if_missing(command)
    monkeypatch.setenv("WEB_CONCURRENCY", "2")
    says(f"{command.split()[0]} with 2 workers", 2, command, tmp_path)
    says_nothing(f"{command} --workers 1", tmp_path)


@pytest.mark.parametrize("command", [HYPERCORN, GRANIAN])
def test_web_concurrency_unread(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`WEB_CONCURRENCY` counts for nothing where the server does not read it."""
    skip_if_missing(command)
    monkeypatch.setenv("WEB_CONCURRENCY", "2")
    says_nothing(command, tmp_path)


def test_granian_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`GRANIAN_WORKERS` is granian's own variable."""
    skip_if_missing(GRANIAN)
    monkeypatch.setenv("GRANIAN_WORKERS", "2")
    says("granian's worker 2", 1, GRANIAN, tmp_path)


@pytest.mark.parametrize(("workers", "times"), [(1, 0), (2, 2)])
def test_script(workers: int, times: int, tmp_path: Path) -> None:
    """`uvicorn.run` in a script is the same as the command."""
    skip_if_missing(UVICORN)
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, uvicorn\n"
        "if __name__ == '__main__':\n"
        f"    uvicorn.run('end_app:app', port=int(sys.argv[1]), workers={workers})\n"
    )
    if times:
        says("uvicorn with 2 workers", times, "script {port}", tmp_path)
    else:
        says_nothing("script {port}", tmp_path)


def test_no_lifespan(tmp_path: Path) -> None:
    """Without a lifespan a worker says so at its first request."""
    skip_if_missing(UVICORN)
    with serving(f"{UVICORN} --workers 2 --lifespan off", tmp_path, "plain") as server:
        assert len(warnings_of(server)) == 1
        server.signal(SIGTERM)
