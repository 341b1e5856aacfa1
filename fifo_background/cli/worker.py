"""Runs the tasks of an app in a process of its own: `fifo-background worker myapp:app`."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import psycopg

from fifo_background._lookup import engine_of
from fifo_background.engines.postgres import PostgresEngine, SchemaError
from fifo_background.engines.postgres._connections import connect
from fifo_background.engines.postgres._schema import is_current

__all__ = ("RESTART", "AppError", "find_app", "postgres_engine_of", "run")

_logger = logging.getLogger("fifo_background")

# The exit code that asks a process manager for a new start: EX_TEMPFAIL of sysexits.h.
RESTART = 75

# Between two looks at the version of the tables, in seconds.
_LOOK_EVERY = 10.0

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class AppError(Exception):
    """What was named is no app with an engine, or an app that does not start."""


def find_app(path: str, folder: str, *, factory: bool) -> Any:
    """The app at "module:name", imported with a folder on `sys.path`. Raises `AppError`."""
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise AppError(f"{path!r} does not name an app: write module:name, such as myapp:app")
    sys.path.insert(0, str(Path(folder).resolve()))
    try:
        found: Any = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and imports another one that is not
        raise AppError(f"there is no module {error.name!r}, neither in {folder!r} nor installed") from None
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise AppError(f"the module {module!r} has no {name!r}") from None
    return found() if factory else found


def postgres_engine_of(app: Any) -> PostgresEngine:
    """The engine of an app, which need not have been started. Raises `AppError`."""
    engine = engine_of(app)
    if isinstance(engine, PostgresEngine):
        return engine
    raise AppError(
        f"{app!r} has no OrderedBackgroundMiddleware with a PostgresEngine: write "
        "`app.add_middleware(OrderedBackgroundMiddleware, engine=PostgresEngine(...))`"
    )


def run(app: Any, engine: PostgresEngine, concurrency: int | None) -> int:
    """Work until a signal comes, on uvloop where it is installed. Returns the exit code."""
    engine.worker = True
    if concurrency is not None:
        engine.concurrency = concurrency
    return anyio.run(serve, app, engine, backend_options={"use_uvloop": find_spec("uvloop") is not None})


async def serve(app: Any, engine: PostgresEngine) -> int:
    """Run the app's lifespan, and in it the worker, until a signal comes or the worker ends by itself."""
    told = asyncio.Event()
    lifespan = _Lifespan(app)
    with _signals(told.set):
        try:
            await lifespan.start()
        except SchemaError as error:
            _logger.error("the worker does not start: %s", error)
            return RESTART
        except AppError as error:
            _logger.error("the app does not start: %s", error)
            return 1
        working = engine.session().working
        if working is None:
            _logger.error("the app does not pass its lifespan on to its OrderedBackgroundMiddleware")
            return 1
        _logger.info("a worker runs the tasks of %r, %d lanes at once", engine.queue, engine.concurrency)
        ends = {
            asyncio.ensure_future(one): text
            for one, text in (
                (told.wait(), None),
                (asyncio.wait({working}), "the worker has ended by itself"),
                (_until_other_tables(engine.dsn), "the tables in the database are of another version now"),
                (asyncio.wait({lifespan.task}), "the app's lifespan has ended"),
            )
        }
        done, waiting = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for one in waiting:
            one.cancel()
        reasons = [text for one in done if (text := ends[one]) is not None]
        for text in reasons:
            _logger.error("%s: this process ends with exit code %d, to be started again", text, RESTART)
        await lifespan.stop()
        return RESTART if reasons else 0


@contextmanager
def _signals(tell: Callable[[], None]) -> Iterator[None]:
    """The first SIGTERM or SIGINT calls `tell` in the loop. The second one ends the process at once."""
    loop = asyncio.get_running_loop()

    def first(number: int, frame: object) -> None:
        for one in _SIGNALS:
            signal.signal(one, signal.SIG_DFL)
        loop.call_soon_threadsafe(tell)

    before = {one: signal.signal(one, first) for one in _SIGNALS}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


async def _until_other_tables(dsn: str) -> None:
    """Return once the tables in the database are not those of this version."""
    while True:
        await asyncio.sleep(_LOOK_EVERY)
        try:
            connection = await connect(dsn)
            try:
                if not await is_current(connection):
                    return
            finally:
                await connection.close()
        except SchemaError:
            return
        except psycopg.Error:
            pass  # the next time


class _Lifespan:
    """An app's lifespan, as a server drives it; begins in the running loop."""

    def __init__(self, app: Any) -> None:
        self._receive: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._moved: asyncio.Event = asyncio.Event()
        self._last: dict[str, Any] = {}
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
        self.task: asyncio.Future[Any] = asyncio.ensure_future(app(scope, self._receive.get, self._send))

    async def start(self) -> None:
        """Raises what the app raises, or `AppError` where it says only that it has failed."""
        await self._tell("lifespan.startup")
        if self._last.get("type") != "lifespan.startup.complete":
            await self._end()
            raise AppError(self._last.get("message") or "it has no lifespan")

    async def stop(self) -> None:
        """Raises what the app raises at its shutdown."""
        await self._tell("lifespan.shutdown")
        await self._end()

    async def _tell(self, message: str) -> None:
        """Until the app has answered, or has ended."""
        self._moved.clear()
        self._receive.put_nowait({"type": message})
        moved = asyncio.ensure_future(self._moved.wait())
        await asyncio.wait({self.task, moved}, return_when=asyncio.FIRST_COMPLETED)
        moved.cancel()

    async def _end(self) -> None:
        """An app that has answered ends, too: it has a second for it. Raises what it raises."""
        await asyncio.wait({self.task}, timeout=1)
        if self.task.done():
            self.task.result()
        else:
            self.task.cancel()
            await asyncio.wait({self.task}, timeout=1)

    async def _send(self, message: dict[str, Any]) -> None:
        self._last = message
        self._moved.set()
