"""How real servers end: what is in line when they are told to stop runs, or is named in the log.

Run it with `python -m nox -s servers`. A test waits for what the processes write, and then lets the tasks go
that wait for it (their kind ends in "gate"). Every process must end by itself, with nothing to complain of.
"""

from __future__ import annotations

import functools
import http.client
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any
from urllib.parse import urlencode

import pytest

import fifo_background

pytest.importorskip("fastapi")

HERE = Path(__file__).parent
PATIENCE = 20.0  # seconds for everything that has to happen

BAD_OUTPUT = (
    "Task was destroyed",
    "never retrieved",
    "never awaited",
    "Exception ignored",
    "Exception in callback",
    "InvalidStateError",
    "ResourceWarning",
    "RuntimeWarning",
    "TrioInternalError",
)
# hypercorn's, with a plain Starlette app, too: it cancels a connection, which Python's streams do not expect,
# and leaves its own socket open when the startup fails
NOT_OURS = (
    "Exception in callback StreamReaderProtocol.connection_made",
    "sys:1: ResourceWarning: unclosed <socket.socket",
    "ResourceWarning: Enable tracemalloc",  # after each of them
)

SERVERS = {
    "uvicorn-asyncio": ("uvicorn", "uvicorn end_app:app --loop asyncio --port {port}"),
    "uvicorn-uvloop": ("uvicorn uvloop", "uvicorn end_app:app --loop uvloop --port {port}"),
    "hypercorn-asyncio": ("hypercorn", "hypercorn end_app:app -k asyncio -b 127.0.0.1:{port}"),
    "hypercorn-trio": ("hypercorn trio", "hypercorn end_app:app -k trio -b 127.0.0.1:{port}"),
}


def command_of(server: str) -> str:
    modules, command = SERVERS[server]
    for module in modules.split():
        pytest.importorskip(module, minversion="0.22" if module == "trio" else None)  # hypercorn asks for it
    return command


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> str:
    return command_of(request.param)


@pytest.fixture(params=[name for name in SERVERS if name.startswith("uvicorn")])
def uvicorn(request: pytest.FixtureRequest) -> str:
    return command_of(request.param)


@pytest.fixture(params=[True, False], ids=["attached", "detached"])
def wait(request: pytest.FixtureRequest) -> bool:
    attached: bool = request.param
    return attached


class Server:
    """A server process, what it has written, and the tasks that it was given."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, output: Path, go: Path) -> None:
        self.process = process
        self.port = port
        self.path = output
        self.go = go
        self.numbers = itertools.count()

    # -- what it does

    def ask(self, method: str, path: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        self.until(lambda: connects(connection))
        try:
            connection.request(method, path, headers={"Connection": "close"})
            response = connection.getresponse()
            assert response.status == 200, self.output
            return json.loads(response.read())
        finally:
            connection.close()

    def add(self, *kinds: str) -> list[str]:
        """One request that adds these tasks; returns when it was answered and the first one of all runs."""
        names = [f"{kind}_{next(self.numbers)}" for kind in kinds]
        self.ask("POST", "/add?" + urlencode({"task": names}, doseq=True))
        self.until(lambda: bool(self.started))
        return names

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def let_go(self) -> None:
        self.go.touch()

    def end(self) -> int:
        """Wait until the process has ended by itself; its exit code."""
        self.until(lambda: self.process.poll() is not None)
        return self.process.wait()

    # -- what it says

    @property
    def output(self) -> str:
        return self.path.read_text(errors="replace")

    def lines(self, start: str) -> list[str]:
        """What follows `start` in the whole lines that begin with it."""
        return re.findall(rf"^{re.escape(start)}(.*)\n", self.output, re.MULTILINE)

    @property
    def events(self) -> list[str]:
        return self.lines("@ ")

    @property
    def started(self) -> list[str]:
        return self.lines("@ started ")

    @property
    def ended(self) -> list[str]:
        return self.lines("@ ended ")

    def names(self, *tasks: str, count: int | None = None) -> bool:
        """Whether one log record names these tasks, and says how many they are."""
        return any(
            all(re.search(rf"\b{task}\b", record) for task in tasks)
            and (count is None or re.search(rf"\b{count} task", record) is not None)
            for record in self.lines("LOG ")
        )

    def ran_or_named(self, names: list[str]) -> bool:
        """Whether all but the last of these tasks to start ran, in order, and what did not run is named."""
        started = self.started
        cut_off = [name for name in started if name not in self.ended]
        waiting = names[len(started) :]
        return (
            started == names[: len(started)]
            and cut_off in ([], started[-1:])
            and all(map(self.names, cut_off))
            and (not waiting or self.names(*waiting, count=len(waiting)))
        )

    def until(self, holds: Callable[[], bool]) -> None:
        give_up = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < give_up, f"waited in vain; the process said:\n{self.output}"
            time.sleep(0.02)

    def until_says(self, text: str) -> None:
        self.until(lambda: text in self.output)


def connects(connection: http.client.HTTPConnection) -> bool:
    try:
        connection.connect()
    except ConnectionRefusedError:
        return False
    return True


def complaints(output: str) -> list[str]:
    return [
        line
        for line in output.splitlines()
        if any(bad in line for bad in BAD_OUTPUT) and not line.startswith(NOT_OURS)
    ]


@contextmanager
def serving(
    command: str, folder: Path, app: str = "lifespan", *, listens: bool = True, **settings: Any
) -> Iterator[Server]:
    """A server on a free port, which must have ended, without a complaint, at the end of the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    output, go = folder / f"{port}.log", folder / f"{port}.go"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(HERE), str(Path(fifo_background.__file__).parents[1])]),
        "PYTHONDEVMODE": "1",
        "END_APP": app,
        "END_SETTINGS": json.dumps(settings),
        "END_GO": str(go),
    }
    with output.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command.format(port=port).split()],
            env=environment, cwd=folder, stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    found = Server(process, port, output, go)
    try:
        if listens:
            found.ask("GET", "/")
        yield found
        found.end()
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # and hypercorn's worker, or uvicorn's with --reload
        except ProcessLookupError:
            pass
        process.wait()
        print(found.output[-20_000:])  # pytest shows it when the test fails
    assert complaints(found.output) == []


@functools.cache
def normal_code(command: str, number: signal.Signals) -> int:
    """How the server ends after this signal when it has nothing to do and nothing of ours."""
    with tempfile.TemporaryDirectory() as folder, serving(command, Path(folder), "bare") as idle:
        idle.signal(number)
        return idle.end()


def asked_to_shut_down(server: Server, *, attached: bool = False) -> None:
    """Wait until the process has noticed the signal, as far as that can be seen."""
    if not attached:
        server.until_says("@ lifespan.shutdown")
    elif server.lines("INFO:     Uvicorn running"):
        server.until_says("Shutting down")


# -- one signal -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("app", ["lifespan", "plain"])
def test_what_fits_runs(server: str, app: str, wait: bool, tmp_path: Path) -> None:
    """What is in line at SIGTERM runs, in order, before the app's own shutdown code; the end is normal."""
    with serving(server, tmp_path, app, wait=wait, drain_timeout=60) as running:
        names = [*running.add("async_gate", "sync", "async"), *running.add("sync", "async", "sync")]
        running.signal(SIGTERM)
        asked_to_shut_down(running, attached=wait)
        assert running.ended == []
        running.let_go()
        assert running.end() == normal_code(server, SIGTERM)
    assert running.ended == names
    assert app == "plain" or running.events[-1] == "own shutdown code"
    assert running.lines("LOG ") == []


def test_what_does_not_fit_is_named(server: str, tmp_path: Path) -> None:
    """After `drain_timeout` the running async task is cancelled and the rest named with its count."""
    with serving(server, tmp_path, wait=False, drain_timeout=0.3) as running:
        running_one, *rest = running.add("async_gate", "sync", "async")
        rest += running.add("sync")
        running.signal(SIGTERM)
        assert running.end() == normal_code(server, SIGTERM)
    assert running.started == [running_one]
    assert f"cancelled {running_one}" in running.events
    assert running.names(running_one)
    assert running.names(*rest, count=3)


@pytest.mark.parametrize("kind", ["async_gate", "async_tidy"])
def test_the_cancelled_task_is_over_first(server: str, kind: str, tmp_path: Path) -> None:
    """The task that the drain cancels has cleaned up, and is named, before the app's own shutdown code."""
    with serving(server, tmp_path, wait=False, drain_timeout=0.3) as running:
        names = running.add(kind, "sync")
        running.signal(SIGTERM)
        running.end()
    assert running.events[-2:] == [f"cancelled {names[0]}", "own shutdown code"]
    assert running.names(names[0])


def test_a_task_that_ignores_its_cancel(uvicorn: str, tmp_path: Path) -> None:
    """An async task that ignores its cancel is named, as the rest is, and the process ends in time."""
    with serving(uvicorn, tmp_path, wait=False, drain_timeout=0.3) as running:
        first, *rest = running.add("async_stubborn", "sync", "async")
        running.signal(SIGTERM)
        running.until_says("@ own shutdown code")
        running.let_go()
        assert running.end() == normal_code(uvicorn, SIGTERM)
    assert running.started == [first]
    assert running.names(*rest, count=2)
    assert running.names(first)


def test_a_thread_that_runs_is_named(server: str, tmp_path: Path) -> None:
    """A sync task that outlasts `drain_timeout` is named, does not keep back the shutdown code, and ends."""
    with serving(server, tmp_path, wait=False, drain_timeout=0.3) as running:
        in_thread, *rest = running.add("sync_gate", "sync", "async")
        running.signal(SIGTERM)
        running.until_says("@ own shutdown code")
        assert running.ended == []
        assert running.names(in_thread)
        assert running.names(*rest, count=2)
        running.let_go()
        assert running.end() == normal_code(server, SIGTERM)
    assert running.started == [in_thread]


def test_new_work_is_refused(server: str, tmp_path: Path) -> None:
    """While the line is drained, tasks that add tasks or submit them get ExecutorClosed."""
    with serving(server, tmp_path, wait=False, drain_timeout=60) as running:
        names = running.add("async_gate", "async_adds", "sync_adds")
        running.signal(SIGTERM)
        asked_to_shut_down(running)
        running.let_go()
        running.end()
    assert running.ended == names
    assert [line for line in running.events if "refused" in line or "accepted" in line] == [
        f"{way} refused in {name}" for name in names[1:] for way in ("submit_nowait", "add_task")
    ]


def test_two_processes(server: str, tmp_path: Path) -> None:
    """A process that ends does nothing to the work of another one."""
    settings: dict[str, Any] = {"wait": False, "drain_timeout": 60}
    with serving(server, tmp_path, **settings) as second, serving(server, tmp_path, **settings) as first:
        names = {running: running.add("async_gate", "sync", "async") for running in (first, second)}
        for running in (first, second):
            running.signal(SIGTERM)
            asked_to_shut_down(running)
            running.let_go()
            assert running.end() == normal_code(server, SIGTERM)
            assert running.ended == names[running]
            if running is first:
                assert second.started == names[second][:1]
                assert second.add("sync") != []
                names[second] += [f"sync_{len(names[second])}"]


# -- servers that do not wait for requests ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_the_limits_add_up(uvicorn: str, kind: str, tmp_path: Path) -> None:
    """What outlasts `--timeout-graceful-shutdown` still has `drain_timeout`: it runs, in order."""
    command = f"{uvicorn} --timeout-graceful-shutdown 1"
    with serving(command, tmp_path, wait=True, drain_timeout=60) as running:
        names = [*running.add(f"{kind}_gate", "async"), *running.add("sync")]
        running.signal(SIGTERM)
        asked_to_shut_down(running)
        assert running.lines("ERROR:    Cancel 2 running task(s)") != []
        assert running.ended == []
        running.let_go()
        assert running.end() == normal_code(uvicorn, SIGTERM)
    assert running.ended == names
    assert running.events[-1] == "own shutdown code"


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_both_limits_are_over(uvicorn: str, kind: str, tmp_path: Path) -> None:
    """What outlasts `--timeout-graceful-shutdown` and `drain_timeout` is named, in time."""
    command = f"{uvicorn} --timeout-graceful-shutdown 1"
    with serving(command, tmp_path, wait=True, drain_timeout=0.3) as running:
        first, *rest = running.add(f"{kind}_gate", "async")
        rest += running.add("sync")
        running.signal(SIGTERM)
        running.until_says("@ own shutdown code")
        running.let_go()
        assert running.end() == normal_code(uvicorn, SIGTERM)
    assert running.started == [first]
    assert (f"cancelled {first}" in running.events) == (kind == "async")
    assert running.names(first)
    assert running.names(*rest, count=2)


def test_held_places_are_given_up(uvicorn: str, tmp_path: Path) -> None:
    """A request that holds its place and does not respond keeps nothing back; its tasks are named."""
    command = f"{uvicorn} --timeout-graceful-shutdown 1"
    with serving(command, tmp_path, wait=False, hold_timeout=60, drain_timeout=60) as running:
        holder = http.client.HTTPConnection("127.0.0.1", running.port, timeout=PATIENCE)
        holder.request("POST", "/hold?task=async_held")
        running.until_says("@ held")
        running.ask("POST", "/add?task=sync_behind&task=async_behind")
        assert running.started == []
        running.signal(SIGTERM)
        running.until_says("@ own shutdown code")
        running.let_go()
        assert running.end() == normal_code(uvicorn, SIGTERM)
        holder.close()
    assert running.ended == ["sync_behind", "async_behind"]
    assert running.names("async_held", count=1)


def test_hypercorn_does_not_wait(tmp_path: Path) -> None:
    """After hypercorn's `--graceful-timeout` the running async task is cancelled, the rest named."""
    command = command_of("hypercorn-asyncio") + " --graceful-timeout 1"
    with serving(command, tmp_path, wait=True, drain_timeout=0.3) as running:
        first, *rest = running.add("async_gate", "sync", "async")
        running.signal(SIGTERM)
        running.end()
    assert running.started == [first]
    assert f"cancelled {first}" in running.events
    assert running.names(first)
    assert running.names(*rest, count=2)


# -- a second signal --------------------------------------------------------------------------------------

TWICE = [(SIGINT, SIGINT), (SIGTERM, SIGINT), (SIGTERM, SIGTERM)]
ids_of = functools.partial(map, lambda two: f"{two[0].name}-{two[1].name}")


@pytest.mark.parametrize("signals", TWICE, ids=ids_of(TWICE))
def test_a_second_signal_in_the_drain(
    server: str, signals: tuple[signal.Signals, signal.Signals], tmp_path: Path
) -> None:
    """A second signal while the line is drained changes nothing: what does not fit is named, in time."""
    with serving(server, tmp_path, wait=False, drain_timeout=1) as running:
        first, *rest = running.add("async_gate", "sync", "async")
        running.signal(signals[0])
        asked_to_shut_down(running)
        running.signal(signals[1])
        running.end()
    assert running.started == [first]
    assert f"cancelled {first}" in running.events
    assert running.names(first)
    assert running.names(*rest, count=2)


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_sigint_twice_while_requests_wait(uvicorn: str, kind: str, tmp_path: Path) -> None:
    """SIGINT twice ends uvicorn at once, without the lifespan: what waits is named."""
    with serving(uvicorn, tmp_path, wait=True, drain_timeout=60) as running:
        names = running.add(f"{kind}_gate", "sync", "async")
        running.signal(SIGINT)
        asked_to_shut_down(running, attached=True)
        running.signal(SIGINT)
        if kind == "sync":
            running.until_says("Finished server process")
            running.let_go()
        assert running.end() == normal_code(uvicorn, SIGINT)
    assert "lifespan.shutdown" not in running.events
    assert names[0] in (running.ended if kind == "sync" else running.lines("@ cancelled "))
    assert running.ran_or_named(names)


def test_sigterm_then_sigint_while_requests_wait(uvicorn: str, tmp_path: Path) -> None:
    """SIGTERM, then SIGINT ends uvicorn at once, by the signal: the process does not hang."""
    with serving(uvicorn, tmp_path, wait=True, drain_timeout=60) as running:
        first, *_ = running.add("async_gate", "sync", "async")
        running.signal(SIGTERM)
        asked_to_shut_down(running, attached=True)
        running.signal(SIGINT)
        assert running.end() == normal_code(uvicorn, SIGTERM)
    assert running.started == [first]


def test_sigterm_twice_while_requests_wait(server: str, tmp_path: Path) -> None:
    """A second SIGTERM while requests wait for their tasks is as one: everything runs."""
    if "hypercorn" in server:
        pytest.skip("its handler sets a multiprocessing.Event: one inside the other may wait for itself")
    with serving(server, tmp_path, wait=True, drain_timeout=60) as running:
        names = running.add("async_gate", "sync", "async")
        running.signal(SIGTERM)
        asked_to_shut_down(running, attached=True)
        running.signal(SIGTERM)
        running.let_go()
        assert running.end() == normal_code(server, SIGTERM)
    assert running.ended == names


# -- no lifespan ------------------------------------------------------------------------------------------

# what has the loop end, not the process: uvicorn raises SIGTERM again before its loop ends, which kills it
ENDS_LOOP = {"uvicorn": SIGINT, "hypercorn": SIGTERM}


@pytest.mark.parametrize("app", ["refuses", "mounted", "off"])
@pytest.mark.parametrize("kind", ["async", "sync"])
def test_a_loop_that_ends_without_lifespan(server: str, app: str, kind: str, tmp_path: Path) -> None:
    """With no lifespan, or a mounted app that does not see it, what the loop leaves is named."""
    if app == "off":
        if "hypercorn" in server:
            pytest.skip("hypercorn has no such option")
        server += " --lifespan off"
    ends_loop = ENDS_LOOP[server.split()[0]]
    with serving(server, tmp_path, app, wait=False, drain_timeout=60) as running:
        names = running.add(f"{kind}_gate", "sync", "async")
        running.signal(ends_loop)
        if kind == "sync":
            if "uvicorn" in server:
                running.until_says("Finished server process")
            elif app == "mounted":
                running.until_says("@ own shutdown code")
            running.let_go()
        assert running.end() == normal_code(server, ends_loop)
    assert names[0] in (running.ended if kind == "sync" else running.lines("@ cancelled "))
    assert running.ran_or_named(names)


@pytest.mark.parametrize("app", ["refuses", "mounted"])
def test_requests_are_waited_for_without_lifespan(server: str, app: str, tmp_path: Path) -> None:
    """With no lifespan, or a mounted app that does not see it, the tasks of attached requests all run."""
    with serving(server, tmp_path, app, wait=True) as running:
        names = [*running.add("async_gate", "sync"), *running.add("async", "sync")]
        running.signal(SIGTERM)
        asked_to_shut_down(running, attached=True)
        running.let_go()
        assert running.end() == normal_code(server, SIGTERM)
    assert running.ended == names
    assert running.lines("LOG ") == []


@pytest.mark.parametrize("app", ["refuses", "mounted"])
def test_sigterm_without_lifespan(uvicorn: str, app: str, tmp_path: Path) -> None:
    """With no lifespan SIGTERM ends uvicorn at once, by the signal: the process does not hang."""
    with serving(uvicorn, tmp_path, app, wait=False, drain_timeout=60) as running:
        names = running.add("async_gate", "sync")
        running.signal(SIGTERM)
        assert running.end() == normal_code(uvicorn, SIGTERM)
    assert running.started == names[:1]


def test_startup_fails(server: str, tmp_path: Path) -> None:
    """A process whose startup fails ends by itself, as without us, and what was submitted is named."""
    with serving(server, tmp_path, "bare, fails", listens=False) as bare:
        code = bare.end()
    with serving(server, tmp_path, "fails", listens=False, wait=False) as running:
        assert running.end() == code
    assert running.started == ["async_gate_0"]
    assert "cancelled async_gate_0" in running.events
    assert running.names("async_gate_0")
    assert running.names("sync_1", count=1)


# -- reload -----------------------------------------------------------------------------------------------


def test_reload(uvicorn: str, wait: bool, tmp_path: Path) -> None:
    """`--reload` while tasks wait: they run in the old process, then the new one serves."""
    watched = tmp_path / "watched"
    watched.mkdir()
    file = watched / "module.py"
    file.touch()
    newer = itertools.count(int(time.time()) + 10)

    def touch_until_noticed() -> bool:
        seconds = next(newer)
        os.utime(file, (seconds, seconds))
        return "Reloading" in running.output

    command = f"{uvicorn} --reload --reload-dir {watched}"
    with serving(command, tmp_path, wait=wait, drain_timeout=60) as running:
        old = running.ask("GET", "/")
        names = running.add("async_gate", "sync", "async")
        running.until(touch_until_noticed)
        asked_to_shut_down(running, attached=wait)
        running.let_go()
        assert running.ask("GET", "/") != old
        assert running.ended == names
        names += running.add("async")
        running.until(lambda: running.ended == names)
        running.signal(SIGTERM)
    assert running.events.count("own shutdown code") == 2
    assert running.lines("LOG ") == []
