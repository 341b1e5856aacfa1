"""Submits tasks to one lane of an executor, and what can be done to that lane."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from contextvars import copy_context
from typing import Any, ParamSpec, TypeVar, overload

import anyio.lowlevel
from starlette.background import BackgroundTask

from fifo_background import _log
from fifo_background._core import operations
from fifo_background._core.job import Job
from fifo_background._core.lane import Lane, plain_key
from fifo_background._core.lane_picture import LaneRecord
from fifo_background._core.position import Position
from fifo_background._core.state import CANCELLED
from fifo_background._run.call import make_task, not_callable
from fifo_background._run.current import current_party, origin_of
from fifo_background._run.runner import Runner
from fifo_background._settings import NOT_GIVEN, NotGiven, Options
from fifo_background.exceptions import lane_name

__all__ = ("ExecutorLane", "Submitter")

P = ParamSpec("P")
T = TypeVar("T")


class Submitter:
    """Submits tasks to one lane of an executor: `executor.options(timeout=2.0).submit_nowait(func)`."""

    __slots__ = ("_key", "_options", "_runner")

    def __init__(self, runner: Runner, key: Hashable, options: Options) -> None:
        self._runner = runner
        self._key = key
        self._options = options

    def options(self, *, timeout: float | NotGiven | None = NOT_GIVEN) -> Submitter:
        """For tasks with a `timeout` (seconds, None for no limit) other than the executor's.

        Raises ValueError or TypeError for an invalid `timeout`.
        """
        return Submitter(self._runner, self._key, self._options.replace(timeout=timeout))

    @overload
    def submit_nowait(
        self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Job[T]: ...

    @overload
    def submit_nowait(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Job[T]: ...

    def submit_nowait(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Job[Any]:
        """Queue `func(*args, **kwargs)` and return its `Job`. It does not start before this returns.

        May be called from any thread, once the executor has its event loop, and never blocks. The task
        sees a copy of the caller's context. Raises TypeError if `func` cannot be called, or if it is a plain
        function that does not take these arguments. Raises RuntimeError before the executor has a loop,
        `QueueFull` if `max_waiting` tasks wait already, and `ExecutorClosed` after the end.
        """
        job, position = self._prepare("submit_nowait", func, args, kwargs)
        self._runner.submit(job, position)
        return job

    @overload
    async def submit(
        self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Job[T]: ...

    @overload
    async def submit(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Job[T]: ...

    async def submit(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Job[Any]:
        """Like `submit_nowait`, but wait for capacity instead of raising `QueueFull`.

        First come, first served. Write `job = await executor.submit(func, ...)`: without `await` nothing is
        queued. `submit` lets other tasks run before it returns. If `submit` is cancelled, the task does not
        run, unless it has begun. Inside a task, and in a request whose own tasks have not ended, `submit`
        never waits: it raises `QueueFull`. In the executor's event loop only.
        """
        self._runner.check_in_loop()
        await anyio.lowlevel.checkpoint_if_cancelled()
        job, position = self._prepare("submit", func, args, kwargs)
        await self._runner.waits.wait_for_capacity(job, position)
        try:
            await anyio.lowlevel.cancel_shielded_checkpoint()
        except BaseException:  # cancelled natively, which no shield stops
            if job._own_state is None:
                job.cancel()
            raise
        return job

    def _prepare(
        self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Job[Any], Position]:
        if not callable(func):
            raise not_callable(name, func)
        runner = self._runner
        runner.check_has_loop()
        job = runner.make_job(make_task(name, BackgroundTask, func, args, kwargs), self._options)
        # last of what may raise: a lane that is made here stays until something has been in it
        position = Position(runner.scheduler.lanes.of(self._key), None, made_by=origin_of(current_party()))
        position.context = copy_context()
        job._position = position
        return job, position


# Python names the coroutine by this where it warns that it "was never awaited".
Submitter.submit.__qualname__ = "executor.submit (write `job = await executor.submit(func, ...)`)"


class ExecutorLane(Submitter):
    """One lane of an executor: `executor.lane(key)`. Nothing is kept for it while it is idle.

    You can submit its tasks from any thread. `pause`, `resume`, `peek`, `skip_head`, `retry_head` and `clear`
    run on the event loop: in an anyio worker thread of the loop they wait for it, in other threads they raise
    RuntimeError.
    """

    __slots__ = ()

    @property
    def key(self) -> Hashable:
        """The key, as it was given."""
        return plain_key(self._key)

    @property
    def picture(self) -> LaneRecord:
        """The lane at this moment. In the executor's event loop only."""
        return self._runner.overview.lane(self._key)

    def _found(self) -> Lane | None:
        return self._runner.scheduler.lanes.find(self._key)

    def _on_loop(self, name: str, function: Callable[[], T]) -> T:
        return self._runner.loop_calls.move(function, f"executor.lane(key).{name}")

    def pause(self) -> None:
        """Start no task of the lane until `resume`; a running task continues. Works on any key."""
        scheduler = self._runner.scheduler
        lane = scheduler.lanes.of(self._key)  # here the key's own code runs

        def pause() -> None:
            operations.pause(scheduler, lane if lane.listed else scheduler.lanes.list_lane(lane))

        try:
            self._on_loop("pause", pause)
        except BaseException:
            scheduler.inbox.append(lane)  # it may have been made for nothing
            raise

    def resume(self) -> bool:
        """Let a paused lane run again. False if there is no such lane."""

        def resume() -> bool:
            lane = self._found()
            if lane is None:
                return False
            operations.resume(self._runner.scheduler, lane)
            return True

        return self._on_loop("resume", resume)

    def peek(self) -> Job[Any] | None:
        """The task that is next; of a stopped lane, the failed one. None if nothing waits."""

        def peek() -> Job[Any] | None:
            lane = self._found()
            return None if lane is None else lane.peek()

        return self._on_loop("peek", peek)

    def skip_head(self, head: Job[Any] | None = None) -> Job[Any] | None:
        """Leave out, and return, what `peek` returns: it ends `SKIPPED`, or the stopped lane goes on.

        With `head`, only if that job is next: otherwise nothing is skipped, and None is returned.
        """

        def skip() -> Job[Any] | None:
            lane = self._found()
            return None if lane is None else operations.skip_head(self._runner.scheduler, lane, head)

        return self._on_loop("skip_head", skip)

    def retry_head(self) -> Job[Any]:
        """Run the failed task of a stopped lane again, before all others; returns its new `Job`.

        With `keep="latest"` the new job is superseded if a newer task waits. Raises RuntimeError if the lane
        has not stopped.
        """

        def retry() -> Job[Any] | None:
            lane = self._found()
            job = None if lane is None else operations.retry_head(self._runner.scheduler, lane)
            if job is not None:
                self._runner.look_at(job)
            return job

        job = self._on_loop("retry_head", retry)
        if job is None:
            raise RuntimeError(
                f"{lane_name(self.key)} has not stopped, so there is nothing to retry: `retry_head` is for "
                'lanes with after_failure="stop"'
            )
        return job

    def clear(self) -> list[Job[Any]]:
        """Cancel, and return, all tasks that wait in the lane; a stopped lane goes on."""

        runner, facts = self._runner, _log.Facts()

        def clear() -> list[Job[Any]]:
            lane = self._found()
            if lane is None:
                return []
            facts.update(_log.facts_of(lane.waiting, runner.settings.log_arguments))
            return operations.clear_lane(runner.scheduler, lane, CANCELLED)

        jobs = self._on_loop("clear", clear)
        _log.cleared(self.key, jobs, facts)
        return jobs

    def __repr__(self) -> str:
        return f"<ExecutorLane {self.key!r}>"
