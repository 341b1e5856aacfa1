"""What users see of an executor: submitting, lanes and what can be done to them, closing."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Hashable
from contextvars import copy_context
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

import anyio
import anyio.lowlevel

from fifo_background._call import make_task
from fifo_background._job import CANCELLED, QUEUED, Job
from fifo_background._lane import Place
from fifo_background._line import CLOSED
from fifo_background._log import logger, names
from fifo_background._operations import clear_lane, close, retry_head, skip_head
from fifo_background._settings import AfterFailure, Keep, Options, Settings, check_key
from fifo_background._waiting import WaitingExecutor
from fifo_background.exceptions import WouldDeadlock, lane_name

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ("ExecutorLane", "SerialExecutor", "Submitter", "not_callable")

# Seconds that the tasks which `aclose` cancels have to clean up.
CLEAN_UP = 1.0

P = ParamSpec("P")
T = TypeVar("T")


class Submitter:
    """Puts tasks into one lane of an executor: `executor.options(timeout=2.0).submit_nowait(func)`."""

    def __init__(self, executor: SerialExecutor, key: Hashable, options: Options) -> None:
        self._executor = executor
        self._key = key
        self._options = options

    def options(self, *, timeout: float | None = None) -> Submitter:
        """For tasks with a `timeout` (seconds) other than the app's. Raises ValueError if it cannot be."""
        return Submitter(self._executor, self._key, self._options.but(timeout=timeout))

    @overload
    def submit_nowait(
        self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Job[T]: ...

    @overload
    def submit_nowait(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Job[T]: ...

    def submit_nowait(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Job[Any]:
        """Put `func(*args, **kwargs)` in line and return its `Job`. It does not start before this returns.

        The task sees a copy of the caller's context. Raises TypeError if `func` cannot be called,
        `QueueFull` if `max_pending` tasks wait already, and `ExecutorClosed` after the end.
        """
        executor = self._executor
        job, place = self._prepare(func, args, kwargs)
        line = executor.line
        with line.lock:
            line.add(job, place, True)
            line.queue(place, [job])
        executor.settle_soon()
        return job

    @overload
    async def submit(
        self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Job[T]: ...

    @overload
    async def submit(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Job[T]: ...

    async def submit(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Job[Any]:
        """As `submit_nowait`, but waits for room where that raises `QueueFull`: first come, first served.

        It lets other tasks run before it returns. If it is cancelled, the task does not run, unless it has
        begun. Raises `WouldDeadlock` where there cannot be room before the task or request that waits has
        ended.
        """
        job, place = self._prepare(func, args, kwargs)
        await anyio.lowlevel.checkpoint_if_cancelled()
        await self._executor.wait_for_room(job, place)
        self._executor.settle_soon()
        try:
            await anyio.lowlevel.cancel_shielded_checkpoint()
        except BaseException:  # cancelled natively, which no shield stops
            if job.state is QUEUED:
                job.cancel()
            raise
        return job

    def _prepare(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Job[Any], Place]:
        if not callable(func):
            raise not_callable("submit_nowait", func)
        self._executor.check_caller()
        place = Place(self._key, None)
        place.context = copy_context()
        return Job(make_task(func, args, kwargs), self._executor, self._options), place


class ExecutorLane(Submitter):
    """One lane of an executor: `executor.lane(key)`. Nothing is kept for it while it is idle.

    May be used from the event loop and from anyio worker threads, as the executor.
    """

    @property
    def key(self) -> Hashable:
        return self._key

    def pause(self) -> None:
        """Start no task of the lane until `resume`; a running one goes on to its end."""
        executor = self._executor
        executor.check_caller()
        with executor.line.lock:
            executor.line.lane(self._key).paused = True

    def resume(self) -> None:
        """Undo `pause`."""
        executor, line = self._executor, self._executor.line
        executor.check_caller()
        with line.lock:
            lane = line.lanes.get(self._key)
            if lane is not None:
                lane.paused = False
                line.wants_turn(lane)
        executor.settle_soon()

    def peek(self) -> Job[Any] | None:
        """The task that is next; of a stopped lane, the failed one. None if nothing waits."""
        executor, line = self._executor, self._executor.line
        executor.check_caller()
        with line.lock:
            lane = line.lanes.get(self._key)
            return None if lane is None else lane.peek()

    def skip_head(self) -> Job[Any] | None:
        """Leave out, and return, what `peek` returns: it ends `SKIPPED`, or the stopped lane goes on."""
        executor, line = self._executor, self._executor.line
        executor.check_caller()
        with line.lock:
            lane = line.lanes.get(self._key)
            job = None if lane is None else skip_head(line, lane)
        executor.settle_soon()
        return job

    def retry_head(self) -> Job[Any]:
        """Run the failed task of a stopped lane again, before all others; returns its new `Job`.

        With `keep="latest"` it is superseded if a newer one waits. Raises RuntimeError if the lane has not
        stopped.
        """
        executor, line = self._executor, self._executor.line
        executor.check_caller()
        with line.lock:
            lane = line.lanes.get(self._key)
            job = None if lane is None else retry_head(line, lane)
        if job is None:
            raise RuntimeError(
                f"{lane_name(self._key)} has not stopped, there is nothing to retry: `retry_head` is for "
                'lanes with after_failure="stop"'
            )
        executor.settle_soon()
        return job

    def clear(self) -> list[Job[Any]]:
        """Cancel, and return, all tasks that wait in the lane; a stopped lane goes on."""
        executor, line = self._executor, self._executor.line
        executor.check_caller()
        with line.lock:
            lane = line.lanes.get(self._key)
            jobs = [] if lane is None else clear_lane(line, lane, CANCELLED)
        executor.settle_soon()
        if jobs:
            logger.warning("%s was cleared: cancelled %s", lane_name(self._key), names(jobs))
        return jobs

    def __repr__(self) -> str:
        return f"<ExecutorLane {self._key!r}>"


class SerialExecutor(Submitter, WaitingExecutor):
    """Runs tasks one after the other, first in, first out, in one event loop.

    `async with SerialExecutor() as executor:` drains it at the end of the block.

    `max_lanes_running` (default 16): how many lanes have a running task at once, at most; they take turns.
    `max_pending` (default None, no limit): how many tasks may wait, in all lanes together.
    `timeout` (seconds, default None): after it an async task is cancelled and fails with TimeoutError, and
    a sync one, which cannot be stopped, is named in the log.
    `after_failure` (default "next"): with "stop" a lane stops when a task of it fails.
    `drain_timeout` (seconds, default 30.0): how long the end of the block waits for what is in line.

    It belongs to the event loop in which it is used first. Its methods may be called from that loop and
    from anyio's worker threads of that loop; other threads get a RuntimeError. Raises ValueError or
    TypeError for a setting that cannot be.
    """

    def __init__(
        self,
        *,
        max_lanes_running: int = 16,
        max_pending: int | None = None,
        timeout: float | None = None,
        after_failure: AfterFailure = "next",
        drain_timeout: float = 30.0,
    ) -> None:
        self._set_up(
            Settings(
                max_lanes_running=max_lanes_running,
                max_pending=max_pending,
                timeout=timeout,
                after_failure=after_failure,
                drain_timeout=drain_timeout,
            )
        )

    def _set_up(self, settings: Settings) -> None:
        WaitingExecutor.__init__(self, settings)
        Submitter.__init__(self, self, None, settings.options)
        self._closing = False  # somebody is in `aclose`

    @classmethod
    def of_app(cls, settings: Settings) -> SerialExecutor:
        """The executor of an app with these settings."""
        executor = cls.__new__(cls)
        executor._set_up(settings)
        return executor

    def lane(
        self,
        key: Hashable,
        *,
        keep: Keep | None = None,
        max_pending: int | None = None,
        after_failure: AfterFailure | None = None,
    ) -> ExecutorLane:
        """The lane of a hashable key; None is the default one. The options are those of what is added by it.

        `keep="latest"`: a task replaces a waiting older one of the same function, which ends as
        `SUPERSEDED`. `max_pending`: how many tasks may wait in the lane. `after_failure="stop"`: the lane
        stops when a task that was added like this fails. Raises TypeError for a key that is not hashable,
        ValueError for an impossible option.
        """
        check_key(key)
        options = self.settings.options.but(keep=keep, max_pending=max_pending, after_failure=after_failure)
        return ExecutorLane(self, key, options)

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

    async def aclose(self) -> None:
        """Refuse new work, give up held places, run what is in line for at most `drain_timeout` seconds.

        What stands behind a paused or stopped head is dropped. What is left after that time is dropped, or
        cancelled and given one second to clean up. All of this is logged by name. Raises `WouldDeadlock`
        inside a task of this executor. If it is being closed already, this waits for that.
        """
        self.check_caller()
        line = self.line
        party = self._party()
        if isinstance(party, Job):
            raise WouldDeadlock(party.name, "it is one of the tasks that `aclose` waits for")
        while self._closing:
            await self._until(lambda: not self._closing, math.inf)
        if line.state is CLOSED:
            return
        self._closing = True
        try:
            await self._drain_and_stop()
        finally:
            self._closing = False
            with line.lock:
                line.woken += line.drainers
                line.drainers = []
            self.settle()

    async def _drain_and_stop(self) -> None:
        line = self.line
        with line.lock:
            dropped = close(line)
        if dropped:
            logger.warning(
                "the executor was closed, requests gave up their places, paused and stopped lanes what they "
                "kept: dropped %s",
                names(dropped),
            )
        self.settle()
        await self._until(lambda: not line.ready and not self.tasks_alive, self.settings.drain_timeout)
        cancelled = self.stop("the executor was closed")
        # before the app's own shutdown code closes what they clean up with
        await self._until(lambda: all(runner.lane is None for runner in cancelled), CLEAN_UP)
        left = [runner.job for runner in cancelled if runner.lane is not None]
        if left:
            logger.warning("the executor was closed and left behind, cancelled but not over, %s", names(left))

    async def _until(self, holds: Callable[[], bool], limit: float) -> None:
        """Wait until `holds`, which a runner's end or that of closing makes true, for `limit` seconds."""
        line = self.line
        with anyio.move_on_after(limit, shield=True):
            while not holds():
                waiter = self._loop.waiter()
                with line.lock:
                    line.drainers.append(waiter)
                try:
                    await waiter
                except BaseException:
                    with line.lock:
                        line.drainers = [other for other in line.drainers if other is not waiter]
                    raise

    @property
    def is_open(self) -> bool:
        """Whether new work is taken: True until `aclose`, or the end of the `async with` block."""
        return self.line.is_open

    def __repr__(self) -> str:
        line = self.line
        running = sum(1 for _ in line.runners)
        return f"<SerialExecutor {line.state.value}, {line.unfinished} unfinished, {running} running>"


def not_callable(where: str, func: object) -> TypeError:
    """The error for a task that is not one, which says what to write."""
    return TypeError(
        f"{where} takes a function and then its arguments, got {func!r}: "
        f"write {where}(func, argument), not {where}(func(argument))"
    )
