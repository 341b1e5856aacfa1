"""All lanes of one executor, and every move of a job: the one place where state changes.

Everything here is synchronous, under `lock`, because handlers and sync tasks add tasks from worker threads;
nothing of a user's runs under it, and nothing is awaited. What has to be done outside is left in `woken`,
`effects` and `turns`, for the executor, on the loop.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from enum import Enum
from typing import Any

from fifo_background._effects import HOPE, Effect, Held, Lost, Overdue, Unrun
from fifo_background._job import (
    DROPPED,
    FAILED,
    QUEUED,
    RUNNING,
    SKIPPED,
    SUPERSEDED,
    UNRUN,
    Job,
    JobState,
)
from fifo_background._lane import IN_LINE, OUTSIDE, Lane, Place, Runner
from fifo_background._loop import Waiter
from fifo_background._room import Room
from fifo_background._settings import Settings
from fifo_background._waits import Waits
from fifo_background.exceptions import ExecutorClosed, LaneStopped

__all__ = ("OPEN", "CLOSING", "CLOSED", "Line", "LineState")


class LineState(Enum):
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


OPEN, CLOSING, CLOSED = LineState


class Line:
    """The lanes of one executor."""

    def __init__(self, settings: Settings) -> None:
        # where every request passes it is taken by `acquire`: `with` takes more than twice as long
        self.lock: threading.Lock = threading.Lock()
        self.clock: Callable[[], float] = _no_clock  # the loop's, once there is one
        self.state: LineState = OPEN
        self.lanes: dict[Hashable, Lane] = {None: Lane(None)}  # the default lane stays
        self.slots: int = settings.max_lanes_running  # how many more lanes may run
        self.unfinished: int = 0  # jobs that are owed an end
        self.ready: int = 0  # those of them that are queued or run
        self.waiting: int = 0  # those of them that do not run
        # for the executor to do
        self.turns: deque[Lane] = deque()  # lanes in which something may start, in turn
        self.woken: list[Waiter] = []
        self.effects: list[Effect] = []
        # who waits for something that is not the end of a job
        self.joiners: list[Waiter] = []  # for nothing being unfinished
        self.drainers: list[Waiter] = []  # for nothing being ready, and for no runner being left
        self.returning: deque[Waiter] = deque()  # for a slot that they had lent
        self.room: Room = Room(self, settings.max_pending)
        self.waits: Waits = Waits(self.room)
        self._hold = settings.hold

    # -- adding -----------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether it takes new work."""
        return self.state is OPEN

    def lane(self, key: Hashable) -> Lane:
        lane = self.lanes.get(key)
        if lane is None:
            lane = self.lanes[key] = Lane(key)
        return lane

    def add(self, job: Job[Any], place: Place, take: bool, owed: bool = False) -> None:
        """Count a job in: from here on it is owed an end, and holds its place until it is queued.

        `take`: the place, which is not in line, is taken now. `owed`: it did not come through `add_task`,
        which could have refused it; there is always room. Raises `ExecutorClosed` and `QueueFull`.
        """
        if self.state is not OPEN:
            raise ExecutorClosed(job.name)
        if (self.room.limit is not None or job.options.max_pending is not None) and not owed:
            self.room.check(job, place)
        job.place = place
        lane = place.lane = self.lanes.get(place.key) or self.lane(place.key)
        lane.waiting += 1
        self.waiting += 1
        self.unfinished += 1
        if take:
            lane.append(place, self.clock())
        elif place.state is OUTSIDE:
            lane.keep_outside(place)
        if place.added:
            place.added.append(job)
        else:
            place.added = [job]

    def count_in(self, job: Job[Any], place: Place) -> None:
        job.place = place
        place.lane = lane = self.lane(place.key)
        lane.waiting += 1
        self.unfinished += 1

    def take(self, place: Place) -> None:
        """Append a place to its lane: the moment that fixes the order."""
        lane = place.lane = self.lane(place.key)
        lane.append(place, self.clock())

    def queue(self, place: Place, jobs: list[Job[Any]]) -> None:
        """Make jobs of a place ready to run; it is taken if it is not in line.

        Raises `ExecutorClosed` if the place would have to be taken after the end.
        """
        if place.state is not IN_LINE:
            if self.state is not OPEN:
                raise ExecutorClosed(jobs[0].name)
            self.take(place)
        lane: Lane = place.lane  # type: ignore[assignment]
        place.release(jobs)
        for job in jobs:
            job.get_ready()
            job.move(QUEUED)
            place.append(job)
            self.ready += 1
            lane.queued += 1
            if job.options.keep == "latest":
                self._keep_latest(lane, place, job)
            if lane.failed is not None:
                self._let_go(lane, job)
        if self.room.sought:
            self.look_for_hope()
        self.wants_turn(lane)

    def start_at_once(self, place: Place, jobs: list[Job[Any]]) -> Runner | None:
        """Start the one job of a list that nothing is before: what `queue` and a turn come to for it.

        None, and nothing has changed, if it has to wait in line.
        """
        lane: Lane = place.lane  # type: ignore[assignment]
        if (
            lane.first is not place
            or lane.runner is not None
            or lane.queued
            or lane.paused
            or lane.failed is not None
            or self.turns
            or self.slots <= 0
        ):
            return None
        place.release(jobs)
        (job,) = jobs
        job.get_ready()
        self.ready += 1
        return self._occupy(lane, job)

    def _keep_latest(self, lane: Lane, place: Place, job: Job[Any]) -> None:
        """Of the waiting jobs of a function the latest in line stays: a newer one replaces an older one.

        It does so when it is ready, so that one whose request fails replaces nothing.
        """
        if lane.latest is None:
            lane.latest = {}
        function = _hashable(job)
        other = lane.latest.get(function)
        if other is not None and other.place is not None and other.place.number > place.number:
            self.end_waiting(job, SUPERSEDED)
            return
        lane.latest[function] = job
        if other is not None:
            self.end_waiting(other, SUPERSEDED)

    # -- running ----------------------------------------------------------------------------------------

    def look_for_hope(self) -> None:
        """Somebody waits for room: there may be no hope for it any more."""
        if self.room.in_need and HOPE not in self.effects:
            self.effects.append(HOPE)

    def wants_turn(self, lane: Lane) -> None:
        """Something in the lane may have become able to start."""
        if lane.runner is None and not lane.in_turn:
            lane.in_turn = True
            self.turns.append(lane)

    def next_runner(self) -> Runner | None:
        """Put a runner into the next lane, in turn, that can run. On the loop only."""
        while self.turns and self.slots > 0:
            lane = self.turns.popleft()
            lane.in_turn = False
            job = self._ready_job(lane)
            if job is not None:
                self._take_out(lane, job)
                return self._occupy(lane, job)
        return None

    def _occupy(self, lane: Lane, job: Job[Any]) -> Runner:
        """Put a runner into a lane that has none, and start its first job."""
        if lane.timer is not None:
            lane.timer.cancel()
            lane.timer = None
        runner = lane.runner = Runner(lane, job.place if job.on_loop else None, job)
        self.slots -= 1
        self._start(lane, runner, job)
        return runner

    def _ready_job(self, lane: Lane) -> Job[Any] | None:
        """The next job of a lane without a runner, if it can start."""
        while not lane.paused and lane.failed is None:
            job = lane.next_job()
            if job is not None:
                return job
            place = lane.first
            if place is None:
                break
            if not lane.queued:
                return None
            now, end = self.clock(), place.taken + self._hold
            if now < end:
                if lane.timer is None or end < lane.rings:
                    self.effects.append(Held(lane, end - now))
                return None
            lane.lose(place)
            self.effects.append(Lost(place))
        if lane.idle:
            self._retire(lane)
        return None

    def _retire(self, lane: Lane) -> None:
        """Of a key whose lane is idle nothing is left behind; the default lane stays."""
        if lane.timer is not None:
            lane.timer.cancel()
            lane.timer = None
        if lane.key is not None and self.lanes.get(lane.key) is lane:
            del self.lanes[lane.key]
            if len(self.lanes) == 1:
                self.lanes = dict(self.lanes)  # a dict keeps the room that it needed for many keys

    def _take_out(self, lane: Lane, job: Job[Any]) -> None:
        """The first job of the lane is about to start: it leaves its place."""
        job.place.pop()  # type: ignore[union-attr]
        lane.queued -= 1

    def _start(self, lane: Lane, runner: Runner, job: Job[Any]) -> None:
        """The runner, which is the lane's, starts a job that waited in the lane."""
        lane.waiting -= 1
        self.waiting -= 1
        job.move(RUNNING)
        runner.job = job
        runner.since = self.clock()
        if lane.latest is not None:
            self._forget_latest(lane, job)
        if job.options.timeout is not None and not job.stoppable:
            self.effects.append(Overdue(runner, job))
        if self.room.sought:
            self.room.let_in(lane)
            self.look_for_hope()

    def next_job(self, runner: Runner) -> Job[Any] | None:
        """The runner's job has ended: the next one for it, started; None if it has left the lane.

        It leaves as well if other lanes wait for a turn; one in a thread takes over the next of these.
        """
        lane = runner.lane
        if lane is None:
            return None
        job = lane.next_job()
        if (
            job is not None
            and runner.place is (job.place if job.on_loop else None)
            and not (self.turns or runner.stopped or runner.lent or lane.paused or lane.failed)
        ):
            self._take_out(lane, job)
            self._start(lane, runner, job)
            return job
        self.leave(runner)
        if self.turns and runner.place is None and not runner.stopped and not runner.lent and self.slots > 0:
            lane = self.turns[0]
            job = lane.next_job() if lane.open and lane.timer is None else None
            if job is not None and not job.on_loop:
                self.turns.popleft()
                lane.in_turn = False
                lane.runner = runner
                runner.lane = lane
                self.slots -= 1
                self._take_out(lane, job)
                self._start(lane, runner, job)
                return job
        return None

    def leave(self, runner: Runner) -> None:
        """The runner runs no more jobs of its lane."""
        lane: Lane = runner.lane  # type: ignore[assignment]
        runner.lane = None
        lane.runner = None
        if not runner.lent:
            if self.returning:
                self._free_slot()
            else:
                self.slots += 1
        if lane.first is not None:
            self.wants_turn(lane)
        elif lane.key is not None and lane.idle:
            self._retire(lane)

    def give_away(self, job: Job[Any]) -> None:
        """A waiting job leaves this line: it runs inside a task of another executor."""
        self._count_out(job)
        self.unfinished -= 1
        self._wake_joiners()
        job.place = job.within = None

    def start_inline(self, job: Job[Any], outer: Job[Any]) -> None:
        """Start a job inside the running one that awaits it, in its place."""
        if job.place is None:
            self.unfinished += 1
        else:
            self._count_out(job)
        self.ready += 1
        job.place = outer.place
        job.move(RUNNING)

    # -- slots ------------------------------------------------------------------------------------------

    def _free_slot(self) -> None:
        self.slots += 1
        if self.returning and self.slots > 0:
            self.slots -= 1
            self.woken.append(self.returning.popleft())

    def lend(self, runner: Runner) -> None:
        """The runner's job waits for another lane: that may run in its slot."""
        runner.lent += 1
        if runner.lent == 1:
            self._free_slot()

    def take_back(self, runner: Runner, waiter: Waiter) -> bool:
        """The job goes on. False if it has to await `waiter` before, until a slot is free."""
        runner.lent -= 1
        if runner.lent or runner.lane is None:
            return True
        if self.slots > 0:
            self.slots -= 1
            return True
        self.returning.append(waiter)
        return False

    def take_anyway(self, waiter: Waiter) -> None:
        """Who waited for a slot is cancelled: it cleans up in a slot too many."""
        if waiter in self.returning:
            self.returning.remove(waiter)
            self.slots -= 1

    # -- ending -----------------------------------------------------------------------------------------

    def end(self, job: Job[Any], state: JobState, outcome: Any = None) -> None:
        """Move a running job to its last state."""
        job.move(state, outcome)
        self.ready -= 1
        place: Place = job.place  # type: ignore[assignment]
        if place.added:  # it was not stalling: `hold` begins anew
            place.taken = self.clock()
        self._ended(job)
        if job.parts and (parts := self._end_parts(job)):
            self.effects.append(Unrun(job, parts, place.owner))

    def end_waiting(self, job: Job[Any], state: JobState) -> None:
        """End a job that does not run."""
        queued = job.state is QUEUED
        job.move(state)
        place: Place = job.place  # type: ignore[assignment]
        lane: Lane = place.lane  # type: ignore[assignment]
        if queued:
            self.ready -= 1
            lane.queued -= 1
        self._count_out(job)
        self._ended(job)
        if job.parts:
            self._end_parts(job)

    def _count_out(self, job: Job[Any]) -> None:
        """The job does not wait in its lane any more, without having been started there."""
        place: Place = job.place  # type: ignore[assignment]
        lane: Lane = place.lane  # type: ignore[assignment]
        self.waiting -= 1
        if lane.latest is not None:
            self._forget_latest(lane, job)
        self._release(job)
        if self.room.sought:
            self.room.let_in(lane)
            self.look_for_hope()

    def _forget_latest(self, lane: Lane, job: Job[Any]) -> None:
        function = _hashable(job)
        if lane.latest is not None and lane.latest.get(function) is job:
            del lane.latest[function]

    def _ended(self, job: Job[Any]) -> None:
        self.unfinished -= 1
        batch = job.batch
        if batch is not None and (waiter := batch.saw_end_of(job)) is not None:
            self.woken.append(waiter)
        if job.watchers:
            for batch in job.watchers:
                if (waiter := batch.saw_end_of(job)) is not None:
                    self.woken.append(waiter)
        if self.joiners:
            self._wake_joiners()
        if self.drainers and not self.ready:
            self.woken += self.drainers
            self.drainers = []

    def _end_parts(self, job: Job[Any]) -> list[Job[Any]]:
        """What has not run inside the job does not run any more: it is skipped if the job has failed."""
        state = job.state if job.state in UNRUN else SKIPPED if job.state is FAILED else DROPPED
        parts = [part for part in job.parts if part.waits_inside(job)]
        for part in parts:
            self.end_waiting(part, state)
            part.batch = job.batch  # it was awaited, with the object
        return parts

    def take_in(self, job: Job[Any], parts: list[Job[Any]]) -> None:
        """These jobs, of the object that is the job's task, run inside it, and have no place of their own."""
        place: Place = job.place  # type: ignore[assignment]
        for part in parts:
            if part.place is None:
                self.unfinished += 1
                self.waiting += 1
            else:
                lane: Lane = part.place.lane  # type: ignore[assignment]
                self._release(part)
                if self.room.sought:
                    self.room.let_in(lane)
            part.place, part.within = place, job
            place.lane.waiting += 1  # type: ignore[union-attr]
        job.parts += tuple(parts)

    def _release(self, job: Job[Any]) -> None:
        """The job does not hold its place any more, nor does it wait in its lane."""
        place: Place = job.place  # type: ignore[assignment]
        lane: Lane = place.lane  # type: ignore[assignment]
        place.release([job])
        if lane.outside and not place.added:
            lane.outside.discard(place)
        lane.waiting -= 1
        self.wants_turn(lane)

    def _wake_joiners(self) -> None:
        if not self.unfinished:
            self.woken += self.joiners
            self.joiners = []

    def fail(self, job: Job[Any], error: BaseException) -> list[Job[Any]]:
        """End a running job with its error; returns what is skipped for it.

        The first failure skips what stands behind it in its place. With `after_failure="stop"` the lane
        stops, and lets go the requests that wait in it.
        """
        self.end(job, FAILED, error)
        place: Place = job.place  # type: ignore[assignment]
        skipped = list(place.queued) if place.skip_rest else []
        for other in skipped:
            self.end_waiting(other, SKIPPED)
        lane = place.lane
        if job.options.after_failure == "stop" and lane is not None and self.state is OPEN:
            assert place.context is not None
            lane.failed = Place(lane.key, place.owner)
            lane.failed.context = place.context.copy()  # its runner has not left it yet
            lane.failed.taken = place.taken
            lane.failed.added = [job]
            for waiting in lane.places:
                for other in waiting.waiting:
                    self._let_go(lane, other)
        return skipped

    def _let_go(self, lane: Lane, job: Job[Any]) -> None:
        """The request that waits for a job in a stopped lane does not wait any more."""
        batch = job.batch
        if job.state is not QUEUED or batch is None or not batch.attached:
            return
        if batch.stopped is None and lane.failed is not None:
            batch.stopped = LaneStopped(lane.key, lane.failed.added[0].name)
            if batch.waiter is not None:
                self.woken.append(batch.waiter)

    @property
    def runners(self) -> Iterator[Runner]:
        return (lane.runner for lane in self.lanes.values() if lane.runner is not None)


def _hashable(job: Job[Any]) -> Any:
    """What stands for a job's function in a mapping."""
    try:
        hash(job.task.func)
    except TypeError:
        return id(job.task.func)
    return job.task.func


def _no_clock() -> float:
    raise AssertionError("the executor has no event loop yet")
