"""What others wait for at an executor: a job, room, its being idle. Runs nothing.

Each wait looks first whether it could end (`_waits`), and a job that waits lends the slot of its lane.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fifo_background._executor import Executor, here
from fifo_background._job import RUNNING, Batch, Job
from fifo_background._lane import Place
from fifo_background._room import Wanted, no_room
from fifo_background._statistics import ExecutorStatistics, snapshot
from fifo_background._waits import holds_back, jobs_awaited, name_of_party
from fifo_background.exceptions import QueueFull, WouldDeadlock

if TYPE_CHECKING:
    from fifo_background._loop import Waiter
    from fifo_background._request import TrackedRequest

__all__ = ("WaitingExecutor",)


class WaitingExecutor(Executor):
    """An executor that tasks, requests and others can wait for."""

    async def wait(self, batch: Batch, request: TrackedRequest | None = None) -> None:
        """Wait for the jobs of a batch; a cancelled wait leaves them as they are.

        Raises WouldDeadlock if a running task awaits the `request`, and they cannot end before it.
        """
        outer = None if request is None or request.inside is None else self._who_awaits(request.inside)
        if request is not None:
            request.awaits = batch
        try:
            if request is not None and outer is not None:
                await self._wait_inside(outer, request, batch)
            elif (waiter := self.waiter(batch)) is not None:
                await waiter
        finally:
            if request is not None:
                request.awaits = None

    def waiter(self, batch: Batch) -> Waiter | None:
        """What to await until a batch is done; None if it is."""
        waiter = batch.waiter = self._loop.waiter()
        # without the lock: a thread that ends the last job now sees the waiter, or else its end is seen here
        return None if not batch.left or batch.stopped is not None else waiter

    async def _wait_inside(self, outer: Job[Any], request: TrackedRequest, batch: Batch) -> None:
        """The running task `outer` awaits the request that waits for the batch."""
        waits = self.line.waits
        with self.line.lock:
            jobs = jobs_awaited(request)
            if not waits.begin(outer, jobs):
                raise WouldDeadlock(outer.name, f"it awaits {request}, whose tasks wait for it")
        try:
            async with self._lent(outer):
                await self.wait(batch)
        finally:
            with self.line.lock:
                waits.end(outer, jobs)

    def _who_awaits(self, maker: Job[Any]) -> Job[Any] | None:
        """The running task that made a request in its own process, if it awaits it: in one asyncio task."""
        lane = None if maker.place is None else maker.place.lane
        runner = None if lane is None else lane.runner
        if maker.executor is not self or maker.state is not RUNNING or runner is None or runner.run is None:
            return None
        return maker if self._loop.runs(runner.run, runner.handle) else None

    async def wait_for(self, job: Job[Any]) -> None:
        """Wait until `job` has ended, however it ends. Raises WouldDeadlock."""
        self.check_caller()
        batch = Batch()
        party = self._party()
        line = self.line
        with line.lock:
            if job.state.ended:
                return
            if party is not None and not line.waits.begin(party, [job]):
                raise WouldDeadlock(name_of_party(party), f"{job.name} cannot end before it does")
            batch.watch(job)
        try:
            async with self._lent(party):
                await self.wait(batch)
        finally:
            with line.lock:
                job.watchers = tuple(watcher for watcher in job.watchers if watcher is not batch)
                if party is not None:
                    line.waits.end(party, [job])

    def _party(self) -> TrackedRequest | Job[Any] | None:
        """The caller, if others may have to wait for it: a running job, or a request."""
        party = here()
        if isinstance(party, Job):
            return party if party.executor is self and party.state is RUNNING else None
        return party if party is not None and party.executor is self else None

    @asynccontextmanager
    async def _lent(self, party: TrackedRequest | Job[Any] | None) -> AsyncIterator[None]:
        """A job lends the slot of its lane while it waits."""
        line = self.line
        lane = party.place.lane if isinstance(party, Job) and party.place is not None else None
        runner = None if lane is None else lane.runner
        if runner is None:
            yield
            return
        with line.lock:
            line.lend(runner)
        self.settle()
        try:
            yield
        finally:
            waiter = self._loop.waiter()
            with line.lock:
                there = line.take_back(runner, waiter)
            if not there:
                try:
                    await waiter
                except BaseException:
                    with line.lock:
                        line.take_anyway(waiter)
                    raise

    async def wait_for_room(self, job: Job[Any], place: Place) -> None:
        """Put a job in line as soon as there is room for it, in turn. Raises WouldDeadlock."""
        line, room = self.line, self.line.room
        party = self._party()
        with line.lock:
            try:
                line.add(job, place, True)
            except QueueFull:
                wanted = Wanted(job, place, self._loop.waiter(), party)
                if party is not None:
                    if not line.waits.begin(party, [wanted]):
                        raise no_room(wanted) from None
                    room.in_need.add(wanted)
                room.want(wanted)
            else:
                line.queue(place, [job])
                return
        try:
            async with self._lent(party):
                await wanted.waiter
            if wanted.error is not None:
                raise wanted.error
        except BaseException:
            with line.lock:
                room.withdraw(wanted)
            raise
        finally:
            with line.lock:
                if party is not None:
                    line.waits.end(party, [wanted])
                    room.in_need.discard(wanted)
                room.sought -= 1
                line.look_for_hope()
            self.settle()

    async def join(self) -> None:
        """Wait until every task that was added or submitted has ended.

        Tasks that requests have added count from `add_task` on. Raises `WouldDeadlock` inside a task, and
        in a request whose tasks, or those behind them, are among these.
        """
        self.check_caller()
        party = self._party()
        line = self.line
        if isinstance(party, Job):
            raise WouldDeadlock(name_of_party(party), "it is one of the tasks that `join` waits for")
        while line.unfinished:
            waiter = self._loop.waiter()
            with line.lock:
                if not line.unfinished:  # a thread has ended the last one just now
                    return
                if party is not None and self._holds_back_any(party):
                    raise WouldDeadlock(
                        name_of_party(party), "its own place keeps tasks waiting that `join` waits for"
                    )
                line.joiners.append(waiter)
            await waiter

    def _holds_back_any(self, request: TrackedRequest) -> bool:
        return any(
            holds_back(request, job)
            for held in request.places.values()
            for place in (held, *(held.lane.places if held.lane is not None else ()))
            for job in place.waiting
        )

    def statistics(self) -> ExecutorStatistics:
        """A frozen picture of the lanes at this moment."""
        self.check_caller()
        with self.line.lock:
            return snapshot(self.line)
