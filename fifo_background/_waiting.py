"""What others wait for at an executor: a job, room, its being idle. Runs nothing.

Each wait looks first whether it could end (`_waits`), and a job that waits lends the slot of its lane.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fifo_background._executor import Executor, current
from fifo_background._job import PENDING, QUEUED, RUNNING, Batch, Job
from fifo_background._lane import OUTSIDE, Place, Wanted
from fifo_background._statistics import ExecutorStatistics, snapshot
from fifo_background._waits import holds_anything, holds_back, jobs_awaited
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
            elif (waiter := self._waiter(batch)) is not None:
                await waiter
        finally:
            if request is not None:
                request.awaits = None

    def _waiter(self, batch: Batch) -> Waiter | None:
        """What to await until a batch is done; None if it is."""
        with self.line.lock:
            if not batch.left or batch.stopped is not None:
                return None
            waiter = batch.waiter = self._loop.waiter()
        return waiter

    async def _wait_inside(self, outer: Job[Any], request: TrackedRequest, batch: Batch) -> None:
        """The running task `outer` awaits the request that waits for the batch."""
        waits = self.line.waits
        with self.line.lock:
            if not batch.left or batch.stopped is not None:
                return
            jobs = jobs_awaited(request)
            if any(waits.would_deadlock(outer, job) for job in jobs):
                raise WouldDeadlock(_name(outer), f"it awaits {request}, whose tasks wait for it")
            self._add_waits(outer, jobs)
        try:
            async with self._lent(outer):
                if (waiter := self._waiter(batch)) is not None:
                    await waiter
        finally:
            with self.line.lock:
                for job in jobs:
                    waits.remove(outer, job)

    def _who_awaits(self, maker: Job[Any]) -> Job[Any] | None:
        """The running task that made a request in its own process, if it awaits it: in one asyncio task."""
        if maker.executor is not self or maker.state is not RUNNING or maker.place is None:
            return None
        runner = None if maker.place.lane is None else maker.place.lane.runner
        return maker if runner is not None and runner.run and self._loop.runs(runner.run) else None

    async def wait_for(self, job: Job[Any]) -> None:
        """Wait until `job` has ended, however it ends. Raises WouldDeadlock."""
        self.check_caller()
        batch = Batch()
        party = self._party()
        line = self.line
        with line.lock:
            if job.state.ended:
                return
            if party is not None and line.waits.would_deadlock(party, job):
                raise WouldDeadlock(_name(party), f"{job.name} cannot end before it does")
            if party is not None:
                self._add_waits(party, [job])
            batch.watch(job)
        try:
            async with self._lent(party):
                await self.wait(batch)
        finally:
            with line.lock:
                job.watchers = tuple(watcher for watcher in job.watchers if watcher is not batch)
                if party is not None:
                    line.waits.remove(party, job)

    def _add_waits(self, party: TrackedRequest | Job[Any], jobs: list[Job[Any]]) -> None:
        """The party waits for jobs. Raises WouldDeadlock if one of them waits for room that is behind it."""
        waits, in_need = self.line.waits, self.line.in_need
        for job in jobs:
            waits.add(party, job)
        if in_need and self._hopeless(in_need):
            for job in jobs:
                waits.remove(party, job)
            raise WouldDeadlock(_name(party), f"what {jobs[0].name} waits for waits for room behind it")

    def _party(self) -> TrackedRequest | Job[Any] | None:
        """The caller, if others may have to wait for it: a running job, or a request."""
        here = current.get()
        if isinstance(here, Job):
            return here if here.executor is self and here.state is RUNNING else None
        return here if here is not None and here.executor is self else None

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
        line = self.line
        party = self._party()
        with line.lock:
            try:
                line.add(job, place, take=True)
            except QueueFull:
                wanted = Wanted(job, place, self._loop.waiter(), party)
                if holds_anything(party):
                    if wanted in self._hopeless({*line.in_need, wanted}):
                        raise WouldDeadlock(_name(party), _no_room(wanted)) from None
                    line.in_need.add(wanted)
                line.want(wanted)
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
                line.in_need.discard(wanted)
                line.withdraw(wanted)
            self.settle()
            raise
        line.in_need.discard(wanted)

    def end_hopeless(self) -> None:
        with self.line.lock:
            for wanted in self._hopeless(self.line.in_need):
                wanted.error = WouldDeadlock(_name(wanted.party), _no_room(wanted))
                self._loop.wake(wanted.waiter)
                break  # there may be hope for the others: they are looked at when this one has given up

    def _hopeless(self, in_need: set[Wanted]) -> set[Wanted]:
        """Those of them for whom there is no room before one of them ends."""
        # who has been let in, or refused, and has not gone on yet does not wait any more
        stuck = {one for one in in_need if one.error is None and one.job.state is PENDING}
        while stuck:
            saved = {wanted for wanted in stuck if self._room_may_come(wanted, stuck)}
            if not saved:
                break
            stuck -= saved
        return stuck

    def _room_may_come(self, wanted: Wanted, stuck: set[Wanted]) -> bool:
        """Whether a job whose start makes room can start before one of those who are stuck ends."""
        line = self.line
        parties = {one.party for one in stuck if one.party is not None}
        lane = line.lanes.get(wanted.place.key)
        full = lane is not None and lane.waiting >= wanted.limit
        lanes = [lane] if full and lane is not None else list(line.lanes.values())
        for lane in lanes:
            head = lane.peek() if lane.waiting else None
            if head is not None:
                running = None if lane.runner is None else lane.runner.job
                if head.state is QUEUED and running not in parties and not line.waits.has(running):
                    return True  # nothing that waits is before it
                if not any(line.waits.would_deadlock(party, head) for party in parties):
                    return True
        # what waits, and is not in line yet: tasks of requests that have not responded
        outside = sum(lane.waiting - sum(len(place.waiting) for place in lane.places) for lane in lanes)
        outside -= sum(one.place.lane in lanes for one in line.wanted)
        for party in parties:
            if not isinstance(party, Job):
                own = (place for place in party.places.values() if place.lane in lanes)
                outside -= sum(len(place.added) for place in own if place.state is OUTSIDE)
        return outside > 0

    async def join(self) -> None:
        """Wait until every task that was added or submitted has ended.

        Tasks that requests have added count from `add_task` on. Raises `WouldDeadlock` inside a task, and
        in a request whose tasks, or those behind them, are among these.
        """
        self.check_caller()
        party = self._party()
        line = self.line
        if isinstance(party, Job):
            raise WouldDeadlock(_name(party), "it is one of the tasks that `join` waits for")
        while line.unfinished:
            waiter = self._loop.waiter()
            with line.lock:
                if not line.unfinished:  # a thread has ended the last one just now
                    return
                if party is not None and self._holds_back_any(party):
                    raise WouldDeadlock(
                        _name(party), "its own place keeps tasks waiting that `join` waits for"
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


def _name(party: TrackedRequest | Job[Any] | None) -> str:
    return party.name if isinstance(party, Job) else str(party)


def _no_room(wanted: Wanted) -> str:
    return f"there is no room for {wanted.job.name} before it ends"
