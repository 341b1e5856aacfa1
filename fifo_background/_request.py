"""One request as the line sees it: its places, its response, and the end of both.

Decides when tasks are ready: their object has been awaited and the response has ended. Runs nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Sequence
from contextvars import copy_context
from enum import Enum
from typing import TYPE_CHECKING, Any

from starlette.background import BackgroundTask
from starlette.types import Message, Scope, Send
from starlette.websockets import WebSocketDisconnect

from fifo_background import _call
from fifo_background._call import Around
from fifo_background._executor import current
from fifo_background._job import Batch, Job, JobState
from fifo_background._lane import Place, PlaceState
from fifo_background._line import LineState
from fifo_background._log import logger, names
from fifo_background._loop import running_loop
from fifo_background._serial import SerialExecutor
from fifo_background._settings import Settings

if TYPE_CHECKING:
    from fifo_background._tasks import OrderedBackgroundTasks

__all__ = (
    "JOB",
    "TrackedRequest",
    "default_executor",
    "take_job",
    "tracked_request",
)

# The executors of what runs outside of any of our middlewares: one for each event loop.
_default_executors: weakref.WeakKeyDictionary[object, SerialExecutor] = weakref.WeakKeyDictionary()


# Where an entry of `.tasks` keeps the job that `add_task` returned, until it is awaited.
JOB = "_fifo_background_job"


class Stage(Enum):
    """How far a request is."""

    OPEN = "open"
    RESPONDED = "responded"
    ENDED = "ended"


class TrackedRequest:
    """A request, a websocket connection, or what is neither (no middleware: `outside`)."""

    __slots__ = (
        "__weakref__",
        "_interrupted",
        "_places",
        "_send",
        "_started",
        "_trailers",
        "executor",
        "handed_over",
        "scope",
        "settings",
        "stage",
    )

    def __init__(self, executor: SerialExecutor, settings: Settings, scope: Scope, send: Send | None) -> None:
        self.executor: SerialExecutor = executor
        self.settings: Settings = settings
        self.scope: Scope = scope
        self.stage: Stage = Stage.OPEN
        # what was awaited before the response had ended: the middleware waits for it
        self.handed_over: Batch | None = None
        self._places: dict[Hashable, Place] = {}
        self._send = send
        self._started = False
        self._trailers = False
        self._interrupted = False

    @classmethod
    def outside(cls, executor: SerialExecutor, settings: Settings) -> TrackedRequest:
        """For an object that is awaited where none of our middlewares is: no response to wait for."""
        request = cls(executor, settings, {"type": "no request"}, None)
        request.stage = Stage.RESPONDED
        return request

    def __str__(self) -> str:
        if self._send is None:
            return ""
        return f"{self.scope.get('method', self.scope['type'])} {self.scope.get('path', '')}"

    # -- the response -----------------------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        """The ASGI `send` of the request: passes the message on, and sees the response end."""
        assert self._send is not None
        try:
            await self._send(message)
        except BaseException:
            self._interrupted = True
            raise
        kind = message["type"]
        if kind in ("http.response.body", "http.response.zerocopysend"):
            if not message.get("more_body", False) and not self._trailers:
                self.responded()
        elif kind == "http.response.start":
            self._started = True
            self._trailers = message.get("trailers", False)
        elif kind == "http.response.pathsend" or (
            kind == "http.response.trailers" and not message.get("more_trailers", False)
        ):
            self.responded()

    def responded(self) -> None:
        """The response has ended."""
        if self.stage is not Stage.OPEN:
            return
        self.stage = Stage.RESPONDED
        line = self.executor.line
        if self.settings.order == "responded" and self._places:
            with line.lock:
                for place in self._places.values():
                    if line.state is LineState.OPEN:
                        line.take(place)

    # -- adding and awaiting ----------------------------------------------------------------------------

    def add(self, task: BackgroundTask, batch: Batch | None, key: Hashable = None) -> Job[Any]:
        """`add_task`: the request takes its place here, unless it has one or its settings say later.

        `batch` is that of the object if it has been awaited; while its jobs are not all done the new one
        joins them.
        """
        executor, line = self.executor, self.executor.line
        executor.check_caller()
        job: Job[Any] = Job(task, executor, None)
        with line.lock:
            ended = self.stage is Stage.ENDED if batch is None else not batch.left
            if ended:
                raise RuntimeError(
                    f"{job.name} was added after the tasks of {self} had ended, and would never run: "
                    "use `executor_of(request).submit_nowait(func, ...)` for it"
                )
            line.register(job)
            place = job.place = self._place(key)
            if batch is None:
                place.hold(job)
                return job
            batch.watch(job)
            if batch is self.handed_over and self.stage is not Stage.ENDED:
                place.hold(job)
                return job
            job.around = _call.around_here()
            place.context = place.context or copy_context()
            line.queue(place, job)
        executor.advance_soon(key)
        return job

    def line_up(
        self, tasks: Sequence[BackgroundTask], around: Around, owner: OrderedBackgroundTasks
    ) -> Batch:
        """An object is awaited: its tasks run when the response has ended, in the order of its list."""
        executor, line = self.executor, self.executor.line
        context = copy_context()
        places: list[Place] = []
        jobs: list[Job[Any]] = []
        with line.lock:
            ready = self.stage is not Stage.OPEN
            batch = Batch() if ready or self.handed_over is None else self.handed_over
            for task in tasks:
                job = self._job_of(task)
                place: Place = job.place  # type: ignore[assignment]
                job.around = around
                batch.watch(job)
                if ready:
                    line.queue(place, job)
                else:
                    jobs.append(job)
                if place not in places:
                    place.context = context
                    places.append(place)
            owner._awaited = self, batch
            if not ready:
                self.handed_over = batch
                for place in places:
                    place.hold_together([job for job in jobs if job.place is place])
        if ready:
            for place in places:
                executor.advance(place.key)
        return batch

    def _job_of(self, task: BackgroundTask) -> Job[Any]:
        """The job that `add_task` made for this entry if it still waits to be awaited, or a new one."""
        job = take_job(task)
        if job is not None and job.state is JobState.PENDING and not job.watchers:
            place = job.place
            if place is not None and place is self._places.get(place.key):
                return job
            if job.executor is not None:
                job = None
        else:
            job = None
        if job is None:
            job = Job(task, None, None)
        self.executor.line.register(job)
        job.executor = self.executor
        job.place = self._place(None)
        job.place.hold(job)
        return job

    def _place(self, key: Hashable) -> Place:
        place = self._places.get(key)
        if place is None or place.state is PlaceState.GONE:
            place = Place(key, self, self.settings.on_error == "skip_rest")
            self._places[key] = place
            if self.scope["type"] != "websocket" and (
                self.settings.order == "added" or self.stage is not Stage.OPEN
            ):
                self.executor.line.take(place)
        return place

    # -- the end ----------------------------------------------------------------------------------------

    def end(self, error: BaseException | None) -> None:
        """The app has returned, or raised `error`: nothing can be awaited in this request any more.

        What was handed over runs, what was not is dropped and named in the log.
        """
        executor, line = self.executor, self.executor.line
        dropped: list[Job[Any]] = []
        moved: list[Hashable] = []  # the lanes whose heads this may have changed
        with line.lock:  # a thread of the handler may still be adding
            cut_short = error is not None and (self._interrupted or self._started)
            interrupted = cut_short and self.stage is Stage.OPEN
            self.stage = Stage.ENDED
            for place in self._places.values():
                if not place.added:
                    continue
                moved.append(place.key)
                if self.scope["type"] == "websocket" and (error is None or self.owes_websocket_tasks(error)):
                    self._hand_over(place)
                closed = place.state is not PlaceState.IN_LINE and line.state is not LineState.OPEN
                for job in list(place.added):
                    if closed or not job.watchers:
                        place.release(job)
                        dropped.append(job)
                    else:
                        line.queue(place, job)
            waiters = line.drop(dropped)
        executor.wake(waiters)
        for key in moved:
            executor.advance(key)
        if dropped:
            logger.warning(
                "%s ended without running %s: %s", self, names(dropped), self._why(error, interrupted)
            )

    def _hand_over(self, place: Place) -> None:
        """What nobody has awaited is awaited by the middleware."""
        place.context = place.context or copy_context()
        for job in place.added or ():
            if not job.watchers:
                self.handed_over = self.handed_over or Batch()
                self.handed_over.watch(job)

    def owes_websocket_tasks(self, error: BaseException) -> bool:
        """Whether `error` is a normal end, after which the request waits for its tasks."""
        return self.scope["type"] == "websocket" and isinstance(error, WebSocketDisconnect)

    def _why(self, error: BaseException | None, interrupted: bool) -> str:
        if interrupted:
            return "response interrupted"
        if error is not None:
            return f"it raised {error!r}"
        return "its response did not carry them (it had a background of its own, or none was attached)"


def take_job(task: BackgroundTask) -> Job[Any] | None:
    """The job that `add_task` made for an entry of `.tasks`, once."""
    kept: dict[str, Any] | None = getattr(task, "__dict__", None)  # None: something else to await, with slots
    return None if kept is None else kept.pop(JOB, None)


def tracked_request() -> TrackedRequest | None:
    """The request in whose context the caller runs, if any."""
    found = current.get()
    return found if isinstance(found, TrackedRequest) else None


def default_executor() -> SerialExecutor:
    """The running loop's executor for what has no middleware."""
    loop = running_loop()
    executor = _default_executors.get(loop)
    if executor is None:
        executor = _default_executors[loop] = SerialExecutor()
        executor.check_caller()
    return executor
