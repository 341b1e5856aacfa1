"""All lanes of one executor, and every move of a job: the one place where state changes.

Everything here is synchronous and returns what has to be done outside: whom to wake, what to log, how long
to wait. Callers hold `lock`, because handlers and sync tasks add tasks from worker threads; nothing of a
user's runs under it, and nothing is awaited.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable
from enum import Enum
from typing import Any

from fifo_background._job import Job, JobState
from fifo_background._lane import Lane, Place, PlaceState, Runner
from fifo_background._loop import Waiter
from fifo_background.exceptions import ExecutorClosed

__all__ = ("Line", "LineState")


class LineState(Enum):
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class Line:
    """`hold` (seconds) is how long a place may keep ready tasks back."""

    def __init__(self, hold: float) -> None:
        self.lock: threading.Lock = threading.Lock()
        self.state: LineState = LineState.OPEN
        self.lanes: dict[Hashable, Lane] = {None: Lane(None)}
        self.unfinished: int = 0  # jobs that are owed an end
        self.ready: int = 0  # those of them that are queued or run
        self.joiners: list[Waiter] = []  # woken when nothing is unfinished
        self.drainers: list[Waiter] = []  # woken when nothing is ready, and when no runner is left
        self._hold = hold
        self.clock: Callable[[], float] = _no_clock  # the loop's, once there is one

    # -- adding -----------------------------------------------------------------------------------------

    def register(self, job: Job[Any]) -> None:
        """Count a job in: from here on it is owed an end. Raises `ExecutorClosed`."""
        if self.state is not LineState.OPEN:
            raise ExecutorClosed(job.name)
        self.unfinished += 1

    def take(self, place: Place) -> None:
        """Append a place to its lane: the moment that fixes the order."""
        lane = self.lanes.get(place.key)
        if lane is None:
            lane = self.lanes[place.key] = Lane(place.key)
        lane.append(place, self.clock())

    def queue(self, place: Place, job: Job[Any]) -> None:
        """Make a job of a place ready to run; the place is taken if it is not in line.

        Raises `ExecutorClosed` if it would have to be taken after the end.
        """
        if place.state is not PlaceState.IN_LINE and self.state is not LineState.OPEN:
            raise ExecutorClosed(job.name)
        job.queue()
        self.ready += 1
        place.release(job)
        if place.state is not PlaceState.IN_LINE:
            self.take(place)
        place.queued.append(job)
        self.lanes[place.key].queued += 1

    # -- running ----------------------------------------------------------------------------------------

    def next_runner(self, lane: Lane, lost: list[Place]) -> Runner | float | None:
        """Put a runner into the lane if its head is ready and it has none.

        A head that keeps ready tasks waiting loses its place after `hold` seconds, and is appended to
        `lost`; before, the seconds left are returned. None means that there is nothing to start.
        """
        if lane.runner is not None:
            return None
        while (place := lane.head()) is not None:
            if place.ready:
                lane.runner = Runner(place if place.first.on_loop else None)
                return lane.runner
            if not lane.queued:
                return None
            wait = place.taken + self._hold - self.clock()
            if wait > 0:
                return wait
            lost.append(lane.lose_head())
        self.retire(lane)
        return None

    def retire(self, lane: Lane) -> None:
        """Of a key whose lane is empty nothing is left behind; the default lane stays."""
        if lane.key is not None:
            self.lanes.pop(lane.key, None)

    def start_job(self, lane: Lane, runner: Runner) -> Job[Any] | None:
        """The next job, started, if it is one for this runner; otherwise the runner has left the lane."""
        if lane.runner is not runner:
            return None
        place = lane.head()
        if place is not None and place.queued and not runner.stopped:
            job = place.queued[place.next]
            if runner.place is (place if job.on_loop else None):
                place.popped()
                lane.queued -= 1
                job.move(JobState.RUNNING)
                runner.job = job
                return job
        lane.runner = None
        return None

    def start_inline(self, job: Job[Any]) -> None:
        """Start a job inside a running one; it gives up the place that it may hold."""
        if job.place is None:
            self.unfinished += 1
        else:
            job.place.release(job)
            job.place = None
        self.ready += 1
        job.move(JobState.RUNNING)

    def leave(self, lane: Lane, runner: Runner) -> None:
        """The runner runs no more jobs of the lane."""
        if lane.runner is runner:
            lane.runner = None

    # -- ending -----------------------------------------------------------------------------------------

    def end(self, job: Job[Any], state: JobState, outcome: Any = None) -> list[Waiter]:
        """Move a job to its last state; returns whom to wake."""
        if job.state is not JobState.PENDING:
            self.ready -= 1
        job.move(state, outcome)
        self.unfinished -= 1
        if job.place is not None and job.place.added:  # it was not stalling: `hold` begins anew
            job.place.taken = self.clock()
        waiters: list[Waiter] = []
        for batch in job.watchers:
            waiter = batch.saw_end_of(job)
            if waiter is not None:
                waiters.append(waiter)
        if not self.unfinished and self.joiners:
            waiters += self.joiners
            self.joiners = []
        if not self.ready and self.drainers:
            waiters += self.drainers
            self.drainers = []
        return waiters

    def drop(self, jobs: Iterable[Job[Any]]) -> list[Waiter]:
        """End jobs that will not run; returns whom to wake."""
        return [waiter for job in jobs for waiter in self.end(job, JobState.DROPPED)]

    def skip_rest(self, failed: Job[Any]) -> tuple[list[Job[Any]], list[Waiter]]:
        """The first failure skips what stands behind it in its place; returns that and whom to wake."""
        place = failed.place
        if place is None or not place.skip_rest or not place.ready:
            return [], []
        skipped = place.clear()
        self.lanes[place.key].queued -= len(skipped)
        return skipped, [waiter for job in skipped for waiter in self.end(job, JobState.SKIPPED)]

    # -- closing ----------------------------------------------------------------------------------------

    def close(self) -> list[Job[Any]]:
        """Take no new work; the jobs that are returned gave up the places that they held."""
        self.state = LineState.CLOSING
        held: list[Job[Any]] = []
        for lane in self.lanes.values():
            for place in lane.line:
                unclaimed = [job for job in place.added or () if not job.watchers]
                for job in unclaimed:
                    place.release(job)
                held += unclaimed
        return held

    def clear(self) -> list[Job[Any]]:
        """Empty all lanes; returns the jobs that were ready to run."""
        self.state = LineState.CLOSED
        left: list[Job[Any]] = []
        for lane in self.lanes.values():
            for place in lane.line:
                left += place.clear()
            lane.queued = 0
        return left

    @property
    def running(self) -> int:
        """How many lanes have a runner."""
        return sum(lane.runner is not None for lane in self.lanes.values())


def _no_clock() -> float:
    raise AssertionError("the executor has no event loop yet")
