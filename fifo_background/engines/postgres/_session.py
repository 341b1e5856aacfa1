"""What one event loop has of the engine: its connections, its worker, and who waits in it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg

from fifo_background import _log
from fifo_background._entries import Entry
from fifo_background.engines.postgres._changes import Changes
from fifo_background.engines.postgres._codec import Codec
from fifo_background.engines.postgres._connections import Connections, connect
from fifo_background.engines.postgres._database import Database
from fifo_background.engines.postgres._errors import SchemaError
from fifo_background.engines.postgres._executor import StoredExecutor
from fifo_background.engines.postgres._listener import Listener
from fifo_background.engines.postgres._measured import Measured
from fifo_background.engines.postgres._schema import is_current, migrate
from fifo_background.engines.postgres._tasks import Tasks
from fifo_background.engines.postgres._transaction import store_with
from fifo_background.engines.postgres._waits import Waits
from fifo_background.engines.postgres._worker import Worker, WorkerSettings
from fifo_background.exceptions import QueueFull

if TYPE_CHECKING:
    from fifo_background.engines.postgres._engine import PostgresEngine

__all__ = ("Session",)


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
        self._ending: asyncio.Future[None] | None = None  # done once the lifespans before are over
        self.working: asyncio.Task[None] | None = None  # it ends by itself only where something is wrong
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Task[None] | None = None
        self._said: bool = False

    async def open(self) -> None:
        while self._ending is not None:  # the app is started again, before its last end is over
            await asyncio.wait({self._ending})
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
            engine.concurrency, engine.heartbeat, engine.lost_after, engine.most_crashes
        )
        tasks = Tasks(engine.functions, engine.codec, engine.carried, engine.results_bytes)
        return Worker(engine.dsn, self.database, tasks, settings, self.changes.tell, self.measured)

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
        """Look at the tables; make them where that is wanted. Raises `SchemaError`."""
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

    async def close(self) -> None:
        self._lifespans -= 1
        if self._lifespans:
            return
        ending = self._ending = asyncio.get_running_loop().create_future()
        try:
            await self._end()
        finally:
            self._ending = None
            ending.set_result(None)

    async def _end(self) -> None:
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
        self._listener = self.working = None  # tasks know the loop, which is to be forgotten with them
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
            try:
                await store_with(connection, self.engine.queue, groups, most)
            except Exception as error:
                refusal = self.database.refusal(getattr(error, "orig", error), most)
                if isinstance(refusal, QueueFull):
                    raise refusal from error
                raise
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
