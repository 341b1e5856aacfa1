"""One request as the line sees it: its places, its response, and the end of both.

Decides when tasks are ready: their object has been awaited and the response has ended. Runs nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Hashable, Iterable, Sequence
from contextvars import Token, copy_context
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from starlette.background import BackgroundTask, BackgroundTasks
from starlette.types import Message, Scope, Send
from starlette.websockets import WebSocketDisconnect

from fifo_background import _call
from fifo_background._call import Around
from fifo_background._executor import current, here
from fifo_background._job import CANCELLED, DROPPED, PENDING, SKIPPED, SUPERSEDED, Batch, Job
from fifo_background._lane import GONE, IN_LINE, NOTHING, OUTSIDE, Place
from fifo_background._log import logger, names
from fifo_background._loop import running_loop
from fifo_background._serial import SerialExecutor
from fifo_background._settings import Settings, check_key

if TYPE_CHECKING:
    from fifo_background._tasks import OrderedBackgroundTasks

__all__ = (
    "ENTRY",
    "HANDLING",
    "RESPONDED",
    "ENDED",
    "JOB",
    "Entry",
    "TrackedRequest",
    "default_executor",
    "take_job",
    "tracked_request",
)

# The executors of what runs outside of any of our middlewares: one for each event loop.
_default_executors: weakref.WeakKeyDictionary[object, SerialExecutor] = weakref.WeakKeyDictionary()


# The ASGI type of what is no request.
NO_REQUEST = "no request"

# Where an entry of `.tasks` keeps the job that `add_task` returned, until it is awaited, and what was asked
# for it.
JOB = "_fifo_background_job"
ENTRY = "_fifo_background_entry"

# A job that ended like this before its object was awaited stays away from it.
CALLED_OFF = frozenset({CANCELLED, SKIPPED, SUPERSEDED})


class Entry(NamedTuple):
    """What `tasks.lane(...)` and `tasks.options(...)` asked for a task."""

    key: Any  # `...` for the default lane of the request
    changes: dict[str, Any]  # of `Options`


class Stage(Enum):
    """How far a request is."""

    HANDLING = "handling"
    RESPONDED = "responded"
    ENDED = "ended"


HANDLING, RESPONDED, ENDED = Stage


class TrackedRequest:
    """A request, a websocket connection, or what is neither (no middleware: `outside`)."""

    __slots__ = (
        "__weakref__",
        "_key",
        "_send",
        "_started",
        "_trailers",
        "awaits",
        "executor",
        "handed_over",
        "inside",
        "places",
        "scope",
        "settings",
        "stage",
        "token",
    )

    token: Token[TrackedRequest | Job[Any] | None]  # the middleware's: with it the context is left

    def __init__(self, executor: SerialExecutor, settings: Settings, scope: Scope, send: Send) -> None:
        self.executor: SerialExecutor = executor
        self.settings: Settings = settings
        self.scope: Scope = scope
        self.stage: Stage = HANDLING
        self.places: dict[Hashable, Place] = {}
        # awaited before the response had ended: the middleware waits for it
        self.handed_over: Batch | None = None
        self.inside: Job[Any] | None = None  # the task that has made it, in this process
        self.awaits: Batch | None = None  # what it waits for, unless it is detached
        self._send: Send = send
        self._started: bool = False  # the response, or trying to send it
        self._trailers: bool = False
        self._key: Hashable = None if settings.lane is None else ...  # not asked for yet

    @classmethod
    def outside(cls, executor: SerialExecutor, settings: Settings) -> TrackedRequest:
        """For an object that is awaited where none of our middlewares is: no response to wait for."""
        request = cls(executor, settings, {"type": NO_REQUEST}, cast(Send, None))
        request.stage = RESPONDED
        return request

    def __str__(self) -> str:
        return f"{self.scope.get('method', self.scope['type'])} {self.scope.get('path', '')}"

    @property
    def named(self) -> bool:
        """Whether it is a request that a log record can name."""
        return bool(self.scope["type"] != NO_REQUEST)

    def key(self) -> Hashable:
        """The key of the lane for tasks that name none; asked for once. Never under the line's lock."""
        if self._key is ... and self.settings.lane is not None:
            key = self.settings.lane(self.scope)
            check_key(key)
            self._key = key
        return self._key

    # -- the response -----------------------------------------------------------------------------------

    def send(self, message: Message) -> Awaitable[None]:
        """The ASGI `send` of the request: passes the message on, and sees the response end."""
        kind = message["type"]
        if kind == "http.response.start":
            self._started = True
            self._trailers = message.get("trailers", False)
        elif (
            (
                kind in ("http.response.body", "http.response.zerocopysend")
                and not message.get("more_body", False)
                and not self._trailers
            )
            or kind == "http.response.pathsend"
            or (kind == "http.response.trailers" and not message.get("more_trailers", False))
        ):
            return self._send_last(message)
        return self._send(message)

    async def _send_last(self, message: Message) -> None:
        """Pass it on outside the request's context.

        uvicorn sets a timer here, for the next request of the connection, and a timer keeps its context.
        """
        try:
            current.reset(self.token)
        except (ValueError, RuntimeError):  # sent in another context: a middleware's task
            await self._send(message)
        else:
            try:
                await self._send(message)
            finally:
                self.token = current.set(self)
        if self.stage is HANDLING:
            self.stage = RESPONDED
            if self.settings.order == "responded" and self.places:
                self._take_places()

    def _take_places(self) -> None:
        line = self.executor.line
        with line.lock:
            for place in self.places.values():
                if place.added and place.state is OUTSIDE and line.is_open:
                    line.take(place)

    @property
    def unanswered(self) -> bool:
        """Whether an HTTP response can still be begun."""
        return not self._started and self.scope["type"] == "http"

    # -- arriving, adding and awaiting --------------------------------------------------------------------

    def arrive(self) -> None:
        """Take a place for tasks that the request may add; it is free again when the request has ended."""
        key, line = self.key(), self.executor.line
        with line.lock:
            if line.is_open:
                place = self.places[key] = Place(key, self)
                place.arriving = True
                line.take(place)

    def _arrived(self) -> None:
        """From here on the request holds places by its tasks alone."""
        for place in self.places.values():
            if place.arriving:
                place.arriving = False
                self.executor.line.wants_turn(place.lane)  # type: ignore[arg-type]

    def add(self, task: BackgroundTask, batch: Batch | None, entry: Entry | None) -> Job[Any]:
        """`add_task`: the request takes its place here, unless it has one or its settings say later.

        `batch` is that of the object if it has been awaited; while its jobs are not all done the new one
        joins them.
        """
        executor = self.executor
        line = executor.line
        if not executor.is_current():
            executor.check_caller()
        options = self.settings.options
        key = self._key
        if entry is not None:
            options = options.but(**entry.changes)
            key = entry.key
        if key is ...:
            key = self.key()
        job: Job[Any] = Job(task, executor, options)
        line.lock.acquire()
        try:
            if batch is None and self.handed_over is not None and self.scope["type"] == "websocket":
                batch = self.handed_over  # nobody but us has awaited its objects
            ended = self.stage is ENDED if batch is None else not batch.left
            if ended:
                raise RuntimeError(
                    f"{job.name} was added after the tasks of {self} had ended, and would never run: "
                    "use `executor_of(request).submit_nowait(func, ...)` for it"
                )
            place = self._place(job, key, False)
            if batch is not None:
                batch.claim(job, _call.around_here())
                if place.context is None:
                    place.context = copy_context()
                if batch is not self.handed_over or self.stage is ENDED:
                    line.queue(place, [job])
                    executor.settle_soon()
        finally:
            line.lock.release()
        return job

    def _place(self, job: Job[Any], key: Hashable, owed: bool) -> Place:
        """Give a job its place, which the request has, or takes now or later."""
        place = self.places.get(key)
        if place is None or place.state is GONE:
            place = self.places[key] = Place(key, self)
        take = place.state is OUTSIDE and (
            self.stage is not HANDLING
            or (
                place.number == 0  # one that was lost is taken again when the response has ended
                and self.settings.order != "responded"
                and self.scope["type"] != "websocket"
            )
        )
        self.executor.line.add(job, place, take, owed)
        return place

    def line_up(
        self, tasks: Sequence[BackgroundTask], around: Around, owner: OrderedBackgroundTasks
    ) -> Batch:
        """An object is awaited: its tasks run when the response has ended, in the order of its list."""
        executor = self.executor
        line = executor.line
        if not executor.is_current():
            executor.check_caller()
        if self._key is ...:
            self.key()
        ready = self.stage is not HANDLING
        batch = Batch(self.settings.wait) if ready or self.handed_over is None else self.handed_over
        runner = None
        line.lock.acquire()
        try:
            jobs = self._claim(tasks, batch, around)
            owner._collects = False
            owner._awaited_by, owner._batch = self, batch
            for place, its_jobs in jobs.items():
                # one for each lane: two could not run in one context side by side
                place.context = copy_context()
                if not ready:
                    place.hold_together(its_jobs)
                elif batch.left > 1 or (runner := line.start_at_once(place, its_jobs)) is None:
                    line.queue(place, its_jobs)
            if ready:
                self.awaits = batch  # from here on: its tasks may start below
                if self.settings.order == "arrived":
                    self._arrived()
            else:
                self.handed_over = batch
            if runner is None and line.turns:
                runner = line.next_runner()
        finally:
            line.lock.release()
        if runner is not None:
            executor.start(runner)
        if line.turns or line.woken or line.effects:
            executor.settle()
        return batch

    def _claim(
        self, tasks: Sequence[BackgroundTask], batch: Batch, around: Around
    ) -> dict[Place, list[Job[Any]]]:
        """The jobs of the list of an object that is awaited, by their places."""
        jobs: dict[Place, list[Job[Any]]] = {}
        nested: list[Job[Any]] = []
        for task in tasks:
            job = self._job_of(task)
            if job is not None:
                batch.claim(job, around)
                place: Place = job.place  # type: ignore[assignment]
                if place in jobs:
                    jobs[place].append(job)
                else:
                    jobs[place] = [job]
                if type(task) is not BackgroundTask or isinstance(task.func, BackgroundTasks):
                    nested.append(job)
        if nested:
            self._take_in_parts(nested)
        return jobs

    def _job_of(self, task: BackgroundTask) -> Job[Any] | None:
        """The job that `add_task` made for this entry if it still waits to be awaited, or a new one.

        None if it was called off, or another one has taken over from it.
        """
        job: Job[Any] | None = getattr(task, JOB, None)
        if job is not None and job.batch is None:
            if job.state is PENDING:
                delattr(task, JOB)
                place = job.place
                if place is not None and place.owner is self:
                    return job
                if job.executor is None:
                    return self._register(job, getattr(task, ENTRY, None))
            elif job.state in CALLED_OFF:
                return None
        elif job is not None and job.state is PENDING:
            delattr(task, JOB)  # added when its object had been handed over already: it runs with that
            return None
        return self._register(Job(task, None, self.settings.options), getattr(task, ENTRY, None))

    def _take_in_parts(self, jobs: Iterable[Job[Any]]) -> None:
        """What was added to objects that are tasks themselves runs inside these."""
        for job in jobs:
            inner = _object_in(job.task)
            if inner is not None:
                self.executor.line.take_in(job, self._parts_of(inner, job))

    def _parts_of(self, inner: BackgroundTasks, entry: Job[Any]) -> list[Job[Any]]:
        """What was added to an object, and to those in its list, and waits for being awaited."""
        parts: list[Job[Any]] = []
        look, seen = [inner], {id(inner)}
        while look:
            owner: Any = look.pop()
            if hasattr(owner, "_part_of"):  # one of ours: what is added later belongs to the entry, too
                owner._collects = False
                owner._part_of = self, entry
            for task in owner.tasks:
                job: Job[Any] | None = getattr(task, JOB, None)
                if job is not None and job.batch is None and job.within is None and self._has_pending(job):
                    job.executor = self.executor
                    parts.append(job)
                deeper = _object_in(task)
                if deeper is not None and id(deeper) not in seen:
                    seen.add(id(deeper))
                    look.append(deeper)
        return parts

    def add_part(self, task: BackgroundTask, entry: Job[Any], changes: Entry | None) -> Job[Any] | None:
        """`add_task` on an object that is a task itself: the new one runs inside that, with the others.

        None if that has ended.
        """
        executor, line = self.executor, self.executor.line
        if not executor.is_current():
            executor.check_caller()
        options = self.settings.options if changes is None else self.settings.options.but(**changes.changes)
        job: Job[Any] = Job(task, executor, options)
        with line.lock:
            if entry.state.ended:
                return None
            line.add(job, entry.place, False)  # type: ignore[arg-type]
            line.take_in(entry, [job])
        return job

    def _has_pending(self, job: Job[Any]) -> bool:
        """Whether the job waits in a place of this request, or was added where there was none."""
        place = job.place
        return job.state is PENDING and (place is None or place.owner is self)

    def _register(self, job: Job[Any], entry: Entry | None) -> Job[Any]:
        key = self._key if entry is None or entry.key is ... else entry.key
        job.options = self.settings.options if entry is None else self.settings.options.but(**entry.changes)
        self._place(job, key, True)
        job.executor = self.executor
        return job

    # -- the end ----------------------------------------------------------------------------------------

    def end(self, error: BaseException | None) -> None:
        """The app has returned, or raised `error`: nothing can be awaited in this request any more.

        What was handed over runs, what was not is dropped and named in the log.
        """
        line = self.executor.line
        line.lock.acquire()  # a thread of the handler may still be adding
        try:
            interrupted = error is not None and self._started and self.stage is HANDLING
            self.stage = ENDED
            for place in self.places.values():
                if place.added or place.arriving:
                    dropped = self._give_up_places(error)
                    break
            else:  # as almost always
                return
        finally:
            line.lock.release()
        self.executor.settle()
        if dropped:
            refused = error is None and any(job.batch is not None for job in dropped)
            why = "the executor was closed" if refused else self._why(error, interrupted)
            logger.warning("%s ended without running %s: %s", self, names(dropped), why)

    def _give_up_places(self, error: BaseException | None) -> list[Job[Any]]:
        """What was handed over runs; returns what does not."""
        of_websocket = self.scope["type"] == "websocket"
        if of_websocket:  # nobody but us awaits its objects
            for place in self.places.values():
                self._take_in_parts([job for job in place.added if job.batch is None])
        dropped: list[Job[Any]] = []
        for place in self.places.values():
            if place.arriving:
                self._arrived()
            if place.added:
                if of_websocket and (error is None or self.owes_websocket_tasks(error)):
                    self._hand_over(place)
                dropped += self._owe_or_drop(place)
        return dropped

    def _owe_or_drop(self, place: Place) -> list[Job[Any]]:
        """What was awaited is ready now; what was not is dropped, and returned."""
        line = self.executor.line
        closed = place.state is not IN_LINE and not line.is_open
        added, place.added = place.added, NOTHING
        dropped = [job for job in added if closed or job.batch is None]
        for job in dropped:
            line.end_waiting(job, DROPPED)
        owed = [job for job in added if job.state is PENDING]
        if owed:
            line.queue(place, owed)
        return dropped

    def _hand_over(self, place: Place) -> None:
        """What nobody has awaited is awaited by the middleware."""
        if place.context is None:
            place.context = copy_context()
        self.handed_over = self.handed_over or Batch(self.settings.wait)
        for job in place.added:
            if job.batch is None:
                self.handed_over.claim(job, _call.around_here())

    def owes_websocket_tasks(self, error: BaseException) -> bool:
        """Whether `error` is a normal end, after which the request waits for its tasks."""
        return self.scope["type"] == "websocket" and isinstance(error, WebSocketDisconnect)

    def _why(self, error: BaseException | None, interrupted: bool) -> str:
        if interrupted:
            return "response interrupted"
        if error is not None:
            return f"it raised {error!r}"
        return "its response did not carry them (it had a background of its own, or none was attached)"


def _object_in(task: BackgroundTask) -> BackgroundTasks | None:
    """The object that a task runs, if it is one: an entry of a list, or what `add_task` was given."""
    inner = task if isinstance(task, BackgroundTasks) else getattr(task, "func", None)
    return inner if isinstance(inner, BackgroundTasks) else None


def take_job(task: BackgroundTask) -> Job[Any] | None:
    """The job that `add_task` made for an entry of `.tasks`, once."""
    job: Job[Any] | None = getattr(task, JOB, None)
    if job is not None:
        delattr(task, JOB)
    return job


def tracked_request() -> TrackedRequest | None:
    """The request in whose context the caller runs, if any."""
    found = here()
    return found if isinstance(found, TrackedRequest) and found.stage is not ENDED else None


def default_executor() -> SerialExecutor:
    """The running loop's executor for what has no middleware."""
    loop = running_loop()
    executor = _default_executors.get(loop)
    if executor is None:
        executor = _default_executors[loop] = SerialExecutor()
        executor.check_caller()
    return executor
