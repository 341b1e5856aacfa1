"""All lanes of one executor, and every move of a job; its start is in `turns.py`.

Any thread, finalizer or signal handler may do these atomic acts, which wait for nothing:

- `waiting.add(job)`, then `position.added.append(job)`: the job is accepted.
- `inbox.append(position)`: fixes the order. The loop looks into the inbox before it looks at a lane.
- `job._claim()`: decides a job's fate; then `inbox.append(job)` tells the loop.

All else runs on the loop, in moves (`moving`): nothing of a user's runs in a move, and nothing of a user's is
freed. What a move lets go is left in `gone`, who is to be woken in `woken`, what is to be said in `effects`.

Invariants (`invariants.py`): a job is in `waiting` until it is claimed, and in the chain of its position
while it is ready, until it is started or the loop has heard of its end; `lane.queued` counts these.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from fifo_background._core.capacity import Capacity
from fifo_background._core.effects import Effect, Failed, Unrun
from fifo_background._core.failure import Failure
from fifo_background._core.history import History, NoHistory
from fifo_background._core.job import Job
from fifo_background._core.lane import Lane
from fifo_background._core.lanes import Lanes
from fifo_background._core.names import Names
from fifo_background._core.position import IN_QUEUE, OUTSIDE, Position
from fifo_background._core.slots import Slots
from fifo_background._core.special import Callback, Special
from fifo_background._core.state import (
    CLOSED,
    DROPPED,
    FAILED,
    OPEN,
    RUNNING,
    SKIPPED,
    SUCCEEDED,
    SUPERSEDED,
    JobState,
    Status,
)
from fifo_background._core.turns import Turns
from fifo_background._settings import Settings
from fifo_background.exceptions import ExecutorClosed

__all__ = ("Scheduler",)

T = TypeVar("T")


class Scheduler:
    """The lanes of one executor."""

    def __init__(self, settings: Settings) -> None:
        self.clock: Callable[[], float] = _no_clock  # the loop's, once there is one
        self.names: Names = Names(self)
        self.status: Status = OPEN
        # for any thread: see above
        self.inbox: deque[Position | Job[Any] | Callback | Lane] = deque()
        self.waiting: set[Job[Any]] = set()
        self.capacity: Capacity = Capacity(self, settings.max_waiting)
        self.lanes: Lanes = Lanes()
        # the loop's alone
        self.queued: int = 0  # the sum over the lanes
        self.slots: Slots = Slots(self, settings.max_lanes_running)
        self.turns: Turns = Turns(self, settings.hold_timeout)
        self.joiners: dict[Any, None] = {}  # waiters for nothing being unfinished
        self.moving: bool = False
        # for the runner to do, after the move
        self.woken: list[Any] = []  # waiters, and callbacks that are to be called
        self.effects: list[Effect] = []
        self.gone: list[object] = []
        keep: type[History] = History if settings.history else NoHistory
        self.history: History = keep(settings, self.gone, self.effects)
        # within a hand-over: jobs that were added to positions which get others now, that come before them
        self.joined: deque[Job[Any]] = deque()
        self._failures = itertools.count()
        self.next_number: Callable[[], int] = itertools.count(1).__next__

    # -- from any thread -------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return self.status is OPEN

    def accept(self, job: Job[Any], lane: Lane, now: float, refuse: bool = True) -> None:
        """Count a job in: it waits from here on. Raises `ExecutorClosed` and `QueueFull`."""
        try:
            if self.status is not OPEN:
                raise ExecutorClosed(job.name)
            most = job._options.max_waiting
            if most is None:
                lane.has_uncounted = True  # before the look at `counts`, which a thread may set
            if most or lane.counts or self.capacity.limit is not None:
                self.capacity.count(job, lane, refuse)
        except BaseException:
            self.inbox.append(lane)  # it may have been made for nothing
            raise
        job._number = self.next_number()
        job._added = now
        self.waiting.add(job)

    def failure(self, error: BaseException) -> Failure:
        """What a job fails with; numbered in the order of time."""
        return Failure(error, next(self._failures))

    # -- the inbox -------------------------------------------------------------------------------------------

    def in_move(self, function: Callable[[], T]) -> T:
        """Call `function` in a move."""
        self.moving = True
        try:
            return function()
        finally:
            self.moving = False

    def drain(self) -> None:
        """A move: do what others have asked for, in their order."""
        if self.inbox and not self.moving:
            self.in_move(self._drain)

    def _drain(self, joined: deque[Job[Any]] | None = None) -> None:
        """`joined`: where jobs are left that have become ready."""
        inbox = self.inbox
        while inbox:
            entry: Any = inbox[0]
            kind = type(entry)
            if kind is Position:
                self.take(entry)
            elif kind is Lane:
                self.turns.wants_turn(entry)
                self.capacity.admit(entry)
            elif kind is Callback:
                if entry.job.done():
                    self.woken.append(entry)
                else:
                    entry.job._wait_with(entry, False)
            elif entry._own_state is None:
                if joined is None:
                    self.ready(entry)
                else:
                    joined.append(entry)
            elif (position := entry._position) is not None:  # ended by others: cancelled, or in a thread
                if entry._own_state is not RUNNING:  # else two have handed it over, and it has started
                    if entry._own_state is FAILED:
                        self._failed(entry, position)
                    self._over(entry, position)
            elif entry._waiters is not None:  # a part of a job
                self.tell_end(entry)
            inbox.popleft()  # last: a KeyboardInterrupt in between does no harm

    def take(self, position: Position) -> None:
        """Append a position to its lane, unless it is in a queue."""
        state = position.state
        if state is not OUTSIDE and (state is IN_QUEUE or not position.held):
            return
        lane, submitted = position.lane, position.first  # it came with its job
        if submitted is not None and self.status is CLOSED:  # nothing starts, and its thread takes it back
            submitted._queued = False
            position.first = position.last = None
            return
        if not lane.listed:
            lane = self.lanes.list_lane(lane)
            if position.lane is not lane:
                self.capacity.move(position, lane)
        lane.take(position)
        if submitted is not None:
            self._count_ready(lane, submitted)
        position.state = IN_QUEUE  # last: a KeyboardInterrupt in between does no harm

    def give_up(self, position: Position) -> None:
        """A move: the request does not hold its position anymore by having arrived."""
        self.drain()
        position.arriving = False
        lane = position.lane
        behind = position.state is IN_QUEUE and position is not lane.first
        if behind and position.first is None and not position.held:
            lane.drop(position, self.gone)
        self.turns.wants_turn(lane)

    def ready(self, job: Job[Any]) -> None:
        """A job is ready to run, in its position; this takes the position if it is in no queue."""
        position = job._position
        if job._queued or job._own_state is not None or position is None:
            return
        if position.state is not IN_QUEUE:
            position.state = OUTSIDE
            position.taken = self.clock()
            self.take(position)
        trip = position.lane.trip
        if trip is not None and position.number < trip.reached:
            trip.stop = True  # before it leaves `added`: the thread has jobs in hand that come after it
        if position.added == [job]:  # else it is left out when the loop looks
            del position.added[0]
        position.append(job)
        job._queued = True
        self._count_ready(position.lane, job)

    def _count_ready(self, lane: Lane, job: Job[Any]) -> None:
        if not lane.occupied and not lane.in_turn:  # as `wants_turn`, for every task
            lane.in_turn = True
            self.turns.due.append(lane)
        lane.queued += 1
        self.queued += 1
        if job._special is not None and job._options.keep == "latest":
            superseded = lane.keep_latest(job, job._special.function)
            if superseded is not None:
                self.end_waiting(superseded, SUPERSEDED)
        if lane.stopped is not None:
            self._tell_stop(job)

    def unchain(self, job: Job[Any], position: Position) -> None:
        """A job that was not started leaves the chain of its position."""
        job._queued = False
        position.remove(job)
        lane = position.lane
        lane.queued -= 1
        self.queued -= 1
        if lane.trip is not None and lane.trip.last is job:
            lane.trip.last = None

    def left_waiting(self, job: Job[Any], lane: Lane) -> None:
        """A job does not count as waiting in the lane anymore."""
        if lane.latest is not None:
            lane.forget_latest(job)
        self.capacity.discount(job, lane)

    # -- ending ----------------------------------------------------------------------------------------------

    def end(
        self,
        lane: Lane,
        job: Job[Any],
        state: JobState,
        outcome: Any,
        may_go_on: Callable[[], bool] | None,
    ) -> Job[Any] | None:
        """A move: the job that runs on the loop has ended.

        Returns the next job of the same position, started; None if the lane was left. `may_go_on`: whether
        the same run may run a next job, asked for each that could; None if it may not.
        """
        position = job._position
        assert position is not None
        self.moving = True
        try:
            lane.job = None
            job._end(state, outcome)  # the caller has the arguments in hand
            if state is FAILED:
                self._drain()  # what it has added is skipped, too
                self._failed(job, position)
            if job._waiters is not None or job._special is not None or position.added:
                self._over(job, position)
            else:
                self._record(job, position, state)
            if self.inbox:
                self._drain()
            if position.first is not None and may_go_on is not None:
                turns = self.turns
                keeps = not (turns.due or lane.stopping or lane.lent or lane.paused or lane.stopped)
                while keeps and (after := position.first) is not None and after._on_loop and may_go_on():
                    if turns.start(lane, after):
                        return after
            self.turns.leave_lane(lane)
        except BaseException:  # a KeyboardInterrupt
            self.slots.count()
            raise
        finally:
            self.moving = False
        return None

    def end_waiting(self, job: Job[Any], state: JobState) -> bool:
        """End a job that waits. False if somebody else has claimed it."""
        position = job._position
        if position is None or not job._claim():
            return False
        self.gone.append(job._end(state))
        self._over(job, position)
        return True

    def let_go(self, job: Job[Any], position: Position) -> None:
        """A move: a claimed job runs inside another one, and does not wait here anymore."""
        self.moving = True
        try:
            self.left_waiting(job, position.lane)
            self.turns.wants_turn(position.lane)
            if self.joiners:
                self.wake_joiners()
        finally:
            self.moving = False

    def _failed(self, job: Job[Any], position: Position) -> None:
        """The first failure skips what stands behind it in its position, or stops the lane."""
        lane, skipped, tasks = position.lane, [], {}
        if position.owner is not None and position.owner.skips_rest:
            rest = [*position, *(other for other in self.joined if other._position is position)]
            tasks = {other: other._task for other in rest}
            skipped = [other for other in rest if self.end_waiting(other, SKIPPED)]
        stops = job._options.after_failure == "stop" and self.status is OPEN and lane.stopped is None
        if stops:
            lane.stop_at(job, position)
            for waiting in lane.waiting:
                self._tell_stop(waiting)
        self.effects.append(Failed(job, position, skipped, tasks, stops, job._handed_over))

    def _over(self, job: Job[Any], position: Position) -> None:
        """A job has ended: it leaves its position, and who waits for it is woken."""
        lane, state = position.lane, job._own_state
        assert state is not None
        if job._queued:
            self.unchain(job, position)
        if lane.latest is not None or job._counted_in is not None:
            self.left_waiting(job, lane)
        if job._waiters is not None:
            self.tell_end(job)
        if job._special is not None and job._special.parts:
            self._end_parts(job, position, job._special, state)
        self._record(job, position, state)
        if position.first is None and position is not lane.first and not position.held:
            if position.state is IN_QUEUE:  # nothing of it is left, and it takes no memory
                lane.drop(position, self.gone)
            else:
                self.gone.append(position)
        elif position.added and state in (SUCCEEDED, FAILED) and position.held:
            position.taken = self.clock()  # it was not stalling: `hold_timeout` begins anew
        self.turns.wants_turn(lane)
        if self.joiners:
            self.wake_joiners()

    def _record(self, job: Job[Any], position: Position, state: JobState) -> None:
        """The end is counted, and kept by the history. A job that is kept keeps no other alive."""
        self.history.add(job, position, state, self.clock)
        job._made_by = position.made_by
        job._position = job._counted_in = None

    def tell_end(self, job: Job[Any]) -> None:
        """Whoever waits for the job's end is told. Callbacks are not kept: waits go away by themselves."""
        waiters = job._waiters or {}
        self.woken += waiters
        for waiter in list(waiters):
            if type(waiter) is Callback:
                del waiters[waiter]

    def _tell_stop(self, job: Job[Any]) -> None:
        """The lane of a waiting job has stopped: a request does not wait for that."""
        if job._attached:
            self.woken += [waiter for waiter in job._waiters or () if type(waiter) is not Callback]

    def _end_parts(self, job: Job[Any], position: Position, special: Special, state: JobState) -> None:
        """What has not run inside the job does not run anymore: it is skipped if the job has failed."""
        left = special.take_parts()
        for part in left:
            part._make_special().ended_with_outer = True
            self.gone.append(part._end({SUCCEEDED: DROPPED, FAILED: SKIPPED}.get(state, state)))
            self.tell_end(part)
        failed = self.effects[-1] if state is FAILED and self.effects else None
        if left and type(failed) is Failed and failed.job is job:
            failed.skipped.extend(left)  # it is said in one record
        elif left and state in (SUCCEEDED, FAILED):
            self.effects.append(Unrun(job, position, left))
        elif left:
            job._name = f"{job.name} ({', '.join(part.name for part in left)})"

    # -- nothing being unfinished ----------------------------------------------------------------------------

    @property
    def unfinished(self) -> int:
        """How many jobs wait or run."""
        return len(self.waiting) + sum(lane.running is not None for lane in self.turns.occupied)

    def wake_joiners(self) -> None:
        if not self.unfinished:
            self.woken += self.joiners
            self.joiners = {}


def _no_clock() -> float:
    raise RuntimeError("the executor has no event loop yet")
