"""The engine: its settings, the seam to the middleware, and how a call becomes what is stored."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Hashable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import asdict
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import psycopg
from psycopg.conninfo import conninfo_to_dict
from starlette.background import BackgroundTask
from starlette.types import Scope, Send

from fifo_background._core.lane import plain_key
from fifo_background._core.naming import name_of
from fifo_background._entries import Entry
from fifo_background._run.backends.api import in_a_loop
from fifo_background._settings import PLAIN, Retry, Settings, check_bool, check_count, check_seconds
from fifo_background.engines.postgres._codec import Codec
from fifo_background.engines.postgres._executor import StoredExecutor
from fifo_background.engines.postgres._functions import Functions
from fifo_background.engines.postgres._request import StoredRequest
from fifo_background.engines.postgres._session import Session
from fifo_background.engines.postgres._stored import Carried, Fate, NewTask, clean, new_id

__all__ = ("PostgresEngine",)

T = TypeVar("T")

# Bytes of a lane's key: PostgreSQL has it in indexes, whose rows take 2,700 bytes at most.
_LONGEST_KEY = 2000

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
        if not isinstance(queue, str) or clean(queue) != queue or not 0 < len(queue.encode()) <= 40:
            raise ValueError(f"queue={queue!r}: give a name of at most 40 bytes")  # it names a channel
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
        if not keep_ended:
            raise ValueError("keep_ended=0: give more than 0 seconds: a wait for a task asks how it ended")
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
        key = plain_key(key)  # `tasks.lane` wraps keys of some types
        try:
            text = self.codec.write(_plain(key))
        except TypeError as error:
            raise TypeError(f"the key of a lane, {key!r}, cannot be stored: {error}") from None
        if len(text) > _LONGEST_KEY:
            raise TypeError(
                f"the key of a lane, {text[:50]}..., takes {len(text)} bytes, and at most {_LONGEST_KEY} are "
                "stored: use an id, or a hash"
            )
        return text

    def new_task(self, task: BackgroundTask, lane: str, entry: Entry | None, settings: Settings) -> NewTask:
        """A call that is to be stored. Raises TypeError for what another process could not call.

        `settings`: of the app that adds it. Several of them may share the engine.
        """
        options = settings.options
        if entry is not None:
            options = options.replace(**entry.changes)
        if options.keep != PLAIN.keep or options.max_waiting is not None:
            raise ValueError(
                'keep="latest" and max_waiting= of a lane do not work with an engine: leave them out'
            )
        stored: dict[str, Any] = {"timeout": options.timeout, "rest": settings.rest_after_failure}
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
            self.carried.take(),  # now: the next task may be added for somebody else
        )


def _plain(key: Any) -> Any:
    """Of keys that are equal the same one, as they are one lane in memory, too.

    So are 1, 1.0 and True; a member of a `StrEnum` and its value; a moment in two time zones.
    """
    if isinstance(key, tuple):
        return tuple(_plain(part) for part in key)
    if isinstance(key, str):
        return str.__str__(key)
    if isinstance(key, int) or (isinstance(key, float) and key.is_integer()):
        return int(key)
    if type(key) is Decimal and key.is_finite():
        return _plain_decimal(key)
    if type(key) is datetime and key.utcoffset() is not None:
        return key.astimezone(timezone.utc)
    return key


def _plain_decimal(key: Decimal) -> Any:
    """The int or the float that is equal, or itself without zeros at its end."""
    sign, digits, exponent = key.as_tuple()
    assert isinstance(exponent, int)
    while len(digits) > 1 and not digits[-1]:
        digits, exponent = digits[:-1], exponent + 1
    if 0 <= exponent < 1000:  # `int` of a larger one takes long
        return int(key)
    return _plain(float(key)) if float(key) == key else Decimal((sign, digits, exponent))
