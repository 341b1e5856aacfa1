"""The only file that runs a task.

Invariants:

1. A lane has at most one runner, and a runner runs one job at a time: what is behind starts after it ended.
2. A runner leaves its lane only when its thread, if it has one, has left the task's function.
3. The next job is the first one of the lane's head; a place is appended to a line once, at a named moment.
4. A job's state changes under the lock, in one call, on the loop or in the thread that ran it; no code of
   a user's runs under the lock, and nothing is awaited.
5. Runners and timers start on the loop only (`_advance`); a lane without work has neither.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable, Hashable, Iterable
from contextvars import Context, ContextVar, copy_context
from enum import Enum
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

import anyio
import anyio.from_thread
import anyio.to_thread
from starlette.background import BackgroundTask

from fifo_background._call import call, drive, is_starlettes, run_here, runs_on_loop
from fifo_background._job import Batch, Job, JobState, name_of
from fifo_background._lane import Lane, Place, PlaceState
from fifo_background._loop import EventLoop, Handle, Waiter, enter_thread, face_of, running_loop
from fifo_background._settings import Settings
from fifo_background.exceptions import ExecutorClosed

if TYPE_CHECKING:
    from typing_extensions import Self

    from fifo_background._request import TrackedRequest

__all__ = ("SerialExecutor", "current", "logger")

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("fifo_background")

# The request that is handled, or the job that runs, in this context.
current: ContextVar[TrackedRequest | Job[Any] | None] = ContextVar("fifo_background", default=None)

# How many runners that end without suspending start one after the other before the loop gets its turn.
BURST = 32


class _Status(Enum):
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class _Runner:
    """Runs a lane's jobs: the consecutive async ones of `place`, or in a thread all consecutive sync ones."""

    __slots__ = ("handle", "place")

    def __init__(self, place: Place | None) -> None:
        self.place = place
        self.handle: Handle | None = None

    def fits(self, place: Place) -> bool:
        job = place.queued[place.next]
        return self.place is place if runs_on_loop(job.task) else self.place is None


class SerialExecutor:
    """Runs tasks one after the other, first in, first out, in one event loop.

    `async with SerialExecutor() as executor:` drains it at the end of the block.

    `hold` (seconds, default 5.0): how long a request that does not respond may keep back ready tasks.
    `drain_timeout` (seconds, default 30.0): how long the end of the block waits for what is in line.

    It belongs to the event loop in which it is used first. Its methods may be called from that loop and
    from anyio's worker threads of that loop; other threads get a RuntimeError.
    """

    def __init__(self, *, hold: float = 5.0, drain_timeout: float = 30.0) -> None:
        settings = Settings(hold=hold, drain_timeout=drain_timeout)
        self._hold = settings.hold
        self._drain_timeout = settings.drain_timeout
        self._status = _Status.OPEN
        self._lanes: dict[Hashable, Lane] = {}
        self._lock = threading.Lock()
        self._bound: EventLoop | None = None
        self._known_threads = threading.local()
        self._threads: anyio.CapacityLimiter | None = None
        self._unfinished = 0
        self._joiners: list[Waiter] = []
        self._to_wake: list[Waiter] = []
        self._waking = False

    # -- what users call ------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self.check_caller()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    @overload
    def submit_nowait(
        self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Job[T]: ...

    @overload
    def submit_nowait(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Job[T]: ...

    def submit_nowait(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Job[Any]:
        """Put `func(*args, **kwargs)` in line and return its `Job`. It does not start before this returns.

        The task sees a copy of the caller's context. Raises TypeError if `func` cannot be called and
        `ExecutorClosed` after the end.
        """
        check_callable("submit_nowait", func)
        self.check_caller()
        place = Place(None, None)
        place.context = copy_context()
        job: Job[Any] = Job(BackgroundTask(func, *args, **kwargs), self, place)
        with self._lock:
            self.register(job)
            self.queue(place, (job,))
        self.advance_soon(place.key)
        return job

    @overload
    async def submit(
        self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Job[T]: ...

    @overload
    async def submit(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Job[T]: ...

    async def submit(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Job[Any]:
        """As `submit_nowait`; it lets other tasks run before it returns, in line already."""
        job: Job[Any] = self.submit_nowait(func, *args, **kwargs)
        await anyio.sleep(0)
        return job

    async def join(self) -> None:
        """Wait until every task that was added or submitted has ended.

        Tasks that requests have added count from `add_task` on.
        """
        self.check_caller()
        while self._unfinished:
            waiter = self._bound_loop.waiter()
            self._joiners.append(waiter)
            await waiter.wait()

    async def wait_for(self, job: Job[Any]) -> None:
        """Wait until `job` has ended, however it ends."""
        self.check_caller()
        batch = Batch()
        with self._lock:
            if not job.state.ended:
                batch.watch(job)
        try:
            await self.wait(batch)
        finally:
            with self._lock:
                job.watchers = tuple(watcher for watcher in job.watchers if watcher is not batch)

    async def aclose(self) -> None:
        """Refuse new work, give up held places, run what is in line for at most `drain_timeout` seconds.

        What is left then is cancelled, or dropped, and logged by name.
        """
        self.check_caller()
        if self._status is not _Status.OPEN:
            return
        held: list[Job[Any]] = []
        with self._lock:
            self._status = _Status.CLOSING
            lanes = list(self._lanes.values())
            for lane in lanes:
                for place in lane.line:
                    held += place.added or ()
                    place.added = None
            waiters = self.drop(held)
        self.wake(waiters)
        for lane in lanes:
            self._advance(lane)
        with anyio.move_on_after(self._drain_timeout, shield=True):
            await self.join()
        left = self._cancel_all()
        self._status = _Status.CLOSED
        for what, jobs in (("gave up", held), ("did not run", left)):
            if jobs:
                logger.warning("the executor was closed and %s %s", what, names(jobs))

    def _cancel_all(self) -> list[Job[Any]]:
        left: list[Job[Any]] = []
        with self._lock:
            lanes = list(self._lanes.values())
            for lane in lanes:
                for place in lane.line:
                    left += place.queued[place.next :]
                    place.queued.clear()
                    place.next = 0
                lane.queued = 0
            waiters = self.drop(left)
        for lane in lanes:
            if isinstance(lane.runner, _Runner) and lane.runner.handle is not None:
                lane.runner.handle.cancel()
        self.wake(waiters)
        return left

    def __repr__(self) -> str:
        running = sum(lane.runner is not None for lane in self._lanes.values())
        return f"<SerialExecutor {self._status.value}, {self._unfinished} unfinished, {running} running>"

    # -- who may call ---------------------------------------------------------------------------------

    def check_caller(self) -> None:
        """Raise RuntimeError unless the caller is in the executor's loop, or in a worker thread of it."""
        loop = self._bound
        if loop is None:
            self._bound = in_loop_of_caller(lambda: face_of(running_loop()))
        elif not loop.is_current() and not getattr(self._known_threads, "mine", False):
            if not loop.is_(in_loop_of_caller(running_loop)):
                raise RuntimeError("this executor belongs to another event loop")
            self._known_threads.mine = True

    @property
    def _bound_loop(self) -> EventLoop:
        assert self._bound is not None
        return self._bound

    # -- state: called under the lock, never awaits ----------------------------------------------------

    @property
    def lock(self) -> threading.Lock:
        """Held by whoever calls a method of this section."""
        return self._lock

    def register(self, *jobs: Job[Any]) -> None:
        """Count jobs in: from here on they are owed an end."""
        if self._status is not _Status.OPEN:
            raise ExecutorClosed(jobs[0].name)
        self._unfinished += len(jobs)

    def take(self, place: Place) -> None:
        """Append a place to the line of its lane."""
        lane = self._lanes.get(place.key)
        if lane is None:
            lane = self._lanes[place.key] = Lane(place.key)
        lane.append(place, self._bound_loop.time())

    def queue(self, place: Place, jobs: Iterable[Job[Any]]) -> None:
        """Make jobs of a place ready to run; the place is taken if it is not in line."""
        before = len(place.queued)
        for job in jobs:
            job.move(JobState.QUEUED)
            if place.added is not None:
                place.added.pop(job, None)
            place.queued.append(job)
        if place.state is PlaceState.IN_LINE:
            self._lanes[place.key].queued += len(place.queued) - before
        else:
            self.take(place)

    def drop(self, jobs: Iterable[Job[Any]]) -> list[Waiter]:
        """End jobs that will not run; returns whom to wake."""
        waiters: list[Waiter] = []
        for job in jobs:
            waiters += self._end(job, JobState.DROPPED)
        return waiters

    def _end(self, job: Job[Any], state: JobState, outcome: Any = None) -> list[Waiter]:
        job.move(state, outcome)
        self._unfinished -= 1
        waiters = [watcher.waiter for watcher in job.watchers if watcher.saw_end_of(job)]
        if not self._unfinished and self._joiners:
            waiters += self._joiners
            self._joiners = []
        return waiters  # type: ignore[return-value]

    def _take_job(self, lane: Lane, runner: _Runner) -> Job[Any] | None:
        """The next job, started, if it is one for this runner; otherwise the runner has left the lane."""
        place = lane.head()
        if place is None or not place.ready or not runner.fits(place):
            lane.runner = None
            return None
        job = place.pop()
        lane.queued -= 1
        job.move(JobState.RUNNING)
        return job

    def _next_place(self, lane: Lane, lost: list[Place]) -> Place | None:
        """The head of the lane if it is ready; a head that has held the line too long loses its place."""
        while (place := lane.head()) is not None:
            if place.ready:
                if lane.timer is not None:
                    lane.timer.cancel()
                    lane.timer = None
                return place
            if not lane.queued:
                return None
            wait = place.taken + self._hold - self._bound_loop.time()
            if wait > 0:
                if lane.timer is None:
                    lane.timer = self._bound_loop.later(wait, partial(self._ring, lane))
                return None
            lost.append(lane.lose_head())
        if lane.runner is None and self._lanes.get(lane.key) is lane:
            del self._lanes[lane.key]
        return None

    # -- running ----------------------------------------------------------------------------------------

    def advance(self, key: Hashable) -> None:
        """Start what can start in a lane. On the loop only."""
        lane = self._lanes.get(key)
        if lane is not None:
            self._advance(lane)

    def advance_soon(self, key: Hashable) -> None:
        """Start what can start in a lane, in the loop's next turn. From any thread that may call."""
        lane = self._lanes.get(key)
        if lane is not None and lane.runner is None:
            self._bound_loop.soon(self.advance, key)

    def _ring(self, lane: Lane) -> None:
        lane.timer = None
        self._advance(lane)

    def _advance(self, lane: Lane) -> None:
        lost: list[Place] = []
        for _ in range(BURST):
            with self._lock:
                place = self._next_place(lane, lost) if lane.runner is None else None
                if place is not None:
                    job = place.queued[place.next]
                    runner = _Runner(place if runs_on_loop(job.task) else None)
                    lane.runner = runner
            if place is None or not self._start(lane, runner):
                break
        else:
            self._bound_loop.soon(self._advance, lane)
        for place in lost:
            logger.warning(
                "%s lost its place: it kept ready tasks waiting and had not ended its response %g s after "
                "it took the place; %s run when it has",
                place.owner,
                self._hold,
                names(place.added or ()),
            )

    def _start(self, lane: Lane, runner: _Runner) -> bool:
        """Start a runner. True if it ended at once."""
        place = runner.place
        if place is None:
            run, context = partial(self._run_thread, lane, runner), Context()
        else:
            run, context = partial(self._run_async, lane, runner), place.context or copy_context()
        runner.handle = self._bound_loop.start(run, context, partial(self._left, lane, runner))
        if runner.handle is not None:
            return False
        self._cut_off(lane, runner)
        return True

    def _left(self, lane: Lane, runner: _Runner) -> None:
        """The runner's task is over, in its own time or because somebody cancelled it."""
        self._cut_off(lane, runner)
        self._advance(lane)

    def _cut_off(self, lane: Lane, runner: _Runner) -> None:
        with self._lock:
            if lane.runner is runner:
                lane.runner = None

    async def _run_async(self, lane: Lane, runner: _Runner) -> None:
        """Run the consecutive async jobs of one place, in the context they share."""
        with self._lock:
            job = self._take_job(lane, runner)
        while job is not None:
            current.set(job)
            try:
                if job.around is None and is_starlettes(type(job.task).__call__):
                    outcome = await job.task.func(*job.task.args, **job.task.kwargs)
                else:
                    outcome = await call(job.task, self.run_in_thread, job.around)
            except BaseException as error:
                if self._is_cancellation(error):
                    self.wake(self._ended(job, JobState.CANCELLED))
                    raise
                self.wake(self._ended(job, JobState.FAILED, error))
            else:
                self.wake(self._ended(job, JobState.SUCCEEDED, outcome))
            with self._lock:
                job = self._take_job(lane, runner)
        if runner.place is not None and runner.place.ready:
            runner.place.context = copy_context()  # what the async tasks set, the next ones see

    async def _run_thread(self, lane: Lane, runner: _Runner) -> None:
        try:
            await self.run_in_thread(partial(self._work, lane, runner))
        finally:
            self._deliver()

    def _work(self, lane: Lane, runner: _Runner) -> None:
        """In a thread: run the consecutive sync jobs of the lane, whosever they are."""
        with self._lock:
            job = self._take_job(lane, runner)
        while job is not None:
            context = job.place.context.copy()  # type: ignore[union-attr]
            try:
                outcome = context.run(self._call_sync, job)
            except BaseException as error:
                cancelled = self._is_cancellation(error)
                state = JobState.CANCELLED if cancelled else JobState.FAILED
                waiters = self._ended(job, state, None if cancelled else error)
            else:
                waiters = self._ended(job, JobState.SUCCEEDED, outcome)
            with self._lock:
                job = self._take_job(lane, runner)
                self._to_wake += waiters
                # the end of this thread wakes the loop anyway
                if waiters and job is not None and not self._waking:
                    self._waking = self._bound_loop.soon(self._deliver)

    @staticmethod
    def _call_sync(job: Job[Any]) -> Any:
        enter_thread()
        current.set(job)
        if job.around is None:
            return job.task.func(*job.task.args, **job.task.kwargs)
        return drive(call(job.task, run_here, job.around))

    def _ended(self, job: Job[Any], state: JobState, outcome: Any = None) -> list[Waiter]:
        """Record how a job ended, log it if it failed, and return whom to wake."""
        skipped: list[Job[Any]] = []
        with self._lock:
            waiters = self._end(job, state, outcome)
            place = job.place
            if state is JobState.FAILED and place is not None and place.skip_rest and place.ready:
                skipped = place.queued[place.next :]
                place.queued.clear()
                place.next = 0
                self._lanes[place.key].queued -= len(skipped)
                for rest in skipped:
                    waiters += self._end(rest, JobState.SKIPPED)
        if state is JobState.FAILED:
            after = f"; skipped after it: {names(skipped)}" if skipped else ""
            logger.error("%s failed%s%s", job.name, of_request(place), after, exc_info=outcome)
        elif state is JobState.CANCELLED:
            logger.warning("%s was cancelled%s", job.name, of_request(place))
        return waiters

    def _is_cancellation(self, error: BaseException) -> bool:
        if isinstance(error, (self._bound_loop.cancelled, GeneratorExit)):
            return True
        parts: Any = getattr(error, "exceptions", None)  # a group of nothing but cancellations
        return isinstance(parts, tuple) and all(map(self._is_cancellation, parts)) and bool(parts)

    async def run_inline(self, job: Job[Any]) -> None:
        """Run a job inside the running one that awaits it, in that one's place."""
        with self._lock:
            job.executor = self
            self._unfinished += 1
            job.move(JobState.RUNNING)
        try:
            outcome = await call(job.task, self.run_in_thread, job.around)
        except BaseException as error:
            if self._is_cancellation(error):
                self.wake(self._ended(job, JobState.CANCELLED))
            else:
                self.wake(self._ended(job, JobState.FAILED, error))
            raise
        self.wake(self._ended(job, JobState.SUCCEEDED, outcome))

    async def run_in_thread(self, function: Callable[[], T]) -> T:
        """`anyio.to_thread.run_sync` with tokens of our own, and no cancel ends it before its thread has left.

        A native cancel makes anyio's return while the thread still runs.
        """
        if self._threads is None:
            self._threads = anyio.CapacityLimiter(float("inf"))
        stay = _ThreadStay(function, self._bound_loop)
        try:
            return await anyio.to_thread.run_sync(stay.run, limiter=self._threads)
        except BaseException:
            with anyio.CancelScope(shield=True):
                while (waiter := stay.abandon()) is not None:
                    try:
                        await waiter.wait()
                    except self._bound_loop.cancelled:
                        pass  # raised again below, as the first one
            raise

    # -- waking -----------------------------------------------------------------------------------------

    async def wait(self, batch: Batch) -> None:
        """Wait for the jobs of a batch; a cancelled wait leaves them as they are."""
        with self._lock:
            if batch.left:
                batch.waiter = self._bound_loop.waiter()
        if batch.waiter is not None:
            await batch.waiter.wait()

    def wake(self, waiters: list[Waiter]) -> None:
        """Wake on the loop."""
        for waiter in waiters:
            waiter.set()

    def _deliver(self) -> None:
        with self._lock:
            waiters, self._to_wake = self._to_wake, []
            self._waking = False
        self.wake(waiters)


class _ThreadStay:
    """One function's stay in a worker thread, and who has to know when it is over."""

    def __init__(self, function: Callable[[], Any], loop: EventLoop) -> None:
        self._function = function
        self._loop = loop
        self._lock = threading.Lock()
        self._state = "asked"  # -> "inside" -> "over"
        self._waiter: Waiter | None = None

    def run(self) -> Any:
        with self._lock:
            if self._state == "over":  # abandoned before it began
                return None
            self._state = "inside"
        try:
            return self._function()
        finally:
            with self._lock:
                self._state = "over"
                waiter = self._waiter
            if waiter is not None:
                self._loop.soon(waiter.set)

    def abandon(self) -> Waiter | None:
        """Nobody waits any more. None if the thread is not inside, otherwise a waiter for its leaving."""
        with self._lock:
            if self._state != "inside":
                self._state = "over"
                return None
            self._waiter = self._loop.waiter()
            return self._waiter


def in_loop_of_caller(function: Callable[[], T]) -> T:
    """Call in the running event loop, or in the one that owns this worker thread.

    Raises RuntimeError in any other thread.
    """
    try:
        running_loop()
    except RuntimeError:
        pass
    else:
        return function()
    try:
        return anyio.from_thread.run_sync(function)
    except RuntimeError:
        raise RuntimeError(
            "ordered background tasks can be added from their event loop and from anyio worker threads "
            "(def endpoints, anyio.to_thread.run_sync). From another thread, hand the call to the loop: "
            "loop.call_soon_threadsafe(executor.submit_nowait, func)"
        ) from None


def check_callable(where: str, func: object) -> None:
    if not callable(func):
        raise TypeError(
            f"{where} takes a function and then its arguments, got {func!r}: "
            f"write {where}(func, argument), not {where}(func(argument))"
        )


def of_request(place: Place | None) -> str:
    return f" ({place.owner})" if place is not None and place.owner is not None else ""


def names(jobs: Iterable[Job[Any]]) -> str:
    """How a log record lists tasks: their number, and their names with how often each."""
    counted: dict[str, int] = {}
    for job in jobs:
        counted[name_of(job.task)] = counted.get(name_of(job.task), 0) + 1  # type: ignore[arg-type]
    total = sum(counted.values())
    listed = ", ".join(name if n == 1 else f"{name} x{n}" for name, n in counted.items())
    return f"{total} task{'' if total == 1 else 's'}: {listed}"
