"""A thousand requests at once through real servers: the order, the seriality and the books must be exact.

What each request does is drawn from a seed, which is printed; set CHAOS_SEED to draw the same requests again
and CHAOS_REQUESTS for more or fewer of them. The servers are subprocesses on loopback.

Each of these changes to the package makes at least one of the tests fail (tried under uvicorn):

- order: the line reversed; a place taken when the tasks are awaited instead of at `add_task`; a place that a
  worker thread takes a turn of the loop later; with "responded", a place taken at `add_task` or when awaited;
  the tasks of a request reversed; requests that take turns task by task
- alone: a second runner in a lane; a runner that is not the one its lane knows
- after the response: tasks that are ready as soon as they are awaited
- wake-ups: none when a runner has left, when a request has ended, or when a task has ended in a thread
- failures: the rest not skipped; skipped tasks not ended; the next request's tasks skipped too; a failure
  logged twice, or not at all
- drops: not logged; dropped tasks not ended; dropped tasks run; tasks that were awaited dropped in silence
- `hold`: ignored; for ever; a lost place not logged
- context: tasks run in an empty one

Not seen here, because none of these servers cancels a request that waits for its tasks: what that does.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import dropwhile
from pathlib import Path
from typing import Any

import pytest
from clients import Client, plan, report, visit

import fifo_background

pytest.importorskip("fastapi")

HERE = Path(__file__).parent
REQUESTS = int(os.environ.get("CHAOS_REQUESTS", "1000"))
AT_ONCE = 100
NOBODY_LOSES = 60.0  # seconds of `hold`

BAD_OUTPUT = (
    "Task was destroyed",
    "never retrieved",
    "never awaited",
    "a job cannot go from",
    "InvalidStateError",
    "RuntimeWarning",
    "ResourceWarning",
    "Exception in callback",
    "Exception ignored",
    "TrioInternalError",
)

SERVERS = {
    "uvicorn-uvloop": ("uvicorn uvloop", "uvicorn app:app --loop uvloop --port {port} --no-access-log"),
    "uvicorn-asyncio": ("uvicorn", "uvicorn app:app --loop asyncio --port {port} --no-access-log"),
    "hypercorn-trio": ("hypercorn trio", "hypercorn app:app -k trio -b 127.0.0.1:{port}"),
    "hypercorn-asyncio": ("hypercorn", "hypercorn app:app -k asyncio -b 127.0.0.1:{port}"),
    "granian": ("granian", "granian app:app --interface asgi --port {port}"),
}


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> str:
    modules, command = SERVERS[request.param]
    for module in modules.split():
        pytest.importorskip(module, minversion="0.22" if module == "trio" else None)  # hypercorn asks for it
    return command


@pytest.fixture
def seed() -> int:
    chosen = int(os.environ.get("CHAOS_SEED") or random.randrange(1_000_000))
    print(f"CHAOS_SEED={chosen}")
    return chosen


@contextmanager
def serving(
    command: str, settings: dict[str, Any], output: Path, *, exact: bool, bare: bool
) -> Iterator[int]:
    """A server on a free port, which must stop when it is asked to, and have nothing to complain of."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    package = Path(fifo_background.__file__).parents[1]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(HERE), str(package)]),
        "CHAOS_SETTINGS": json.dumps(settings),
        "CHAOS_EXACT": str(int(exact)),
        "CHAOS_BARE": str(int(bare)),
    }
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command.format(port=port).split()],
            env=environment, stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
        try:
            wait_until_it_listens(process, port, output)
            yield port
            process.send_signal(signal.SIGTERM)
            process.wait(15)
        except BaseException:
            print(output.read_text(errors="replace")[-20_000:])
            raise
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    said = output.read_text(errors="replace")
    assert [line for line in said.splitlines() if any(bad in line for bad in BAD_OUTPUT)] == []
    assert re.findall(r"the executor was closed and .*", said) == []


def wait_until_it_listens(process: subprocess.Popen[bytes], port: int, output: Path) -> None:
    give_up = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < give_up, output.read_text()
            time.sleep(0.05)
        else:
            return


def run(
    server: str,
    clients: list[Client],
    settings: dict[str, Any],
    output: Path,
    *,
    exact: bool = False,
    bare: bool = False,
) -> Books:
    async def crowd(port: int) -> tuple[dict[str, int | str], dict[str, Any]]:
        return await visit(port, clients, AT_ONCE), await report(port)

    with serving(server, settings, output, exact=exact, bare=bare) as port:
        statuses, recorded = asyncio.run(crowd(port))
    assert statuses == {client.uid: client.status for client in clients if client.awaits_answer}
    return Books(clients, recorded)


class Books:
    """What was recorded, sorted by what became of each task."""

    def __init__(self, clients: list[Client], recorded: dict[str, Any]) -> None:
        self.clients = {client.uid: client for client in clients}
        self.runs: list[str] = recorded["runs"]
        self.ends: list[list[str]] = recorded["ends"]
        self.recorded = recorded
        self.added: dict[str, list[str]] = {}  # by request, in the order of its first `add_task`
        self.stamps: dict[str, tuple[int, int]] = {}  # the clock before and after that
        for uid, name, before, after in sorted(recorded["added"], key=lambda added: added[2]):
            self.added.setdefault(uid, []).append(name)
            self.stamps.setdefault(uid, (before, after))
        self.failed: list[str] = []
        self.skipped: list[str] = []
        self.dropped: list[str] = []
        self.lost: list[str] = []  # requests that lost their place
        self.unexpected: list[str] = []
        for entry in recorded["log"]:
            self._read(entry)

    def _read(self, entry: dict[str, Any]) -> None:
        message: str = entry["message"]
        names = re.findall(r"task_\w+", message)
        if entry["level"] == "ERROR" and entry["error"] == names[0]:
            self.failed.append(names[0])
            self.skipped += names[1:]
        elif "lost its place" in message:
            self.lost += re.findall(r"/(\d+) lost", message)
        elif "ended without running" in message:
            self.dropped += names
        elif "were awaited before its response had ended" not in message:
            self.unexpected.append(message)

    def check(self) -> None:
        """What holds in every setting."""
        recorded = self.recorded
        every = [name for names in self.added.values() for name in names]
        # a task that ran alone, after its response, in its request's context
        assert recorded["overlaps"] == []
        assert recorded["early"] == []
        assert recorded["strangers"] == []
        # nothing is lost, and nothing happens twice
        assert sorted(self.runs + self.skipped + self.dropped) == sorted(every)
        assert recorded["now"] == []
        assert recorded["executor"] == "<SerialExecutor open, 0 unfinished, 0 running>"
        assert self.unexpected == []
        # only what was to fail has failed, and each failure was logged once
        failed = [name for name, outcome in self.ends if outcome != "ok"]
        assert sorted(self.failed) == sorted(failed)
        assert sorted(failed) == sorted(
            client.failing for client in self.clients.values() if client.failing in self.runs
        )
        assert sorted(self.skipped) == sorted(
            name
            for names in self.added.values()
            for name in list(dropwhile(lambda name: name not in failed, names))[1:]
        )
        # tasks are dropped for a reason: the handler's own, or a client that had left
        without_reason = {uid_of(name) for name in self.dropped if not self.may_drop(uid_of(name))}
        assert without_reason == set()
        assert [name for name in self.runs if self.must_drop(name)] == []
        assert [refused for refused in recorded["refused"] if not self.may_drop(refused[0])] == []

    def may_drop(self, uid: str) -> bool:
        client = self.clients[uid]
        return client.drops or not client.patient

    def must_drop(self, name: str) -> bool:
        return self.clients[uid_of(name)].drops and not name.endswith("_own")

    def line(self, uids: list[str]) -> list[str]:
        """What has to run, if these requests ran one after the other."""
        ran = set(self.runs)
        return [name for uid in uids for name in self.added.get(uid, ()) if name in ran]


def uid_of(name: str) -> str:
    return name.split("_")[1]


def test_a_thousand_requests(server: str, seed: int, tmp_path: Path) -> None:
    """Requests run in the order of their first `add_task`, one at a time, and nothing is lost."""
    clients = plan(seed, REQUESTS)
    books = run(server, clients, {"hold_timeout": NOBODY_LOSES}, tmp_path / "server.log", exact=True)
    books.check()
    assert books.lost == []
    assert books.runs == books.line(list(books.added))


def test_clients_that_leave(server: str, seed: int, tmp_path: Path) -> None:
    """A client that leaves loses at most its own tasks: they are owed or reported, the order stays."""
    clients = plan(seed, REQUESTS // 3, streams=0.6)
    books = run(
        server, clients, {"hold_timeout": NOBODY_LOSES}, tmp_path / "server.log", exact=True, bare=True
    )
    books.check()
    assert books.lost == []
    assert books.runs == books.line(list(books.added))


def test_order_responded(server: str, seed: int, tmp_path: Path) -> None:
    """With `order="responded"` requests run in the order in which their responses ended."""
    clients = plan(seed, REQUESTS // 3)
    books = run(
        server, clients, {"order": "responded", "hold_timeout": NOBODY_LOSES}, tmp_path / "server.log"
    )
    books.check()
    assert books.lost == []
    assert books.runs == books.line(books.recorded["responses"])


def test_places_lost_to_hold(server: str, seed: int, tmp_path: Path) -> None:
    """Only requests that lost their place to `hold`, each logged once, run out of order."""
    clients = plan(seed, REQUESTS // 3, stall=1000)
    books = run(server, clients, {"hold_timeout": 0.3}, tmp_path / "server.log")
    books.check()
    assert books.lost != []
    assert sorted(books.lost) == sorted(set(books.lost))
    # a request's tasks stay together
    order = list(dict.fromkeys(map(uid_of, books.runs)))
    assert books.runs == books.line(order)
    # threads that add at the same time may be in either order: nobody runs after one that was added later
    passed_by: list[tuple[str, str]] = []
    latest, latest_uid = -1, ""
    for uid in order:
        if uid not in books.lost:
            before, after = books.stamps[uid]
            if after < latest:
                passed_by.append((latest_uid, uid))
            if before > latest:
                latest, latest_uid = before, uid
    assert passed_by == []
