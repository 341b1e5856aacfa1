"""A request whose tasks are stored before its response begins, so that what a client was promised is safe."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING, Any

from starlette.background import BackgroundTask, BackgroundTasks
from starlette.responses import PlainTextResponse
from starlette.types import Message, Scope, Send
from starlette.websockets import WebSocketDisconnect

from fifo_background import _log
from fifo_background._core.naming import name_of
from fifo_background._core.plain import LONGEST_TEXT, on_one_line
from fifo_background._core.state import FAILED
from fifo_background._engine import EngineRequest
from fifo_background._entries import Entry, options_of_entry, set_on
from fifo_background._settings import Settings, check_key
from fifo_background.engines.postgres._jobs import StoredJob
from fifo_background.engines.postgres._stored import NewTask, lock_of, running
from fifo_background.exceptions import (
    LaneStopped,
    OrderedBackgroundError,
    QueueFull,
    Refused,
    counted,
    safe_repr,
)

if TYPE_CHECKING:
    from fifo_background.engines.postgres._engine import PostgresEngine
    from fifo_background.engines.postgres._executor import StoredExecutor
    from fifo_background.engines.postgres._session import Session

__all__ = ("StoredRequest", "groups_of")


class StoredRequest(EngineRequest):
    """What is added is collected here, and stored at the next of these moments.

    A response below 400 begins; another message of it is sent; an object is awaited; the app returns.
    """

    def __init__(self, engine: PostgresEngine, session: Session, scope: Scope, send: Send) -> None:
        self.scope: Scope = scope
        self.settings: Settings = engine.settings
        self._engine = engine
        self._session = session
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._added: deque[NewTask] = deque()  # threads append; the loop takes
        self._new: list[NewTask] = []  # taken from there, and not stored yet
        self._ids: set[str] = set()  # of all that was added
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
        return on_one_line(f"{self.scope.get('method', self.scope['type'])} {self.scope.get('path', '')}")

    # -- adding ----------------------------------------------------------------------------------------------

    def add(self, task: BackgroundTask, entry: Entry | None) -> StoredJob[Any]:
        if self._ended:
            raise self._too_late(f"{name_of(task)} was added")
        new = self._engine.new_task(task, self._lane(entry), entry, self.settings)
        job: StoredJob[Any] = StoredJob(self._session, new.id, new.name, new.fate)
        set_on(task, "_fifo_stored", job)
        self._ids.add(new.id)
        self._added.append(new)
        return job

    def note(self, made: Any) -> None:
        self._made.append(made)

    def _lane(self, entry: Entry | None) -> str:
        """The key of a task's lane, as text."""
        if entry is not None and entry.key is not ...:
            return self._engine.lane_text(entry.key)
        if self._key is ...:
            choose = self.settings.lane_key
            key = None if choose is None else choose(self.scope)
            check_key(key)
            self._key = key
        return self._engine.lane_text(self._key)

    def _too_late(self, what: str) -> RuntimeError:
        return RuntimeError(
            f"{what} after {self} had ended, and would never run: use "
            "`await executor_of(request).submit(func, ...)` for it"
        )

    def _take(self) -> list[NewTask]:
        """All that was added, is not stored yet and was not cancelled."""
        while self._added:
            self._new.append(self._added.popleft())
        self._new = [new for new in self._new if not new.fate.is_cancelled]
        return self._new

    def _add_entries(self, made: Any) -> list[StoredJob[Any]]:
        """The handles of an object's entries, in their order; what came there by hand is added."""
        jobs: list[StoredJob[Any]] = []
        for task in _entries(made):
            job = getattr(task, "_fifo_stored", None)
            if type(job) is not StoredJob or job.id not in self._ids:  # or that of another request
                job = self.add(task, options_of_entry(task))
            jobs.append(job)
        new = {one.id: one for one in self._take()}
        ordered = iter([new[job.id] for job in jobs if job.id in new])
        ids = {job.id for job in jobs}
        # what belongs to other objects stays where it was added
        self._new = [next(ordered) if id in ids else one for id, one in new.items()]
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
        elif self._carries and self._take():
            await self._store()
        await self._send(message)

    async def _store(self) -> None:
        """Raises `StoreError` or `QueueFull`; what could not be stored is kept, and is told at the end."""
        made, self._made = self._made, []
        for one in made:
            self._add_entries(one)
        await self._hand_over(self._take(), None)

    async def store(self, tasks: Any, connection: Any) -> None:
        if self._ended:
            raise self._too_late("tasks were stored")
        jobs = {job.id for job in self._add_entries(tasks)}
        await self._hand_over([new for new in self._new if new.id in jobs], connection)

    async def _hand_over(self, new: list[NewTask], connection: Any) -> None:
        """Give some of what is new to the database."""
        if not new:
            return
        label = str(self)[:LONGEST_TEXT]  # a path may be long
        groups = groups_of(self._engine, new, label)
        ids = {one.id for one in new}
        self._new = [one for one in self._new if one.id not in ids]
        for one in new:
            one.fate.is_open = False
        try:
            await self._session.store(groups, connection)
        except BaseException:
            for one in new:
                one.fate.is_open = True
            self._new = new + self._new
            raise

    async def _refuse(self, error: Exception) -> None:
        """The client gets 503 in place of the response that promised what is not safe."""
        self._refused = True
        level = logging.WARNING if isinstance(error, QueueFull) else logging.ERROR
        unexpected = None if isinstance(error, OrderedBackgroundError) else error
        _log.say(level, "%s got 503: %s", self, error, error=unexpected)
        headers = {"Retry-After": str(getattr(error, "retry_after", Refused.retry_after))}
        response = PlainTextResponse("Service Unavailable", status_code=503, headers=headers)

        async def nothing() -> Message:
            return {"type": "http.disconnect"}

        await response(self.scope, nothing, self._send)

    async def run(self, tasks: Any) -> None:
        if self._ended:
            raise self._too_late("tasks were awaited")
        jobs = self._add_entries(tasks)
        awaited: list[StoredJob[Any]] = []
        for job, task in zip(jobs, _entries(tasks), strict=True):
            set_on(task, "_fifo_stored", None)  # awaited again, it runs again
            entry = options_of_entry(task)
            waits = self.settings.wait if entry is None else entry.changes.get("wait", self.settings.wait)
            if waits:
                awaited.append(job)
        self._made = [made for made in self._made if made is not tasks]
        if self._refused:
            return
        await self._store()
        if running(self._engine.queue) is not None:
            return  # a task of this process has made the request, and would wait for itself
        await _wait_for(awaited)

    async def end(self, error: BaseException | None) -> None:
        normal = error is None or (
            self.scope["type"] == "websocket" and issubclass(type(error), WebSocketDisconnect)
        )
        try:
            if normal and not self._refused and (self._carries or self.scope["type"] == "websocket"):
                await self._store()
        except BaseException as unstored:
            error = unstored
            raise
        finally:
            self._ended = True
            self._made = []
            dropped, self._new = self._take(), []
            if dropped:
                self._drop(dropped, error)

    def _drop(self, dropped: list[NewTask], error: BaseException | None) -> None:
        for new in dropped:
            new.fate.cancel()
        if error is not None:
            why = f"it raised {safe_repr(error)}"
        elif self._refused:
            why = "the database did not confirm them, and the client got 503"
        else:
            why = "its response was an error (400 or more) that did not carry them"
        what = counted(len(dropped), "task", "tasks")
        listed = ", ".join(f"{new.name} {new.id}" for new in dropped)
        _log.say(logging.WARNING, "%s: dropped %s: %s (%s)", self, what, listed, why)


def groups_of(engine: PostgresEngine, new: list[NewTask], label: str | None) -> list[dict[str, Any]]:
    """What the database takes: what one request has added to one lane is one job."""
    groups: dict[str, dict[str, Any]] = {}
    for task in new:
        lane = groups.setdefault(
            task.lane,
            {
                "lock": lock_of(engine.queue, task.lane),
                "lane": task.lane,
                "request": label,
                "tasks": [],
            },
        )
        lane["tasks"].append(task.row(len(lane["tasks"])))
    return list(groups.values())


async def _wait_for(jobs: list[StoredJob[Any]]) -> None:
    """For the ends of a request's tasks. Raises the error of the first that fails, or `LaneStopped`."""
    failed: list[StoredJob[Any]] = []
    try:
        for job in jobs:
            if await job._wait_in_request() is FAILED:
                failed.append(job)
    except LaneStopped:
        if not failed:  # else the request's own task may have stopped it
            raise
    for job in failed[:1]:
        await job  # raises


def _entries(made: Any) -> Iterator[Any]:
    """The single tasks of a background object, in order, also those of objects in it."""
    if isinstance(made, BackgroundTasks):
        for one in tuple(made.tasks):
            yield from _entries(one)
    elif isinstance(made.func, BackgroundTasks):
        yield from _entries(made.func)
    else:
        yield made
