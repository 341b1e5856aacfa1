"""The engine: its settings, what each event loop has of it, and the seam to the middleware."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import asdict
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.json import Jsonb
from starlette.background import BackgroundTask
from starlette.types import Scope, Send

from fifo_background import _log
from fifo_background._core.job import name_of
from fifo_background._entries import Entry
from fifo_background._run.backends.api import in_a_loop
from fifo_background._settings import PLAIN, Retry, Settings, check_bool, check_count, check_seconds
from fifo_background.engines.postgres._changes import Changes
from fifo_background.engines.postgres._codec import Codec
from fifo_background.engines.postgres._connections import Connections, connect
from fifo_background.engines.postgres._database import STORE, Database
from fifo_background.engines.postgres._errors import SchemaError
from fifo_background.engines.postgres._executor import StoredExecutor
from fifo_background.engines.postgres._functions import Functions
from fifo_background.engines.postgres._listener import Listener
from fifo_background.engines.postgres._measured import Measured
from fifo_background.engines.postgres._request import StoredRequest
from fifo_background.engines.postgres._schema import is_current, migrate
from fifo_background.engines.postgres._stored import Carried, Fate, NewTask, new_id
from fifo_background.engines.postgres._waits import Waits
from fifo_background.engines.postgres._worker import Worker, WorkerSettings

__all__ = ("PostgresEngine", "Session")

T = TypeVar("T")

# Settings that say when a position in memory is taken, or lost.
_OF_MEMORY = ("order", "hold_timeout", "may_add_tasks")

# What to write instead of other settings of the queue in memory.
_INSTEAD = {
    "max_lanes_running": "`PostgresEngine(dsn, concurrency=...)` is for each worker",
    "history": "`PostgresEngine(dsn, keep_ended=...)` is for how long ended tasks are kept",
    "history_seconds": "`PostgresEngine(dsn, keep_ended=...)` is for how long ended tasks are kept",
    "results": "results are kept, up to `PostgresEngine(dsn, results_bytes=...)` each",
    "results_bytes": "results are kept, up to `PostgresEngine(dsn, results_bytes=...)` each",
    "log_arguments": "arguments are in the database",
}


class PostgresEngine:
    """Keeps an app's tasks in PostgreSQL, in order over all of its processes and hosts.

    `dsn`: how to connect, such as "postgresql://user@host/database".

    `packages`: the names of the packages whose functions may run as tasks. Default: that of the module that
    makes the engine. Workers call nothing else, whatever is in the database.

    `queue` (default "fifo_background"): apps that share it share their lanes. `worker` (default True):
    whether this process runs tasks, too. `concurrency` (default 8): how many lanes a worker runs at once.

    `carry`: context variables that go with a task, by a name for each: `{"tenant": tenant_var}`.

    `store_timeout` (seconds, default 2.5): how long a response waits for its tasks to be stored; then its
    client gets 503.

    `heartbeat` and `lost_after` (seconds, default 1.0 and 6.0): a worker that is not heard of for
    `lost_after` is lost, and its tasks run again elsewhere. `most_crashes` (default 5): a task that has lost
    its worker so often has failed.

    `results_bytes` (default 100,000): the largest result that is kept. `keep_ended` (seconds, default
    604800.0, a week): for how long ended tasks are kept. `migrate` (default True): whether the app makes the
    tables where they are missing.

    Raises ValueError or TypeError for an invalid setting.
    """

    def __init__(
        self,
        dsn: str,
        *,
        packages: Iterable[str] | None = None,
        queue: str = "fifo_background",
        worker: bool = True,
        concurrency: int = 8,
        carry: Mapping[str, ContextVar[Any]] | None = None,
        store_timeout: float = 2.5,
        heartbeat: float = 1.0,
        lost_after: float = 6.0,
        most_crashes: int = 5,
        results_bytes: int = 100_000,
        keep_ended: float = 604_800.0,
        migrate: bool = True,
    ) -> None:
        if not isinstance(dsn, str):
            raise TypeError(f"dsn={dsn!r}: give a str, such as 'postgresql://user@host/database'")
        try:
            conninfo_to_dict(dsn)
        except psycopg.ProgrammingError as error:
            raise ValueError(f"dsn: {error}") from None  # it may have a password
        if isinstance(packages, str):
            raise TypeError(f"packages={packages!r}: give a list of names, [{packages!r}]")
        if not isinstance(queue, str) or not 0 < len(queue) <= 40 or "\0" in queue:
            raise ValueError(f"queue={queue!r}: give a name of at most 40 characters")
        check_bool("worker", worker)
        check_bool("migrate", migrate)
        check_count("concurrency", concurrency)
        check_count("most_crashes", most_crashes)
        check_count("results_bytes", results_bytes, least=0)
        check_seconds("keep_ended", keep_ended)
        check_seconds("store_timeout", store_timeout)
        check_seconds("heartbeat", heartbeat)
        check_seconds("lost_after", lost_after)
        for name, variable in (carry or {}).items():
            if not isinstance(name, str) or not isinstance(variable, ContextVar):
                raise TypeError(f"carry={carry!r}: give a dict such as {{'tenant': tenant_var}}")
        if not 0 < heartbeat <= lost_after / 3:
            raise ValueError(f"heartbeat={heartbeat!r}: give at most a third of lost_after ({lost_after!r})")
        if packages is None:
            caller: str = sys._getframe(1).f_globals.get("__name__", "")
            packages = [] if caller == "__main__" else [caller.partition(".")[0]]
        self.dsn: str = dsn
        self.queue: str = queue
        self.worker: bool = worker
        self.concurrency: int = concurrency
        self.settings: Settings = Settings(wait=False)
        self.functions: Functions = Functions(packages)
        self.codec: Codec = Codec(self.functions)
        self.carried: Carried = Carried(self.codec, carry or {})
        self.store_timeout: float = store_timeout
        self.keep_ended: float = keep_ended
        self.heartbeat: float = heartbeat
        self.lost_after: float = lost_after
        self.most_crashes: int = most_crashes
        self.results_bytes: int = results_bytes
        self.migrates: bool = migrate
        self._sessions: WeakKeyDictionary[Any, Session] = WeakKeyDictionary()

    # -- the seam --------------------------------------------------------------------------------------------

    def bind(self, settings: Settings, given: frozenset[str]) -> Settings:
        """Take the settings of the middleware. Raises ValueError for those of the queue in memory."""
        for name in _OF_MEMORY:
            if name in given:
                raise ValueError(
                    f"{name}= does not apply with an engine: a request's tasks take their positions when "
                    f"they are stored, before its response begins. Leave {name} out"
                )
        defaults = Settings()
        for name, instead in _INSTEAD.items():
            if name in given or getattr(settings, name) != getattr(defaults, name):
                raise ValueError(f"{name}= does not apply with an engine: {instead}. Leave {name} out")
        self.settings = settings
        return settings

    def request(self, scope: Scope, send: Send) -> StoredRequest:
        return StoredRequest(self, self.session(), scope, send)

    @property
    def executor(self) -> StoredExecutor:
        """In the running event loop; in a thread without one, the only one that there is.

        Raises RuntimeError in a thread while there are several, or none.
        """
        if not in_a_loop():
            alive = [session for loop, session in self._sessions.items() if not loop.is_closed()]
            if len(alive) != 1:
                raise RuntimeError(
                    f"the app runs in {len(alive)} event loops, and a thread belongs to none of them: use "
                    "`executor_of(request)`"
                )
            return alive[0].executor
        return self.session().executor

    async def open(self) -> None:
        """A lifespan begins: the tables are looked at, and the worker starts."""
        await self.session().open()

    async def close(self) -> None:
        """It is told to shut down: what runs ends, or is given back."""
        await self.session().close()

    def session(self) -> Session:
        """What the running event loop has of it. Raises RuntimeError for one that is not asyncio's."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(
                "PostgresEngine needs a running event loop of asyncio or uvloop: psycopg does not know trio"
            ) from None
        session = self._sessions.get(loop)
        if session is None:
            session = self._sessions[loop] = Session(self)
        return session

    # -- what is stored --------------------------------------------------------------------------------------

    def lane_text(self, key: Hashable) -> str:
        """The key of a lane as it is stored; equal keys give the same text. Raises TypeError."""
        try:
            return self.codec.write(_plain(key))
        except TypeError as error:
            raise TypeError(f"the key of a lane, {key!r}, cannot be stored: {error}") from None

    def new_task(self, task: BackgroundTask, lane: str, entry: Entry | None) -> NewTask:
        """A call that is to be stored. Raises TypeError for what another process could not call."""
        options = self.settings.options
        if entry is not None:
            options = options.replace(**entry.changes)
        if options.keep != PLAIN.keep or options.max_waiting is not None:
            raise ValueError('keep="latest" and max_waiting= of a lane are not there with an engine')
        stored: dict[str, Any] = {"timeout": options.timeout, "rest": self.settings.rest_after_failure}
        if options.after_failure == "stop":
            stored["after_failure"] = "stop"
        if options.retry is not None:
            stored["retry"] = asdict(Retry.of(options.retry))
        func = vars(task).get("_fifo_function", task.func)  # that an instrumentation may have wrapped
        if not BackgroundTask(func).is_async:
            stored["thread"] = True  # while it runs, nothing can cancel it
        return NewTask(
            Fate(),
            new_id(),
            name_of(func),
            lane,
            self.functions.path_of(func),
            self.codec.arguments(func, task.args, task.kwargs),
            stored,
        )


class Session:
    """One event loop's connections, worker, and who waits in it."""

    def __init__(self, engine: PostgresEngine) -> None:
        self.engine: PostgresEngine = engine
        self.codec: Codec = engine.codec
        self._connections = Connections(engine.dsn, 8, keep=False)
        self.database: Database = Database(self._connections, engine.queue, engine.store_timeout)
        self.waits: Waits = Waits(self.database, self._listen, self._rest)
        self.measured: Measured = Measured()
        self.changes: Changes = Changes(self._listen, self._tell_changes)
        self.executor: StoredExecutor = StoredExecutor(self, Entry(None, {}))
        self._lifespans: int = 0
        self._worker: Worker | None = None
        self.working: asyncio.Task[None] | None = None  # it ends by itself only where something is wrong
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Task[None] | None = None
        self._is_ready: bool = False
        self._said: bool = False

    async def open(self) -> None:
        self._lifespans += 1
        if self._lifespans > 1:
            return
        self._connections.keep = True
        self.waits.open()
        self.changes.begin()
        try:
            await self._prepare()
        except SchemaError:
            self._lifespans -= 1
            self._connections.keep = False
            raise
        except psycopg.Error as error:
            _log.say(logging.WARNING, "PostgreSQL cannot be reached yet, and is asked again: %s", error)
        if self.engine.worker:
            self._worker = self._make_worker()
            self._listen()
            self.working = self._spawn(self._work(self._worker))
        self._spawn(self._prune())

    def _make_worker(self) -> Worker:
        engine = self.engine
        settings = WorkerSettings(
            engine.concurrency, engine.heartbeat, engine.lost_after, engine.most_crashes, engine.results_bytes
        )
        parts = engine.functions, engine.codec, engine.carried
        return Worker(engine.dsn, self.database, *parts, settings, self.changes.tell, self.measured)

    async def _work(self, worker: Worker) -> None:
        while True:
            try:
                await self._prepare()
            except psycopg.Error:
                await asyncio.sleep(0.2)
            else:
                break
        await worker.run()

    async def _prepare(self) -> None:
        """Look at the tables, once; make them where that is wanted. Raises `SchemaError`."""
        if self._is_ready:
            return
        connection = await connect(self.engine.dsn)
        try:
            if self.engine.migrates:
                await migrate(connection)
            elif not await is_current(connection):
                raise SchemaError(
                    "the database does not have the tables: run `fifo-background migrate --dsn ...`, or "
                    "leave migrate=False out"
                )
        finally:
            await connection.close()
        self._is_ready = True

    async def close(self) -> None:
        self._lifespans -= 1
        if self._lifespans:
            return
        self.changes.end()
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.stop(self.engine.settings.drain_timeout)
        self.waits.close()
        self.changes.stop()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))
        self._listener = None
        self._connections.keep = False
        await self._connections.drop_idle()

    def _spawn(self, coroutine: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._has_ended)
        return task

    def _has_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.say(logging.ERROR, "a part of the engine has failed", error=error)

    # -- hearing ---------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        if self._listener is None:
            channel = f"fifo_background#{self.engine.queue}"
            listener = Listener(self.engine.dsn, channel, self._heard, self._missed)
            self._listener = self._spawn(listener.run())

    def _rest(self) -> None:
        """Nobody waits anymore: without a lifespan, only those who follow need the listener."""
        if self._listener is not None and not self._lifespans and not self.changes.is_followed:
            self._listener.cancel()
            self._listener = None

    def _heard(self, text: str) -> None:
        self.changes.heard()
        self.waits.heard(text)
        if self._worker is not None:
            self._worker.heard(text)

    def _missed(self) -> None:
        self.changes.heard()
        self.waits.missed()
        if self._worker is not None:
            self._worker.missed()

    def _tell_changes(self) -> None:
        self._spawn(self._send_changes())

    async def _send_changes(self) -> None:
        with suppress(psycopg.Error):  # the next change is told, and who cannot be reached looks again
            await self.database.notify("changed")

    # -- asking ----------------------------------------------------------------------------------------------

    async def store(self, groups: Sequence[dict[str, Any]], connection: Any = None) -> None:
        """Raises `StoreError` or `QueueFull`."""
        most = self.engine.settings.max_waiting
        if connection is not None:
            await _store_with(connection, self.engine.queue, groups, most)
            return
        if not self._lifespans and not self._said:
            self._said = True
            _log.say(
                logging.INFO,
                "PostgresEngine has seen no lifespan: this process stores tasks, and runs none. Run the "
                "server with `--lifespan on`, or `fifo-background worker myapp:app` beside it",
            )
        await self.database.store(groups, most, self._prepare)

    async def join(self) -> None:
        self._listen()
        await self.waits.for_idle()

    async def _prune(self) -> None:
        """Forget what has ended long ago, every now and then."""
        while True:
            await asyncio.sleep(min(self.engine.keep_ended / 2, 3600.0))
            with suppress(psycopg.Error):  # else the next time
                while await self.database.prune(self.engine.keep_ended):
                    pass


async def _store_with(
    connection: Any, queue: str, groups: Sequence[dict[str, Any]], most: int | None
) -> None:
    """In the transaction of a psycopg connection, or of an async session or connection of SQLAlchemy."""
    if isinstance(connection, psycopg.AsyncConnection):
        await connection.execute(STORE, (queue, Jsonb(groups), most))
        return
    if isinstance(connection, psycopg.Connection):
        raise TypeError("store(connection=...) needs an async connection, and this is a sync one")
    try:
        from sqlalchemy import text
        from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
    except ImportError:
        pass
    else:
        if isinstance(connection, (AsyncConnection, AsyncSession, async_scoped_session)):
            await connection.execute(
                text("SELECT fifo_background_store(:queue, CAST(:groups AS jsonb), CAST(:most AS int))"),
                {"queue": queue, "groups": json.dumps(groups), "most": most},
            )
            return
    raise TypeError(
        f"store(connection={connection!r}): give a psycopg.AsyncConnection, or SQLAlchemy's AsyncSession "
        "or AsyncConnection"
    )


def _plain(key: Any) -> Any:
    """Of keys that are equal the same one: 1, 1.0 and True are one lane in memory, too."""
    if isinstance(key, tuple):
        return tuple(_plain(part) for part in key)
    if isinstance(key, bool) or (isinstance(key, float) and key.is_integer()):
        return int(key)
    return key
