"""`fifo-background`, as a person and as a process manager use it."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import anyio.to_thread
import psycopg
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware

from fifo_background import JobState, OrderedBackgroundMiddleware
from fifo_background.cli import main, worker
from fifo_background.engines.postgres import PostgresEngine, Retry
from tests.engines import cli_app
from tests.support.log import Log
from tests.support.postgres import Server

pytest.importorskip("rich")
CliRunner = pytest.importorskip("typer.testing").CliRunner
tables = pytest.importorskip("fifo_background.cli.tables")
commands = pytest.importorskip("fifo_background.cli.commands")
pictures = pytest.importorskip("fifo_background.cli.pictures")
ROOT = Path(__file__).parent.parent.parent
NEWER = "UPDATE fifo_background_schema SET version = version + 1"


def said(*arguments: str, code: int = 0, dsn: str = "") -> str:
    """What the command prints, without frames and colors, as one line."""
    environment = {"FIFO_BACKGROUND_DSN": dsn or None, "COLUMNS": "200"}
    result = CliRunner().invoke(commands.app, arguments, env=environment)
    assert result.exit_code == code, (result.output, result.exception)
    return re.sub(r"[\s─│╭╮╰╯━┃┏┓┗┛┡┩┳╇┴└┘┬┼├┤]+", " ", result.output).strip()


def execute(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@pytest.fixture
def queue() -> str:
    return uuid4().hex


@pytest.fixture
def database(postgres: Server) -> str:
    """The DSN of an empty database of its own."""
    return postgres.database()


# -- what a person reads -------------------------------------------------------------------------------------


def test_help() -> None:
    """The help names every command, and that of each command has an example that begins with its name."""
    everything = said("--help")
    for name in ("worker", "migrate", "status", "prune"):
        assert f" {name} " in everything
        assert f" fifo-background {name} " in said(name, "--help")
    assert "75" in said("worker", "--help")


def test_version() -> None:
    """`--version` prints one line."""
    assert re.fullmatch(r"fifo-background \d+\.\d+\.\d+", said("--version"))


def test_without_its_packages(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where typer is missing, one line says what to install."""
    monkeypatch.delitem(sys.modules, "fifo_background.cli.commands")
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "fifo-background: typer is missing: run `pip install 'fifo-background[postgres]'`\n"
    )


def test_a_module_of_ours_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is missing for another reason is told as it is."""
    monkeypatch.delitem(sys.modules, "fifo_background.cli.commands")
    monkeypatch.setitem(sys.modules, "fifo_background.cli.tables", None)
    with pytest.raises(ModuleNotFoundError, match=r"fifo_background\.cli\.tables"):
        main([])


def test_main(capsys: pytest.CaptureFixture[str]) -> None:
    """The console script takes arguments, and ends by SystemExit."""
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("fifo-background ")


# -- the tables ----------------------------------------------------------------------------------------------


def test_migrate(database: str) -> None:
    """The tables are made once; the DSN may come from the environment."""
    assert "run `fifo-background migrate`" in said("status", dsn=database, code=1)
    assert said("migrate", "--dsn", database) == "The tables are there now."
    assert said("migrate", dsn=database) == "The tables are there already. Nothing was changed."
    assert said("status", dsn=database) == "There are no tasks and no workers."


@pytest.mark.one_loop
async def test_four_migrations_at_once(database: str, anyio_backend: object) -> None:
    """Of four migrations at once each succeeds, and one of them has made the tables."""
    assert sorted(await asyncio.gather(*[tables.migrated(database) for _ in range(4)])) == [0, 0, 0, 1]


def test_newer_tables(database: str) -> None:
    """Tables of a newer version are left alone, and a line says what to update."""
    said("migrate", dsn=database)
    execute(database, NEWER)
    for command in ("migrate", "status"):
        assert "update fifo-background here" in said(command, dsn=database, code=1)


def test_no_server() -> None:
    """Where no server answers, one line says so; without a DSN it is a wrong use."""
    text = said("status", "--dsn", "postgresql:///x?host=/nowhere", code=1)
    assert text.startswith("fifo-background: PostgreSQL says: ")
    assert "FIFO_BACKGROUND_DSN" in said("migrate", code=2)


# -- status and prune ----------------------------------------------------------------------------------------


async def test_status(dsn: str, queue: str) -> None:
    """`status` shows the states, the lanes that need a person first, with their heads, and the workers."""
    engine = PostgresEngine(dsn, queue=queue, packages=["tests"], concurrency=3)
    await engine.open()
    executor = engine.executor
    await executor.lane("paused").pause()
    for lane in ("paused", 17):
        await executor.lane(lane).submit(cli_app.note, "later")
    failed = (
        await executor.lane("stopped", after_failure="stop")
        .options(retry=Retry(2, wait=0))
        .submit(cli_app.fail)
    )
    cli_app.waits.clear()
    running = await executor.submit(cli_app.wait)
    await executor.submit(cli_app.note, "behind it")
    assert await failed.wait() is JobState.FAILED
    assert await (await executor.lane(17).submit(cli_app.note, "ends")).wait() is JobState.SUCCEEDED
    assert await anyio.to_thread.run_sync(cli_app.waits.wait, 20)
    text = await anyio.to_thread.run_sync(partial(said, "status", "--queue", queue, dsn=dsn))
    assert text.startswith(f"Queue {queue}: 2 queued, 1 running, 2 succeeded, 1 failed Lanes lane state head")
    assert re.search(rf" stopped stopped fail {failed.id[:8]}, run 2: ValueError \d+\.\d s 0 ", text)
    assert re.search(r" paused paused note \w{8} \d+\.\d s 1 ", text)
    assert re.search(rf" default busy wait {running.id[:8]} \d+\.\d s 1 ", text)
    assert re.search(rf" {os.getpid()} 1 of 3 \d+\.\d s ago$", text)
    text = await anyio.to_thread.run_sync(partial(said, "status", "--lanes", "1", dsn=dsn))
    assert f"Queue {queue}: " in text
    assert "Lanes (1 of 4)" in text
    await running.cancel()
    await engine.close()


def test_status_of_an_idle_queue(dsn: str, queue: str) -> None:
    """A queue without tasks and workers is shown as such, if it is named."""
    text = said("status", "--queue", queue, dsn=dsn)
    assert text == f"Queue {queue}: no tasks No worker is alive."


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (1.94, "1.9 s"), (-1, "0.0 s"), (150, "2 min"), (9000, "2 h"), (2e5, "2 d")],
)
def test_duration(seconds: float | None, text: str) -> None:
    """Times are shown in the unit that a person would use."""
    assert pictures._duration(seconds) == text


async def test_status_of_a_paused_lane(dsn: str, queue: str) -> None:
    """A paused lane is shown although nothing is in it."""
    engine = PostgresEngine(dsn, queue=queue, packages=["tests"], worker=False)
    await engine.executor.lane("empty").pause()
    text = await anyio.to_thread.run_sync(partial(said, "status", "--queue", queue, dsn=dsn))
    assert text.endswith(" empty paused 0 No worker is alive.")


async def test_prune(dsn: str, queue: str) -> None:
    """`prune` forgets what ended long ago, in batches, and nothing that waits or has ended since."""
    engine = PostgresEngine(dsn, queue=queue, packages=["tests"])
    await engine.open()
    for _ in range(3):
        old = await engine.executor.submit(cli_app.note, "old")
    await old.wait()
    await engine.executor.lane("paused").pause()
    waits = await engine.executor.lane("paused").submit(cli_app.note, "waits")
    past = f"UPDATE fifo_background_tasks SET ended_at = ended_at - interval '8 days' WHERE queue = '{queue}'"
    execute(dsn, past)
    new = await engine.executor.submit(cli_app.note, "new")
    await new.wait()
    forget = partial(said, "prune", "--older-than", "7d", dsn=dsn)
    assert await anyio.to_thread.run_sync(partial(forget, "--queue", uuid4().hex)) == "0 jobs were forgotten."
    assert await anyio.to_thread.run_sync(partial(forget, "--queue", queue)) == "3 jobs were forgotten."
    assert await engine.executor.job(old.id) is None
    assert [job.id for job in await engine.executor.jobs()] == [new.id, waits.id]
    execute(dsn, past)
    assert await anyio.to_thread.run_sync(forget) == "1 job was forgotten."
    await engine.close()


def test_older_than() -> None:
    """Times have a number and a unit; others are a wrong use."""
    assert [commands.seconds_of(text) for text in ("90s", "1.5m", "2h", "7d", "1w")] == [
        *(90, 90, 7200, 604800, 604800)
    ]
    for text in ("7", "d", "-1d", "7 days", "1e3s", ""):
        assert "write 7d" in said("prune", "--older-than", text, dsn="postgresql://", code=2)


# -- a worker ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("work", "does not name an app"),
        (":app", "does not name an app"),
        ("nowhere:app", "there is no module 'nowhere'"),
        ("tests.nowhere:app", "there is no module 'tests.nowhere'"),
        ("json:app", "the module 'json' has no 'app'"),
        ("json:dumps", "has no OrderedBackgroundMiddleware with a PostgresEngine"),
        ("tests.engines.test_cli:IN_MEMORY", "has no OrderedBackgroundMiddleware with a PostgresEngine"),
    ],
)
def test_wrong_apps(path: str, text: str) -> None:
    """Where there is no app with an engine, one line says what is missing."""
    assert text in said("worker", path, code=2)


IN_MEMORY = Starlette(middleware=[Middleware(OrderedBackgroundMiddleware)])


def test_wrong_level() -> None:
    """A level that is none is a wrong use."""
    assert "--log-level" in said("worker", "json:dumps", "--log-level", "loud", code=2)


def test_an_app_whose_import_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing inside the app is told with its traceback, not as a wrong use."""
    monkeypatch.setattr(sys, "path", sys.path.copy())
    (tmp_path / "imports_nothing.py").write_text("import not_installed")
    with pytest.raises(ModuleNotFoundError, match="not_installed"):
        worker.find_app("imports_nothing:app", str(tmp_path), factory=False)


def test_postgres_engine_of(dsn: str, queue: str) -> None:
    """The engine of an app is found before its start, after it, and where the app is wrapped by hand."""
    app = cli_app.make_app(dsn, queue)
    engine = worker.postgres_engine_of(app)
    app.middleware_stack = app.build_middleware_stack()
    assert worker.postgres_engine_of(app) is engine
    assert worker.postgres_engine_of(OrderedBackgroundMiddleware(Starlette(), engine=engine)) is engine


def test_worker(dsn: str, queue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command runs the app's worker, also with `worker=False`, and ends with what that says."""
    seen: list[Any] = []

    async def serve(app: Any, engine: PostgresEngine) -> int:
        seen.append((engine.worker, engine.concurrency))
        return 75

    monkeypatch.setattr(worker, "serve", serve)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setenv("QUEUE", queue)
    factory = ("worker", "tests.engines.cli_app:make_app", "--factory")
    said(*factory, dsn=dsn, code=75)
    said(*factory, "--concurrency", "3", dsn=dsn, code=75)
    said(*factory, "--concurrency", "0", dsn=dsn, code=2)
    assert seen == [(True, 8), (True, 3)]


def test_logging_of_an_app_without_any(dsn: str, queue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the app sets up no logging, the command does, with the level that it is given."""
    root, ours = logging.getLogger(), logging.getLogger("fifo_background")
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(ours, "level", ours.level)
    monkeypatch.setattr(worker, "run", lambda *arguments: 0)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setenv("QUEUE", queue)
    said("worker", "tests.engines.cli_app:make_app", "--factory", "--log-level", "debug", dsn=dsn)
    assert (len(root.handlers), ours.level) == (1, logging.DEBUG)


class Served:
    """`worker.serve` of an app, in this process."""

    def __init__(self, app: Any, engine: PostgresEngine) -> None:
        self.engine = engine
        self.code: asyncio.Future[int] = asyncio.ensure_future(worker.serve(app, engine))

    @classmethod
    def of(cls, dsn: str, queue: str) -> Served:
        app = cli_app.make_app(dsn, queue)
        engine = worker.postgres_engine_of(app)
        engine.worker = True
        return cls(app, engine)

    async def run(self, *arguments: Any) -> None:
        job = await self.engine.executor.submit(*arguments)
        assert await job.wait() is JobState.SUCCEEDED


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signals(number: int, dsn: str, queue: str, log: Log) -> None:
    """A worker runs tasks until SIGTERM or Ctrl-C; then it ends cleanly, and the handlers are as before."""
    before = signal.getsignal(number)
    served = Served.of(dsn, queue)
    await served.run(cli_app.note, "once")
    os.kill(os.getpid(), number)
    with anyio.fail_after(30):
        assert await served.code == 0
    assert signal.getsignal(number) is before
    assert [record for record in log if record.startswith(("WARNING", "ERROR"))] == []


async def test_other_tables_at_the_start(database: str, queue: str, log: Log) -> None:
    """Where the tables are of another version the worker asks for a new start."""
    await tables.migrated(database)
    execute(database, NEWER)
    assert await Served.of(database, queue).code == worker.RESTART
    assert any("update fifo-background here" in record for record in log)


@pytest.mark.parametrize("statement", [NEWER, "UPDATE fifo_background_schema SET version = 0"])
async def test_other_tables_later(
    statement: str, database: str, queue: str, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    """Where the tables are of another version one day, the worker asks for a new start."""
    monkeypatch.setattr(worker, "_LOOK_EVERY", 0.05)
    served = Served.of(database, queue)
    await served.run(cli_app.note, "once")
    execute(database, statement)
    with anyio.fail_after(30):
        assert await served.code == worker.RESTART
    assert any("the tables in the database are of another version now" in record for record in log)


@pytest.mark.one_loop
async def test_look_at_the_tables_without_a_server(
    monkeypatch: pytest.MonkeyPatch, anyio_backend: object
) -> None:
    """While no server answers, the tables are taken to be what they were."""
    monkeypatch.setattr(worker, "_LOOK_EVERY", 0)
    asked = asyncio.Event()

    async def connect(dsn: str) -> Any:
        asked.set()
        raise psycopg.OperationalError

    monkeypatch.setattr(worker, "connect", connect)
    looks = asyncio.ensure_future(worker._until_other_tables(""))
    for _ in range(2):
        await asked.wait()
        asked.clear()
    assert looks.cancel()


async def test_a_worker_that_ends(dsn: str, queue: str, monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    """A worker whose loop ends by itself asks for a new start."""

    async def run(self: Any) -> None:
        raise ValueError("what nobody thought of")

    monkeypatch.setattr("fifo_background.engines.postgres._worker.Worker.run", run)
    with anyio.fail_after(30):
        assert await Served.of(dsn, queue).code == worker.RESTART
    assert any("the worker has ended by itself" in record for record in log)


def raises(app: Any) -> Any:
    async def lifespan(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("no lifespan")

    return lifespan


def returns(app: Any) -> Any:
    async def lifespan(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    return lifespan


def fails(app: Any) -> Any:
    async def lifespan(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no disk"})

    return lifespan


def fails_and_stays(app: Any) -> Any:
    async def lifespan(scope: Any, receive: Any, send: Any) -> None:
        await fails(app)(scope, receive, send)
        await anyio.sleep_forever()

    return lifespan


def keeps_it(app: Any) -> Any:
    async def lifespan(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})

    return lifespan


@pytest.mark.parametrize(
    ("wrap", "text"),
    [
        (returns, "ERROR the app does not start: it has no lifespan"),
        (fails, "ERROR the app does not start: no disk"),
        (fails_and_stays, "ERROR the app does not start: no disk"),
        (keeps_it, "ERROR the app does not pass its lifespan on to its OrderedBackgroundMiddleware"),
    ],
)
async def test_apps_that_do_not_start(
    wrap: Callable[[Any], Any], text: str, dsn: str, queue: str, log: Log
) -> None:
    """Where an app does not start, the log says why, and the exit code is 1."""
    app = cli_app.make_app(dsn, queue)
    assert await Served(wrap(app), worker.postgres_engine_of(app)).code == 1
    assert text in log


async def test_an_app_that_raises(dsn: str, queue: str) -> None:
    """What an app raises at its start is seen."""
    app = cli_app.make_app(dsn, queue)
    with pytest.raises(ValueError, match="no lifespan"):
        await Served(raises(app), worker.postgres_engine_of(app)).code


class Started:
    """The command as a process of its own."""

    def __init__(self, dsn: str, queue: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "FIFO_BACKGROUND_DSN": dsn, "QUEUE": queue}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fifo_background", "worker", "cli_app:make_app", "--factory"],
            cwd=ROOT / "tests" / "engines",
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ends(self) -> int:
        return self.process.wait(60)


@pytest.fixture
def started(dsn: str, queue: str) -> Iterator[Started]:
    one = Started(dsn, queue)
    yield one
    one.process.kill()
    one.process.communicate()


async def submit(dsn: str, queue: str, *call: Any) -> None:
    engine = PostgresEngine(dsn, queue=queue, packages=["tests"], worker=False)
    await engine.executor.submit(*call)


@pytest.mark.one_loop
async def test_process(started: Started, dsn: str, queue: str, anyio_backend: object) -> None:
    """The command runs the app of the current folder, and SIGTERM ends it with exit code 0."""
    await submit(dsn, queue, cli_app.note, "once")
    assert await anyio.to_thread.run_sync(started.line) == "once"
    started.process.terminate()
    assert await anyio.to_thread.run_sync(started.ends) == 0


@pytest.mark.one_loop
async def test_second_signal(started: Started, dsn: str, queue: str, anyio_backend: object) -> None:
    """While a task runs on, a second signal ends the process at once."""
    await submit(dsn, queue, cli_app.wait)
    assert await anyio.to_thread.run_sync(started.line) == "waits"
    started.process.terminate()
    while started.process.poll() is None:  # the first one is heard in its time; each later one is the second
        await anyio.sleep(0.05)
        started.process.send_signal(signal.SIGINT)
    assert started.process.returncode == -signal.SIGINT
