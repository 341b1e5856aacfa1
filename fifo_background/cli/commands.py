"""The commands: what they take, and what they print."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Coroutine
from typing import Annotated, Any, NoReturn, TypeVar

import psycopg
import typer
from rich.console import Console
from rich.progress import Progress

import fifo_background
from fifo_background.cli import worker as workers
from fifo_background.cli.pictures import print_queue
from fifo_background.cli.tables import migrated, open_queues
from fifo_background.exceptions import OrderedBackgroundError

__all__ = ("app",)

T = TypeVar("T")

app: typer.Typer = typer.Typer(
    help="Looks after background tasks that PostgreSQL keeps in order, and runs them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Dsn = Annotated[
    str,
    typer.Option(
        envvar="FIFO_BACKGROUND_DSN",
        show_envvar=True,
        help="How to connect, such as postgresql://user@host/database.",
    ),
]
QueueName = Annotated[
    str | None,
    typer.Option(
        "--queue", help="Only this queue. By default all that have tasks or workers.", show_default=False
    ),
]

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def seconds_of(text: str) -> float:
    """ "7d" in seconds. Raises `typer.BadParameter`."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([smhdw])", text.strip())
    if found is None:
        raise typer.BadParameter(f"{text!r} is not a time: write 7d, 12h, 30m, 90s or 2w")
    return float(found[1]) * _UNITS[found[2]]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fifo-background {fifo_background.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def worker(
    path: Annotated[str, typer.Argument(metavar="MODULE:APP", help="The app, such as myapp:app.")],
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1, help="How many lanes to run at once. By default what the engine says.", show_default=False
        ),
    ] = None,
    app_dir: Annotated[
        str, typer.Option("--app-dir", help="The folder to import the app from, beside what is installed.")
    ] = ".",
    factory: Annotated[
        bool, typer.Option("--factory", help="MODULE:APP is a function that makes the app.")
    ] = False,
    log_level: Annotated[
        str, typer.Option("--log-level", help="Of the logger `fifo_background`: debug, info, warning, error.")
    ] = "info",
) -> None:
    """Run the tasks of an app.

    The app's engine says where they are, and the app's lifespan is run as by a server. Run as many workers
    as you like, on any host: the order is the same. An engine with `worker=False` is worked for, too.

    SIGTERM or Ctrl-C ends it: what runs may end within the app's `drain_timeout`, or is given back. A second
    one ends it at once.

    Exit codes: **0** after a clean end, **75** to be started again (the tables are of another version, or the
    worker ended by itself), **1** if the app does not start, **2** for a wrong option.

    Examples:

        fifo-background worker myapp:app

        fifo-background worker myapp:app --concurrency 16

        fifo-background worker myapp:make_app --factory --app-dir src
    """
    level = logging.getLevelName(log_level.upper())
    if not isinstance(level, int):
        raise typer.BadParameter("give debug, info, warning or error", param_hint="--log-level")
    try:
        found = workers.find_app(path, app_dir, factory=factory)
        engine = workers.postgres_engine_of(found)
    except workers.AppError as error:
        raise typer.BadParameter(str(error), param_hint="MODULE:APP") from None
    if not logging.getLogger().handlers:  # the app has not set up logging
        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        logging.getLogger("fifo_background").setLevel(level)
    raise typer.Exit(workers.run(found, engine, concurrency))


@app.command()
def migrate(dsn: Dsn) -> None:
    """Make the tables and functions, or bring them to this version.

    Any number of these may run at once. An app does it by itself where its role may, unless its engine has
    `migrate=False`.

    Example:

        fifo-background migrate --dsn postgresql://owner@host/database
    """
    if _asked(migrated(dsn)):
        print("The tables are there now.")
    else:
        print("The tables are there already. Nothing was changed.")


@app.command()
def status(
    dsn: Dsn,
    queue: QueueName = None,
    limit: Annotated[int, typer.Option("--lanes", min=1, help="How many lanes to show at most.")] = 20,
) -> None:
    """Show how many tasks wait and run, the lanes with their heads, and the workers.

    Examples:

        fifo-background status --dsn postgresql://user@host/database

        FIFO_BACKGROUND_DSN=postgresql://user@host/database fifo-background status --queue mails
    """
    _asked(_show(dsn, queue, limit))


async def _show(dsn: str, queue: str | None, limit: int) -> None:
    console = Console()
    queues = await open_queues(dsn, queue)
    for one in queues:
        executor = one.executor
        print_queue(console, one.engine.queue, await executor.statistics(), await executor.lanes(limit))
    if not queues:
        console.print("There are no tasks and no workers.")


@app.command()
def prune(
    dsn: Dsn,
    older_than: Annotated[str, typer.Option("--older-than", help="Such as 7d, 12h, 30m, 90s or 2w.")],
    queue: QueueName = None,
) -> None:
    """Forget tasks that ended long ago, a thousand jobs at a time. Tasks that wait or run always stay.

    An app that runs forgets by itself what is older than its engine's `keep_ended` (a week by default).

    Example:

        fifo-background prune --dsn postgresql://user@host/database --older-than 7d
    """
    count = _asked(_forget(dsn, queue, seconds_of(older_than)))
    print(f"{count:,} {'job was' if count == 1 else 'jobs were'} forgotten.")


async def _forget(dsn: str, queue: str | None, seconds: float) -> int:
    forgotten = 0
    databases = [one.database for one in await open_queues(dsn, queue)]
    total = sum([await one.count_old(seconds) for one in databases])
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("Forgetting jobs", total=total)
        for one in databases:
            while batch := await one.prune(seconds):
                forgotten += batch
                progress.update(bar, completed=forgotten)
    return forgotten


def _asked(question: Coroutine[Any, Any, T]) -> T:
    """The answer of the database; where there is none, one line says why."""
    try:
        return asyncio.run(question)
    except OrderedBackgroundError as error:
        _fail(str(error))
    except psycopg.Error as error:
        _fail(f"PostgreSQL says: {error}")


def _fail(text: str) -> NoReturn:
    typer.echo(f"fifo-background: {text.strip()}", err=True)
    raise typer.Exit(1)
