"""`python -m fifo_background postgres`: two apps, two workers, one of which is killed; the order is kept."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple

import psycopg
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from fifo_background.cli.server import temporary_server

__all__ = ("main",)

REQUESTS = 200
CUSTOMERS = ("ann", "bob", "cy", "dee", "eve")

# For anything that the demo waits for, in seconds.
_LONGEST = 60.0


class Line(NamedTuple):
    """What a task has written: when, in which process, whether it "begins" or "ends", and whose order."""

    at: float
    pid: int
    what: str
    customer: str
    number: int


class Found(NamedTuple):
    """What the lines of all tasks say, after a worker was killed at some time."""

    lost: int  # orders that were never booked
    disordered: list[str]  # what began before the one ahead of it had ended
    again: list[Line]  # what the killed worker had in hand: where it began anew
    still: dict[str, float]  # for how many seconds the lanes of these stood still


def read(books: Path) -> list[Line]:
    """The lines that are whole, in the order in which they were written."""
    text = books.read_text() if books.exists() else ""
    split = (line.split() for line in text[: text.rfind("\n") + 1].splitlines())
    return [Line(float(at), int(pid), what, customer, int(n)) for at, pid, what, customer, n in split]


def judge(lines: list[Line], expected: dict[str, list[int]], killed: int, killed_at: float) -> Found:
    """Look at every lane: is each order booked, after the one ahead of it, and by one worker at a time?"""
    lost, disordered, again, still = 0, [], [], {}
    for customer, numbers in expected.items():
        before: Line | None = None
        ended: list[int] = []
        for line in (line for line in lines if line.customer == customer):
            runs = before is not None and before.what == "begins"
            if line.what == "ends":
                if before is None or before._replace(at=line.at, what="ends") != line:
                    disordered.append(f"{customer} {line.number}")
                ended.append(line.number)
            elif before is not None and (before.pid, before.number) == (killed, line.number):
                again.append(line)
                still[customer] = line.at - killed_at
            elif runs:
                disordered.append(f"{customer} {line.number}")
            before = line
        lost += len(set(numbers) - set(ended))
        if list(dict.fromkeys(ended)) != [number for number in numbers if number in ended]:
            disordered.append(f"{customer}: {ended}")
    return Found(lost, disordered, again, still)


def main() -> int:
    """0 if the order was kept and nothing was lost, 1 if not; 130 after Ctrl-C, 143 after SIGTERM."""
    console = Console(highlight=False)
    try:
        with _signals() as look, _progress(console) as progress, ExitStack() as stack:
            found = _run(progress, stack, look)
    except _Told as told:
        console.print("Ended. Nothing is left behind.")
        return 128 + told.number
    except (OSError, RuntimeError) as error:
        print(f"the demo could not run: {error}", file=sys.stderr)
        return 1
    return _tell(console, found)


def _run(progress: Progress, stack: ExitStack, look: Callable[[], None]) -> Found:
    step = progress.add_task("PostgreSQL starts", total=None)
    dsn = stack.enter_context(temporary_server())
    books = Path(dsn.partition("host=")[2]).parent / "books.txt"
    environment = {**os.environ, "FIFO_BACKGROUND_DSN": dsn, "BOOKS": str(books)}
    ports = [_free_port(), _free_port()]
    common = ("postgres_app:app", "--app-dir", _examples(), "--log-level", "error")
    apps = [("uvicorn", *common, "--port", str(port)) for port in ports]
    workers = [("fifo_background", "worker", *common)] * 2
    progress.update(step, description="Two apps and two workers start")
    processes = [stack.enter_context(_process(command, environment)) for command in (*apps, *workers)]
    killed: list[subprocess.Popen[bytes]] = []

    def wait_for(what: str, reached: Callable[[], bool]) -> None:
        until = time.monotonic() + _LONGEST
        while not reached():
            look()
            if time.monotonic() > until or any(
                one.poll() is not None for one in processes if one not in killed
            ):
                raise RuntimeError(f"this did not happen: {what}")
            time.sleep(0.02)

    wait_for("both apps listen", lambda: all(_listens(port) for port in ports))
    wait_for("both workers work", lambda: _count_workers(dsn) == len(workers))
    expected: dict[str, list[int]] = {customer: [] for customer in CUSTOMERS}
    killed_at = 0.0
    progress.update(step, description="Requests", total=REQUESTS)
    for number in range(REQUESTS):
        look()
        customer = CUSTOMERS[number % len(CUSTOMERS)]
        _order(ports[number // len(CUSTOMERS) % 2], customer, number)
        expected[customer].append(number)
        progress.advance(step)
        if number >= REQUESTS // 2 and not killed:
            killed += [one for one in processes[len(apps) :] if _in_hand(read(books), one.pid)][:1]
            if killed:
                killed[0].kill()
                killed_at = time.time()
                progress.update(step, description="Requests, one worker is killed")

    def all_ended() -> bool:
        ended = {line.number for line in read(books) if line.what == "ends"}
        progress.update(step, completed=len(ended))
        return len(ended) == REQUESTS

    if not killed:
        raise RuntimeError("no worker was seen with a task in hand")
    progress.update(step, description="Tasks, one worker is left")
    wait_for("all tasks end", all_ended)
    return judge(read(books), expected, killed[0].pid, killed_at)


def _tell(console: Console, found: Found) -> int:
    kept = not found.disordered
    again = ", ".join(f"{line.customer} {line.number}" for line in found.again) or "nothing"
    still = (
        ", ".join(f"{customer} for {seconds:.1f} s" for customer, seconds in found.still.items()) or "none"
    )
    console.print(
        f"{REQUESTS} requests to 2 apps; {len(CUSTOMERS)} lanes; 2 workers, one of them killed with kill -9\n"
        f"         order: {'kept in each lane' if kept else 'broken: ' + ', '.join(found.disordered)}\n"
        f"          lost: {found.lost}\n"
        f"     ran again: {again}\n"
        f"   stood still: {still}"
    )
    return 0 if kept and not found.lost else 1


def _in_hand(lines: list[Line], pid: int) -> bool:
    """Whether a worker has begun something, and not ended it."""
    last = {line.customer: line for line in lines if line.pid == pid}
    return any(line.what == "begins" for line in last.values())


def _count_workers(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        try:
            row = connection.execute("SELECT count(*) FROM fifo_background_workers").fetchone()
        except psycopg.errors.UndefinedTable:  # the apps are about to make it
            return 0
    return 0 if row is None else int(row[0])


def _order(port: int, customer: str, number: int) -> None:
    connection = HTTPConnection("127.0.0.1", port, timeout=_LONGEST)
    try:
        connection.request("POST", f"/orders/{customer}/{number}")
        response = connection.getresponse()
        body = response.read()
        if response.status != 202:
            raise RuntimeError(f"an order was answered with {response.status}: {body!r}")
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def _process(command: tuple[str, ...], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A module of Python that hears no Ctrl-C of the terminal; at the end it is told to end, and is gone."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command], env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _Told(Exception):
    """A signal has told the demo to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number: int = number


@contextmanager
def _signals() -> Iterator[Callable[[], None]]:
    """Gives what raises `_Told` after Ctrl-C or SIGTERM: only where it is called, so nothing is left over."""
    told: list[int] = []

    def look() -> None:
        if told:
            raise _Told(told[0])

    kinds = signal.SIGINT, signal.SIGTERM
    before = [signal.signal(kind, lambda number, frame: told.append(number)) for kind in kinds]
    try:
        yield look
        look()
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


def _progress(console: Console) -> Progress:
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _examples() -> str:
    """The folder of `postgres_app.py`: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "examples", package.parent / "examples"):
        if (folder / "postgres_app.py").exists():
            return str(folder)
    raise RuntimeError(f"postgres_app.py is neither in {package} nor beside it")
