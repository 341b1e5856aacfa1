"""A request whose tasks are stored before its response begins, so that what a client was promised is safe."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable, Iterator
from sys import exc_info
from typing import TYPE_CHECKING, Any

from starlette.background import BackgroundTask, BackgroundTasks
from starlette.responses import PlainTextResponse
from starlette.types import Message, Scope, Send
from starlette.websockets import WebSocketDisconnect

from fifo_background import _log
from fifo_background._core.job import name_of, safe_repr
from fifo_background._engine import EngineRequest
from fifo_background._entries import Entry, options_of_entry
from fifo_background._settings import check_key
from fifo_background.engines.postgres._jobs import StoredJob
from fifo_background.engines.postgres._stored import NewTask, lock_of
from fifo_background.exceptions import QueueFull

if TYPE_CHECKING:
    from fifo_background.engines.postgres._engine import PostgresEngine, Session
    from fifo_background.engines.postgres._executor import StoredExecutor

__all__ = ("StoredRequest", "groups_of")


class StoredRequest(EngineRequest):
    """What is added is collected here, and stored at the next of these moments.

    A response below 400 begins; another message of it is sent; an object is awaited; the app returns.
    """

    def __init__(self, engine: PostgresEngine, session: Session, scope: Scope, send: Send) -> None:
        self.scope: Scope = scope
        self._engine = engine
        self._session = session
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._new: list[NewTask] = []  # threads append; the loop takes
        self._made: list[Any] = []  # background objects whose entries are looked for
        self._key: Hashable = ...
        self._started: bool = False  # the response
        self._carries: bool = False  # it is one that tasks go with
        self._refused: bool = False
        self._ended: bool = False

    @property
    def has_ended(self) -> bool:
        return self._ended

    @property
    def is_here(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    @property
    def unanswered(self) -> bool:
        return not self._started and not self._refused and self.scope["type"] == "http"

    @property
    def executor(self) -> StoredExecutor:
        return self._session.executor

    def __str__(self) -> str:
        return f"{self.scope.get('method', self.scope['type'])} {self.scope.get('path', '')}"

    # -- adding ----------------------------------------------------------------------------------------------

    def add(self, task: BackgroundTask, entry: Entry | None) -> StoredJob:
        if self._ended:
            raise self._too_late(task)
        new = self._engine.new_task(task, self._lane(entry), entry)
        self._new.append(new)
        job = StoredJob(self._session, new.id, new.name)
        vars(task)["_fifo_job"] = job
        return job

    def note(self, made: Any) -> None:
        self._made.append(made)

    def _lane(self, entry: Entry | None) -> str:
        """The key of a task's lane, as text."""
        if entry is not None and entry.key is not ...:
            return self._engine.lane_text(entry.key)
        if self._key is ...:
            choose = self._engine.settings.lane_key
            key = None if choose is None else choose(self.scope)
            check_key(key)
            self._key = key
        return self._engine.lane_text(self._key)

    def _too_late(self, task: BackgroundTask) -> RuntimeError:
        return RuntimeError(
            f"{name_of(task)} was added after {self} had ended, and would never run: use "
            "`await executor_of(request).submit(func, ...)` for it"
        )

    def _collect(self) -> list[NewTask]:
        """What has been added, or put into a list before the response began, and is not stored yet."""
        made, self._made = self._made, []
        for one in made:
            self._add_entries([one])
        new, self._new = self._new, []
        return new

    def _add_entries(self, objects: list[Any]) -> list[StoredJob]:
        """The handles of the entries of objects; what came there by hand is added. In their order."""
        jobs: list[StoredJob] = []
        before, self._new = self._new, []
        order: list[NewTask] = []
        by_id = {new.id: new for new in before}
        for task in _entries(objects):
            job = vars(task).get("_fifo_job")
            if type(job) is not StoredJob or job._session is not self._session:
                job = self.add(task, options_of_entry(task))
            jobs.append(job)
        added, self._new = self._new, []
        by_id.update((new.id, new) for new in added)
        for job in jobs:
            if job.id in by_id:
                order.append(by_id.pop(job.id))
        # what belongs to other objects stays before, as it was added before
        self._new = [*(new for new in before if new.id in by_id), *order, *self._new]
        return jobs

    # -- storing ---------------------------------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        if self._refused:
            return  # the client has its answer
        if message["type"] == "http.response.start":
            self._carries = message["status"] < 400
            if self._carries:
                try:
                    await self._store()
                except Exception as error:
                    await self._refuse(error)
                    return
            self._started = True
        elif self._carries and self._new:
            await self._store()
        await self._send(message)

    async def _store(self) -> None:
        """Raises `StoreError` or `QueueFull`; what could not be stored is kept, and is told at the end."""
        new = self._collect()
        if not new:
            return
        try:
            await self._session.store(groups_of(self._engine, new, str(self)))
        except BaseException:
            self._new = new + self._new
            raise

    async def store(self, tasks: Any, connection: Any) -> None:
        jobs = {job.id for job in self._add_entries([tasks])}
        new = [one for one in self._new if one.id in jobs]
        if new:
            groups = groups_of(self._engine, new, str(self))
            await self._session.store(groups, connection)
            self._new = [one for one in self._new if one.id not in jobs]

    async def _refuse(self, error: Exception) -> None:
        """The client gets 503 in place of the response that promised what is not safe."""
        self._refused = True
        level = logging.WARNING if isinstance(error, QueueFull) else logging.ERROR
        _log.say(level, "%s got 503: %s", self, error)
        headers = {"Retry-After": str(getattr(error, "retry_after", 1))}
        response = PlainTextResponse("Service Unavailable", status_code=503, headers=headers)

        async def nothing() -> Message:
            return {"type": "http.disconnect"}

        await response(self.scope, nothing, self._send)

    async def run(self, tasks: Any) -> None:
        jobs = self._add_entries([tasks])
        for task in _entries([tasks]):
            vars(task).pop("_fifo_job", None)  # awaited again, it runs again
        self._made = [made for made in self._made if made is not tasks]
        if self._refused:
            return
        await self._store()
        if self._engine.settings.wait:
            for job in jobs:
                await job

    async def end(self, error: BaseException | None) -> None:
        normal = error is None or (
            self.scope["type"] == "websocket" and issubclass(type(error), WebSocketDisconnect)
        )
        if (
            self._new
            and normal
            and not self._refused
            and (self._carries or self.scope["type"] == "websocket")
        ):
            await self._store()
        self._ended = True
        self._made = []
        dropped, self._new = self._new, []
        if dropped:
            why = f"it raised {safe_repr(error)}" if error is not None else self._why()
            listed = ", ".join(f"{new.name} {new.id}" for new in dropped)
            _log.say(logging.WARNING, "%s: dropped %d tasks: %s (%s)", self, len(dropped), listed, why)

    def _why(self) -> str:
        if self._refused:
            return "they could not be stored, and the client got 503"
        if exc_info()[0] is not None:
            return "it raised"
        return "its response was an error (400 or more) that did not carry them"


def groups_of(engine: PostgresEngine, new: list[NewTask], label: str | None) -> list[dict[str, Any]]:
    """What the database takes: what one request has added to one lane is one job."""
    carried = engine.carried.take()
    groups: dict[str, dict[str, Any]] = {}
    for task in new:
        lane = groups.setdefault(
            task.lane,
            {
                "lock": lock_of(engine.queue, task.lane),
                "lane": task.lane,
                "request": label,
                "carried": carried or None,
                "tasks": [],
            },
        )
        lane["tasks"].append(task.row(len(lane["tasks"])))
    return list(groups.values())


def _entries(objects: list[Any]) -> Iterator[Any]:
    """The single tasks in objects, in order, also those of objects in objects."""
    for one in objects:
        if isinstance(one, BackgroundTasks):
            yield from _entries(one.tasks)
        elif isinstance(getattr(one, "func", None), BackgroundTasks):
            yield from _entries([one.func])
        else:
            yield one
