"""Capacity: how many jobs may wait (`max_waiting`), and the submits that wait for capacity, in order.

Jobs are counted by any thread, where they are added, and counted out by the loop. All waiting jobs of one
function in one lane with `keep="latest"` count as one.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from fifo_background._core.job import Job
from fifo_background._core.lane import Lane, Wanted
from fifo_background._core.position import Position
from fifo_background.exceptions import ExecutorClosed, QueueFull

if TYPE_CHECKING:
    from fifo_background._core.scheduler import Scheduler

__all__ = ("Capacity",)

# What counts as one (see `_token`), with the jobs that do.
Counted = dict[object, set[Job[Any]]]


class Capacity:
    """What `max_waiting`, of the executor and of single lanes, leaves."""

    def __init__(self, scheduler: Scheduler, limit: int | None) -> None:
        self.limit: int | None = limit
        self.wanted: deque[Wanted] = deque()  # for capacity in the executor; others wait in their lanes
        self.sought: int = 0  # how many wait in all
        self._counted: Counted = {}
        self._freed: list[Lane] = []  # lanes in which somebody may be let in, while that is done
        self._scheduler = scheduler

    def count(self, job: Job[Any], lane: Lane, refuse: bool) -> None:
        """Count a job in; from any thread. Raises `QueueFull`, and then nothing is counted.

        Counts first, then looks: if two threads want the last capacity, both may be refused.
        """
        limit = job._options.max_waiting
        if limit is not None:
            self.begin_counting(lane)
        # what counts with its lane is counted there, too: so the lane stays as long as it waits
        in_lane = lane.counts or (job._special is not None and job._special.function is not None)
        for counted, most, wanted in (
            (lane.counted if in_lane else None, limit, lane.wanted),
            (self._counted if self.limit is not None else None, self.limit, self.wanted),
        ):
            if counted is None:
                continue
            is_new = _add(counted, job, lane)
            if refuse and most is not None and is_new and (wanted or len(counted) > most):
                self.discard(job)
                raise QueueFull(job.name, len(counted))

    def begin_counting(self, lane: Lane) -> None:
        """Count what waits in a lane: for a limit, or because a job waits there outside of its queue.

        A lane in which something is counted stays. Otherwise the next lane of its key would not know the job.
        """
        if lane.counts:
            return
        lane.counts = True  # first: what is added or started meanwhile counts itself, in and out
        if not lane.has_uncounted:
            return
        waiting = self._scheduler.waiting
        for job in list(waiting):
            if job._position is not None and job._position.lane is lane:
                _add(lane.counted, job, lane)
                if job not in waiting:
                    self.discard(job)

    def discard(self, job: Job[Any]) -> None:
        """Count a job out, where it was counted in: its lane may have been retired since."""
        lane = job._counted_in
        if lane is None:
            return
        for counted in (lane.counted, self._counted):
            token = _token(job, lane)
            jobs = counted.get(token)
            if jobs is not None:
                jobs.discard(job)
                if not jobs:
                    counted.pop(token, None)
                    if jobs:  # a thread has added one just now
                        counted.setdefault(token, jobs).update(jobs)

    def discount(self, job: Job[Any], lane: Lane) -> None:
        """The job does not wait anymore."""
        self.discard(job)
        if self.sought:
            self.admit(lane)

    def move(self, position: Position, lane: Lane) -> None:
        """The jobs of a position wait in another lane of the same key."""
        for job in position.waiting:
            if position.lane.counts or lane.counts:
                self.discard(job)
                self.count(job, lane, False)

    def want(self, wanted: Wanted) -> None:
        """Wait for capacity: the job is queued in its turn."""
        lane = wanted.position.lane
        self.sought += 1
        if lane.wanted or not self._fits_lane(wanted):
            lane.wanted = lane.wanted or deque()
            lane.wanted.append(wanted)
        else:
            self._let_into_lane(wanted)

    def _fits_lane(self, wanted: Wanted) -> bool:
        limit, lane = wanted.job._options.max_waiting, wanted.position.lane
        return limit is None or _fits(lane.counted, wanted, limit)

    def _let_into_lane(self, wanted: Wanted) -> None:
        lane = wanted.position.lane
        if lane.counts:
            _add(lane.counted, wanted.job, lane)
        self.wanted.append(wanted)

    def admit(self, lane: Lane) -> None:
        """Let in who waits for capacity that there is now, first come, first served."""
        self._freed.append(lane)
        # if there are more, one that was let in has replaced another: the loop below goes on with it
        if len(self._freed) == 1:
            for freed in self._freed:
                if self._scheduler.is_open:
                    self._admit(freed)
            self._freed.clear()

    def _admit(self, lane: Lane) -> None:
        while lane.wanted and self._fits_lane(lane.wanted[0]):
            self._let_into_lane(lane.wanted.popleft())
        while self.wanted and (self.limit is None or _fits(self._counted, self.wanted[0], self.limit)):
            wanted = self.wanted.popleft()
            job, position, scheduler = wanted.job, wanted.position, self._scheduler
            self.sought -= 1
            if self.limit is not None:
                _add(self._counted, job, position.lane)
            job._number, job._added = scheduler.next_number(), scheduler.clock()
            scheduler.waiting.add(job)
            position.submit(job, job._added)
            scheduler.take(position)
            scheduler.woken.append(wanted.waiter)

    def withdraw(self, wanted: Wanted) -> None:
        """Nobody waits for this one anymore, which was not admitted."""
        lane = wanted.position.lane
        for queue in (self.wanted, lane.wanted):
            if queue is not None and wanted in queue:
                queue.remove(wanted)
                self.sought -= 1
        self.discard(wanted.job)
        self.admit(lane)
        self._scheduler.turns.wants_turn(lane)

    def refuse(self, lane: Lane | None) -> list[Any]:
        """The executor closes: refuse who waits, in a lane or (None) in the executor. Returns the waiters."""
        refused = list((self.wanted if lane is None else lane.wanted) or ())
        for wanted in refused:
            wanted.error = ExecutorClosed(wanted.job.name)
        return [wanted.waiter for wanted in refused]


def _token(job: Job[Any], lane: Lane) -> object:
    """What is counted: the job, or with keep="latest" its function in its lane.

    The lane itself, not its key, whose `__eq__` is the user's.
    """
    function = None if job._special is None else job._special.function
    return job if function is None else (lane, function)


def _add(counted: Counted, job: Job[Any], lane: Lane) -> bool:
    """Count a job in. Whether it is the only one that counts as this one."""
    job._counted_in = lane
    token = _token(job, lane)
    counted.setdefault(token, set()).add(job)
    jobs = counted.setdefault(token, {job})  # the loop may have dropped the set before the job was in it
    jobs.add(job)
    return len(jobs) == 1


def _fits(counted: Counted, wanted: Wanted, limit: int) -> bool:
    return len(counted) < limit or _token(wanted.job, wanted.position.lane) in counted
