"""One request: its response, its positions, and the end of both.

Decides when tasks are ready: their object has been awaited and the response has ended. Runs nothing. Any
thread of the handler may call `add`; all else is the event loop's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Hashable, Sequence
from contextlib import suppress
from enum import Enum
from functools import partial
from sys import exc_info
from typing import Any, cast

from starlette.background import BackgroundTask
from starlette.types import Message, Scope, Send
from starlette.websockets import WebSocketDisconnect

from fifo_background import _log
from fifo_background._core.job import Job
from fifo_background._core.lane import Lane, key_of
from fifo_background._core.naming import name_of
from fifo_background._core.plain import on_one_line
from fifo_background._core.position import GONE, IN_QUEUE, OUTSIDE, Position
from fifo_background._core.state import DROPPED, OPEN
from fifo_background._entries import Entry
from fifo_background._parts import take_in
from fifo_background._run.awaited_jobs import AwaitedJobs, HeldBack
from fifo_background._run.current import Origin, Party, alive, current, makers_of, origin_of
from fifo_background._run.runner import Runner
from fifo_background._settings import Settings
from fifo_background.exceptions import ExecutorClosed, safe_repr

__all__ = ("ENDED", "HANDLING", "RESPONDED", "SCOPE_KEY", "TrackedRequest", "leave_queue")

# Where the scope of a request has its `TrackedRequest`.
SCOPE_KEY = "fifo_background"

# The ASGI type of what is no request.
NO_REQUEST = "no request"


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
        "_became_response",
        "_joins_at_add",
        "_key",
        "_send",
        "_started",
        "_trailers",
        "awaits",
        "handed_over",
        "origin",
        "positions",
        "runner",
        "scope",
        "settings",
        "stage",
    )

    def __init__(self, runner: Runner, settings: Settings, scope: Scope, send: Send, made_by: Party) -> None:
        self.runner: Runner = runner
        self.settings: Settings = settings
        self.scope: Scope = scope
        self.stage: Stage = HANDLING
        self.positions: dict[Hashable, Position] = {}
        # jobs of all objects that were awaited before the response had ended: the middleware waits for them
        self.handed_over: HeldBack | None = None
        self.awaits: Sequence[Job[Any]] = ()  # its own jobs that it waits for
        self.origin: Origin = Origin(self)
        if made_by is not None:  # in this process
            self.origin.made_by = origin_of(made_by)
        self._send: Send = send
        self._started: bool = False  # the response, or the try to send it
        self._became_response: str = ""  # the class of the exception for which it was sent
        self._trailers: bool = False
        # whether it takes its position at the first `add_task`
        self._joins_at_add: bool = settings.order != "responded" and scope["type"] != "websocket"
        self._key: Hashable = None if settings.lane_key is None else ...  # not asked for yet

    @classmethod
    def outside(cls, runner: Runner, made_by: Party) -> TrackedRequest:
        """For an object that is awaited where none of our middlewares is: no response to wait for."""
        request = cls(runner, runner.settings, {"type": NO_REQUEST}, cast(Send, None), made_by)
        request.stage = RESPONDED
        return request

    def __str__(self) -> str:
        return self.label or "an object outside any request"

    @property
    def label(self) -> str | None:
        """Its method and path; None where it is no request."""
        scope = self.scope
        kind = scope["type"]
        if kind == NO_REQUEST:
            return None
        return on_one_line(f"{scope.get('method', kind)} {scope.get('path', '')}")

    @property
    def named(self) -> bool:
        return bool(self.scope["type"] != NO_REQUEST)

    @property
    def skips_rest(self) -> bool:
        return self.settings.rest_after_failure == "skip"

    @property
    def has_ended(self) -> bool:
        return self.stage is ENDED

    @property
    def holds_position(self) -> bool:
        """Whether it keeps what is ready behind it waiting."""
        return any(
            position.state is IN_QUEUE and position.held for position in tuple(self.positions.values())
        )

    @property
    def is_inside(self) -> bool:
        """Whether a task of its executor that runs, or a request that still holds a position, made it.

        Then it must not wait for its tasks: they stand behind what waits for it.
        """
        if self.runner.is_current():
            self.runner.scheduler.drain()  # positions that were just taken count
        for party in makers_of(self.origin):
            if isinstance(party, Job):
                if party._runner is self.runner:
                    return True
            elif party is not None and party.runner is self.runner and party.holds_position:
                return True
        return False

    @property
    def waits(self) -> bool:
        """Whether it may wait for its own tasks."""
        return self.origin.made_by is None or not self.is_inside

    def key(self) -> Hashable:
        """The key of the lane for tasks that name none; the user's function is asked once."""
        if self._key is ...:
            self._key = key_of(self.settings.key_for(self.scope))
        return self._key

    # -- the response ----------------------------------------------------------------------------------------

    def send(self, message: Message) -> Awaitable[None]:
        """The ASGI `send` of the request: passes the message on, and sees the response end."""
        kind = message["type"]
        if kind == "http.response.start":
            self._started = True
            self._trailers = message.get("trailers", False)
            if self.positions and (handled := exc_info()[0]) is not None:
                self._became_response = name_of(handled)
        elif kind == "http.response.body" or kind == "http.response.zerocopysend":
            if not (self._trailers or message.get("more_body", False)):
                return self._send_last(message)
        elif (kind == "http.response.pathsend" and not self._trailers) or (
            kind == "http.response.trailers" and not message.get("more_trailers", False)
        ):
            return self._send_last(message)
        return self._send(message)

    async def _send_last(self, message: Message) -> None:
        """Pass it on outside of the request's context.

        A server sets a timer or starts the next request of the connection here, which keep the context.
        """
        token = current.set(None)
        try:
            await self._send(message)
        finally:
            current.reset(token)
        if self.stage is HANDLING:
            self.stage = RESPONDED
            if self.settings.order == "responded" and self.positions:
                self._take_positions()

    def _take_positions(self) -> None:
        scheduler = self.runner.scheduler
        for position in tuple(self.positions.values()):
            if position.state is OUTSIDE and position.held:
                position.taken = scheduler.clock()
                scheduler.inbox.append(position)

    @property
    def unanswered(self) -> bool:
        """Whether an HTTP response can still be begun."""
        return not self._started and self.scope["type"] == "http"

    # -- arriving and adding ---------------------------------------------------------------------------------

    def arrive(self) -> None:
        """Take a position for tasks that the request may add; it is free again when the request has ended."""
        key, scheduler = self.key(), self.runner.scheduler
        if scheduler.is_open:
            position = self.positions[key] = Position(scheduler.lanes.of(key), self, [], self.origin)
            position.arriving = True
            position.taken = scheduler.clock()
            scheduler.inbox.append(position)

    def arrived(self) -> None:
        """From here on the request holds positions by its tasks alone."""
        for position in tuple(self.positions.values()):
            if position.arriving:
                self.runner.scheduler.give_up(position)

    def add(self, task: BackgroundTask, entry: Entry | None, joins: AwaitedJobs | None = None) -> Job[Any]:
        """`add_task`, from any thread: the request takes its position here, or its settings say later.

        `joins`: the jobs of an object that was awaited: the new one is one of them.
        """
        runner = self.runner
        options, key = self.settings.options, self._key
        if entry is not None:
            options, key = options.replace(**entry.changes), entry.key
        if key is ...:
            key = self.key()
        if self.stage is ENDED and joins is None:
            if not self._runs_its_websocket_tasks():
                raise self.too_late(task)
            joins = self.handed_over
        job = runner.make_job(task, options)
        if joins is not None:
            job._attached = False  # it was awaited: before it is accepted, as `end` drops what was not
            self.accept(job, key, True)
            self.join(job, joins)
            return job
        self.accept(job, key, True)
        if (self.stage is ENDED or runner.scheduler.status is not OPEN) and job._claim():
            # the request has ended, or the executor was closed, just now: the loop did not see the job
            self._forget(job)
            raise self.too_late(task) if self.stage is ENDED else ExecutorClosed(name_of(task))
        return job

    def join(self, job: Job[Any], awaited: AwaitedJobs) -> None:
        """One more job of those that were awaited: from any thread.

        Whoever waits for them clears `waited` before its last look at the list, and whoever hands them over
        sets `are_ready` before the look: either that look finds the job, or this one finds that it is over.

        Once the job is in the list, the loop alone writes `_attached`. If the wait ended, or went on, between
        the two looks here, the loop looks again. If it went on after both, it has found the job: `go_on`.
        """
        if job._position is not None:
            job._position.keep_context()
        waited = awaited.waited
        job._attached = waited and job._options.wait
        awaited.append(job)
        if awaited.waited is not waited:
            self.runner.backend.soon(partial(self.runner.waits.look_at, job, awaited, self))
        if awaited.are_ready:
            self.runner.look_at(job)
            self.runner.post(job)

    def accept(self, job: Job[Any], key: Hashable, refuse: bool) -> Position:
        """Give a job its position, which the request has, or takes now or later."""
        scheduler = self.runner.scheduler
        position = self.positions.get(key)
        if position is None:
            lane = scheduler.lanes.default if key is None else self._lane_of(key)
            # one atomic act: other threads may be adding
            position = self.positions.setdefault(key, Position(lane, self, [], self.origin))
        elif position.state is not IN_QUEUE and not position.lane.listed:
            position.lane = self._lane_of(key)  # that one was retired
        job._position = position
        now = scheduler.clock()
        try:
            scheduler.accept(job, position.lane, now, refuse)
        except BaseException:
            if job._claim():  # a KeyboardInterrupt: nobody knows the job
                self._forget(job)
            self.runner.pump_soon()  # one that waits for capacity may have been counted out for a refused one
            raise
        position.added.append(job)
        state = position.state  # after the append: the loop looks for added jobs after it has set GONE
        if state is not IN_QUEUE and (
            (self._joins_at_add and not position.number)
            or state is GONE
            or self.stage is not HANDLING  # one that was lost is taken again when the response has ended
        ):
            position.taken = now
            scheduler.inbox.append(position)  # the named moment
        self.runner.note_change()
        return position

    def _lane_of(self, key: Hashable) -> Lane:
        scheduler = self.runner.scheduler
        lane = scheduler.lanes.of(key)
        if not self._joins_at_add:
            scheduler.capacity.begin_counting(lane)
        return lane

    def forget(self, position: Position) -> None:
        """A position has left its queue for good after the request had ended: they part."""
        with suppress(Exception):  # the `__eq__` of a key: then they stay together
            if self.positions.get(position.lane.key) is position:
                self.positions.pop(position.lane.key, None)

    def _runs_its_websocket_tasks(self) -> bool:
        """Whether the tasks of a websocket, which only the middleware awaits, run now."""
        return self.scope["type"] == "websocket" and any(not job.done() for job in self.handed_over or ())

    def add_awaited(self, task: BackgroundTask, entry: Entry | None, jobs: AwaitedJobs) -> Job[Any] | None:
        """`add_task` on an object that was awaited here, with these jobs. None if all of them have ended."""
        if jobs.are_ready and all(job.done() for job in reversed(jobs)):  # the last one is mostly not
            return None
        return self.add(task, entry, jobs)

    def hold_back(self, jobs: Sequence[Job[Any]], at: int | None = None) -> HeldBack:
        """Keep jobs that were awaited before the response has ended."""
        held = self.handed_over
        if held is None:
            held = self.handed_over = HeldBack()
        held.put(jobs, self.waits, at)
        return held

    def _forget(self, job: Job[Any]) -> None:
        job._end(DROPPED)
        self.runner.post(job)

    def too_late(self, task: BackgroundTask) -> RuntimeError:
        """The error for a task that would never run."""
        return RuntimeError(
            f"{name_of(task)} was added after the tasks of {self} had ended, and would never run: "
            "use `executor_of(request).submit_nowait(func, ...)` for it"
        )

    # -- the end ---------------------------------------------------------------------------------------------

    def end(self, error: BaseException | None) -> None:
        """The app has returned, or raised `error`: nothing can be awaited in this request anymore.

        What was handed over runs; what was not is dropped, and named in the log.
        """
        interrupted = error is not None and self._started and self.stage is HANDLING
        self.stage = ENDED  # before the look at what was added: see `add`
        if self.origin.made_by is not None:
            self.origin.made_by = alive(self.origin.made_by)
        if self.handed_over is not None:
            self.handed_over.are_ready = True  # before the look at it, as above: see `join`
            if error is not None and not self.ends_normally(error):
                self.runner.waits.leave(self.handed_over, self)
        for position in tuple(self.positions.values()):
            if position.added or position.state is not GONE:
                self._end_positions(error, interrupted)
                break
        else:
            self.positions = {}  # leaves the collector no cycle of them and the request

    def _end_positions(self, error: BaseException | None, interrupted: bool) -> None:
        """Give up what waits for nothing, and part from the positions that are gone; see `forget`."""
        if any(one.added or one.arriving for one in tuple(self.positions.values())):
            self._give_up_positions(error, interrupted)
        with suppress(Exception):  # the `__eq__` of a key
            self.positions = {key: one for key, one in self.positions.items() if one.state is not GONE}

    def _give_up_positions(self, error: BaseException | None, interrupted: bool) -> None:
        runner = self.runner
        self.arrived()
        positions = tuple(self.positions.values())
        added = [job for position in positions for job in position.pending if job._attached is None]
        dropped: list[Job[Any]] = []
        if self.scope["type"] == "websocket" and (error is None or self.ends_normally(error)):
            for job in added:  # only the middleware awaits its objects
                take_in(job._task, job)
            self.hold_back([job for job in added if job._position is not None])
        else:
            dropped = [job for job in added if job._claim()]
        facts = _log.facts_of(dropped, self.settings.log_arguments)
        for job in dropped:
            self._forget(job)
        ready = [] if self.handed_over is None else self.handed_over.take()
        if ready:
            runner.hand_over((), ready)
        else:
            runner.pump()
        if dropped:
            _log.dropped(self, dropped, facts, self._why(error, interrupted))

    def ends_normally(self, error: BaseException) -> bool:
        """Whether `error` is a normal end, after which the request's tasks run."""
        return self.scope["type"] == "websocket" and issubclass(type(error), WebSocketDisconnect)

    def _why(self, error: BaseException | None, interrupted: bool) -> str:
        if interrupted:
            return "response interrupted"
        if error is not None:
            return f"it raised {safe_repr(error)}"
        around = exc_info()[0]  # what somebody outside of the app handles is not the reason
        return _log.not_carried(self._became_response if name_of(around) != self._became_response else "")


def leave_queue(scope: Scope) -> None:
    """The request of that scope adds no tasks: nobody waits for the position that it took as it arrived."""
    request = scope.get(SCOPE_KEY)
    if isinstance(request, TrackedRequest) and request.positions:
        request.arrived()
        request.runner.pump_soon()
