"""The scheduler as pure data: no event loop, no clock but a number."""

from __future__ import annotations

from contextvars import copy_context
from typing import Any

import pytest
from starlette.background import BackgroundTask

from fifo_background import ExecutorClosed, Job, JobState, QueueFull
from fifo_background._core import operations
from fifo_background._core.effects import Failed, Held, Lost
from fifo_background._core.invariants import check
from fifo_background._core.job import RAISES
from fifo_background._core.lane import Lane, Wanted, key_of
from fifo_background._core.position import GONE, IN_QUEUE, OUTSIDE, Position
from fifo_background._core.scheduler import Scheduler
from fifo_background._core.special import Callback
from fifo_background._core.state import TRANSITIONS, check_transition
from fifo_background._settings import Settings
from tests.support.apps import ClaimedMeanwhile
from tests.support.scheduler import Model, Request

S = JobState


class Timer:
    """The timer of a lane, which remembers that it was cancelled."""

    def __init__(self) -> None:
        self.cancelled = 0

    def cancel(self) -> None:
        self.cancelled += 1


# -- order ---------------------------------------------------------------------------------------------------


def test_two_keys() -> None:
    """Lanes of two keys run side by side; of a key whose lane is empty nothing is left behind."""
    model = Model()
    jobs = [model.job("a"), model.job("b")]
    lanes = [model.start(), model.start()]
    assert [lane.job for lane in lanes] == jobs
    assert model.scheduler.turns.occupied == set(lanes)
    assert model.end(lanes[0]) is None
    assert model.start_next() is None
    assert list(model.scheduler.lanes.by_key) == ["b"]


def test_one_at_a_time() -> None:
    """A lane has at most one running job; its jobs start in the order of their positions."""
    model = Model()
    jobs = [model.job("a"), model.job("a")]
    lane = model.start()
    assert model.start_next() is None
    assert lane.job is jobs[0]
    assert model.end(lane) is None
    assert model.start() is lane
    assert lane.job is jobs[1]
    assert model.end(lane) is None
    assert not lane.occupied
    assert (lane.job, lane.first, model.start_next()) == (None, None, None)


def test_the_inbox_fixes_the_order() -> None:
    """The order of two positions is that of the inbox, whichever has a ready job first."""
    model = Model()
    first, second = model.position("a"), model.position("a")
    jobs = {position: model.add(position) for position in (second, first)}
    model.scheduler.inbox += [jobs[second], jobs[first]]
    lane = model.start()
    assert lane.job is jobs[first]
    model.end(lane)
    assert model.start().job is jobs[second]


def test_a_position_is_taken_once() -> None:
    """A position that is handed to the inbox twice stays where it is."""
    model = Model()
    first, second = model.position("a"), model.position("a")
    model.scheduler.inbox.append(first)
    jobs = [model.add(position) for position in (second, first)]
    model.scheduler.inbox += jobs
    model.scheduler.drain()
    assert [position.number for position in (first, second)] == [1, 2]
    assert list(model.scheduler.lanes.by_key["a"]) == [first, second]


def test_the_run_of_a_position() -> None:
    """Consecutive jobs of one position are one run: each starts at the end of the one before."""
    model = Model()
    position = model.position("a")
    jobs = [model.add(position) for _ in range(3)]
    behind = model.job("a")
    model.scheduler.inbox += jobs
    lane = model.start()
    assert lane.job is jobs[0]
    assert [model.end(lane), model.end(lane)] == jobs[1:]
    assert model.end(lane) is None
    assert position.state is GONE
    assert model.start().job is behind


def test_claimed_by_another() -> None:
    """A job that another thread has claimed does not start, and the one behind it does."""
    model = Model()
    position = model.position("a")
    jobs = [model.add(position) for _ in range(2)]
    model.scheduler.inbox += jobs
    model.scheduler.drain()
    assert jobs[0]._claim()  # and is not further yet
    assert not jobs[0]._claim()
    assert model.start().job is jobs[1]
    assert not model.scheduler.end_waiting(jobs[0], S.SKIPPED)
    jobs[0]._end(S.CANCELLED)
    model.scheduler.inbox.append(jobs[0])
    assert model.end(model.scheduler.lanes.by_key["a"]) is None
    assert model.scheduler.lanes.by_key == {}


def test_counts() -> None:
    """A job is unfinished from the moment it is accepted until it has ended."""
    model = Model()
    scheduler = model.scheduler
    job = model.job("a")
    assert (scheduler.unfinished, len(scheduler.waiting)) == (1, 1)
    lane = model.start()
    assert (scheduler.unfinished, len(scheduler.waiting), lane.running) == (1, 0, job)
    model.end(lane)
    assert (scheduler.unfinished, len(scheduler.waiting), lane.running) == (0, 0, None)


# -- lanes and slots -----------------------------------------------------------------------------------------


def test_turns() -> None:
    """With fewer slots than lanes, lanes take turns: one that has run stands behind those that wait."""
    model = Model(max_lanes_running=1)
    names = {model.job(key): f"{key}{n}" for key in "ab" for n in range(3)}
    ran: list[str] = []
    while (lane := model.start_next()) is not None:
        assert model.start_next() is None
        job = lane.job
        while job is not None:
            ran.append(names[job])
            job = model.end(lane)
    assert ran == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert model.scheduler.slots.free == 1


def test_a_run_lets_others_have_their_turn() -> None:
    """A run leaves its lane between two jobs of one position where another lane waits for its turn."""
    model = Model(max_lanes_running=1)
    position = model.position("a")
    jobs = [model.add(position) for _ in range(2)]
    model.scheduler.inbox += jobs
    lane = model.start()
    other = model.job("b")
    assert model.end(lane) is None
    assert model.start().job is other
    model.end(model.scheduler.lanes.by_key["b"])
    assert model.start().job is jobs[1]


def test_a_paused_lane_takes_no_slot() -> None:
    """A paused lane starts nothing and occupies no slot; it is kept until `resume`, even if it is empty."""
    model = Model(max_lanes_running=1)
    paused = model.scheduler.lanes.list_lane(model.scheduler.lanes.of("a"))
    operations.pause(model.scheduler, paused)
    job = model.job("a")
    other = model.job("b")
    assert model.start().job is other
    model.end(model.scheduler.lanes.by_key["b"])
    assert model.start_next() is None
    model.cancel(job)
    assert model.start_next() is None
    assert model.scheduler.lanes.by_key == {"a": paused}
    operations.resume(model.scheduler, paused)
    assert model.start_next() is None
    assert model.scheduler.lanes.by_key == {}


def test_lent_slot() -> None:
    """A lane whose job waits for another lane lends its slot once, however many waits it has."""
    model = Model(max_lanes_running=1)
    model.job("a")
    lane = model.start()
    job: Any = lane.job
    for _ in range(2):
        model.scheduler.slots.lend(lane)
    assert model.scheduler.slots.free == 1
    model.job("b")
    assert model.start().key == "b"
    model.end(model.scheduler.lanes.by_key["b"])
    for _ in range(2):
        assert model.scheduler.slots.take_back(lane, job, object())
    assert (model.scheduler.slots.free, lane.lent) == (0, 0)
    model.end(lane)
    assert model.scheduler.slots.free == 1


def wants_back(model: Model) -> tuple[Lane, Any, Lane, Any]:
    """A lane whose job has lent its slot and wants it back; the job, the lane that has it, the waiter."""
    model.job("a")
    lane = model.start()
    job: Any = lane.job
    model.scheduler.slots.lend(lane)
    model.job("b")
    other = model.start()
    waiter: Any = object()
    assert not model.scheduler.slots.take_back(lane, job, waiter)
    return lane, job, other, waiter


def test_slot_that_came_in_time() -> None:
    """A waiter that was given a slot while its task was being cancelled does not take another one."""
    model = Model(max_lanes_running=1)
    lane, job, other, waiter = wants_back(model)
    model.end(other)
    assert model.scheduler.woken == [waiter]
    model.scheduler.slots.took_back(lane, job, waiter)
    assert model.scheduler.slots.free == 0
    model.end(lane)
    assert model.scheduler.slots.free == 1


def test_cancelled_on_the_way_back() -> None:
    """A waiter that is cancelled before it gets a slot goes on in a slot too many, which is given back."""
    model = Model(max_lanes_running=1)
    lane, job, other, waiter = wants_back(model)
    model.scheduler.slots.took_back(lane, job, waiter)
    assert (model.scheduler.slots.free, list(model.scheduler.slots.returning)) == (-1, [])
    model.end(other)
    assert model.scheduler.slots.free == 0
    model.job("c")
    assert model.start_next() is None
    model.end(lane)
    assert model.start().key == "c"


def test_wait_that_outlives_its_job() -> None:
    """A wait of a job that has ended takes no slot back, and a slot that it is given goes on to others."""
    model = Model(max_lanes_running=1)
    model.job("a")
    lane = model.start()
    job: Any = lane.job
    for _ in range(2):
        model.scheduler.slots.lend(lane)
    model.job("b")
    other = model.start()
    model.end(lane)
    assert model.scheduler.slots.take_back(lane, job, object())
    model.end(other)
    assert model.scheduler.slots.free == 1


def test_lane_that_was_retired_meanwhile() -> None:
    """A thread that has a lane in hand which is just being retired adds to the lane that is there now."""
    model = Model()
    old = model.scheduler.lanes.of("a")
    model.scheduler.lanes.list_lane(old)
    model.scheduler.turns.wants_turn(old)
    assert model.start_next() is None
    assert model.scheduler.lanes.by_key == {}
    first = model.job("a")
    model.scheduler.drain()
    stale = Position(old, None)
    stale.added = []
    model.scheduler.inbox.append(stale)
    second = model.add(stale)
    model.scheduler.inbox.append(second)
    lane = model.start()
    assert lane.job is first
    model.end(lane)
    assert model.start() is stale.lane is lane
    assert lane.job is second


def test_key_with_a_broken_comparison() -> None:
    """A key whose `__eq__` raises later stops nothing: its lane runs and is retired."""

    class Key:
        broken = False

        def __hash__(self) -> int:
            return 1

        def __eq__(self, other: object) -> bool:
            if Key.broken:
                raise ValueError
            return self is other

    model = Model()
    one, other = key_of(Key()), key_of(Key())
    jobs = [model.job(one), model.job(other)]
    lanes = [model.start(), model.start()]
    later = model.position(other, take=False)
    Key.broken = True
    model.end(lanes[1])  # is looked up past the first key
    model.scheduler.inbox.append(later)
    jobs.append(model.add(later))
    model.scheduler.inbox.append(jobs[2])
    model.end(lanes[0])
    model.end(model.start())
    assert [job.state for job in jobs] == [S.SUCCEEDED] * 3
    assert model.start_next() is None


# -- held positions ------------------------------------------------------------------------------------------


def effects(model: Model) -> list[tuple[Any, ...]]:
    """What the scheduler left to be done."""
    found: list[tuple[Any, ...]] = []
    for effect in model.scheduler.effects:
        if isinstance(effect, Held):
            found.append(("held", effect.lane.key, effect.delay))
        elif isinstance(effect, Lost):
            found.append(("lost", effect.position, effect.jobs))
        else:
            assert isinstance(effect, Failed)
            found.append(("failed", effect.job, effect.skipped, effect.stopped, effect.handed_over))
    model.scheduler.effects.clear()
    return found


def test_held_head() -> None:
    """A held head delays what is ready behind it by the rest of its time, and then loses its position."""
    model = Model(hold_timeout=5)
    held = model.job("a", ready=False)
    assert model.start_next() is None
    assert effects(model) == []
    model.now = 1
    ready = model.job("a")
    assert model.start_next() is None
    lane, position = model.scheduler.lanes.by_key["a"], held._position
    assert position is not None
    assert effects(model) == [("held", "a", 4)]
    model.now = 5
    model.scheduler.turns.wants_turn(lane)
    assert model.start().job is ready
    assert effects(model) == [("lost", position, [held])]
    assert position.state is OUTSIDE
    assert held.state is S.PENDING


def test_lost_position_is_taken_again() -> None:
    """A position that was lost is taken again, behind the others, when its job is ready."""
    model = Model(hold_timeout=0)
    held = model.job("a", ready=False)
    jobs = [model.job("a") for _ in range(2)]
    lane = model.start()
    assert lane.job is jobs[0]
    model.scheduler.inbox.append(held)
    model.end(lane)
    assert model.start().job is jobs[1]
    model.end(lane)
    assert model.start().job is held


def test_arriving() -> None:
    """A position that is held for tasks which may come keeps what is behind it, until it is held no more."""
    model = Model(hold_timeout=5)
    position = model.position("a")
    position.arriving = True
    behind = model.job("a")
    assert model.start_next() is None
    position.arriving = False
    model.scheduler.turns.wants_turn(position.lane)
    assert model.start().job is behind
    assert position.state is GONE


def test_hold_begins_anew() -> None:
    """A position in which a job has just run is held for `hold_timeout` seconds from there."""
    model = Model(hold_timeout=5)
    position = model.position("a")
    jobs = [model.add(position) for _ in range(2)]
    model.scheduler.inbox.append(jobs[0])
    behind = model.job("a")
    lane = model.start()
    assert lane.job is jobs[0]
    model.now = 100
    assert model.end(lane) is None
    assert model.start_next() is None
    assert effects(model) == [("held", "a", 5)]
    model.now = 105
    model.scheduler.turns.wants_turn(lane)
    assert model.start().job is behind
    assert effects(model) == [("lost", position, [jobs[1]])]


def test_timer_of_an_idle_lane() -> None:
    """A lane that becomes idle while its head is held leaves no timer behind."""
    model = Model()
    jobs = [model.job("a", ready=False), model.job("a")]
    assert model.start_next() is None
    lane = model.scheduler.lanes.by_key["a"]
    lane.timer = timer = Timer()
    for job in jobs:
        assert model.scheduler.end_waiting(job, S.CANCELLED)
    assert model.start_next() is None
    assert (timer.cancelled, lane.timer, model.scheduler.lanes.by_key) == (1, None, {})


def test_timer_of_a_lane_that_starts() -> None:
    """A lane that starts needs its timer no more."""
    model = Model()
    held = model.job("a", ready=False)
    model.job("a")
    assert model.start_next() is None
    lane = model.scheduler.lanes.by_key["a"]
    lane.timer = timer = Timer()
    model.scheduler.inbox.append(held)
    model.scheduler.drain()
    model.scheduler.turns.wants_turn(lane)
    assert model.start().job is held
    assert (timer.cancelled, lane.timer) == (1, None)


# -- ends ----------------------------------------------------------------------------------------------------


def test_failure_skips_the_rest() -> None:
    """A failure skips what is ready behind it in its position, and nothing of others."""
    model = Model()
    position = model.position("a", Request())
    jobs = [model.add(position) for _ in range(3)]
    behind = model.job("a")
    model.scheduler.inbox += jobs
    lane = model.start()
    model.fail(lane)
    assert [job.state for job in jobs] == [S.FAILED, S.SKIPPED, S.SKIPPED]
    assert effects(model) == [("failed", jobs[0], jobs[1:], False, False)]
    assert model.start().job is behind


@pytest.mark.parametrize("waits", [False, True])
def test_failure_that_is_handed_over(waits: bool) -> None:
    """A failure is handed over if somebody waits who will raise it, not if somebody only waits."""
    model = Model()
    job = model.job("a")
    waiter = object()
    job._wait_with(waiter, RAISES if waits else False)
    model.fail(model.start())
    assert effects(model) == [("failed", job, [], False, waits)]
    assert model.scheduler.woken == [waiter]


def test_stop_and_retry() -> None:
    """A failure stops the lane; the retried job is first again, in its old position's order."""
    model = Model(lane_after_failure="stop")
    jobs = [model.job("a") for _ in range(2)]
    lane = model.start()
    model.fail(lane)
    assert effects(model) == [("failed", jobs[0], [], True, False)]
    assert (lane.peek(), model.start_next()) == (jobs[0], None)
    again = operations.retry_head(model.scheduler, lane)
    assert again is not None
    assert again is not jobs[0]
    assert model.start().job is again
    model.end(lane)
    assert model.start().job is jobs[1]
    assert jobs[0].state is S.FAILED
    assert operations.retry_head(model.scheduler, lane) is None


def test_callbacks() -> None:
    """A callback is due at the end of its job, and at once where the job has ended."""
    model = Model()
    job = model.job("a")

    def called(job: Job[Any]) -> None: ...

    def callback() -> Callback:
        return Callback(job, called, copy_context())

    early, late = callback(), callback()
    model.scheduler.inbox.append(early)
    lane = model.start()
    assert model.scheduler.woken == []
    model.end(lane)
    assert model.scheduler.woken == [early]
    model.scheduler.inbox.append(late)
    model.scheduler.drain()
    assert model.scheduler.woken == [early, late]


def test_joiners() -> None:
    """Joiners are woken at the first moment at which nothing is unfinished."""
    model = Model()
    jobs = [model.job("a"), model.job("b", ready=False)]
    joiner = object()
    model.scheduler.joiners[joiner] = None
    model.end(model.start())
    assert model.scheduler.woken == []
    model.cancel(jobs[1])
    assert model.scheduler.woken == [joiner]
    assert model.scheduler.joiners == {}


def test_ended_job_keeps_nothing() -> None:
    """A job that has ended keeps no task and no position."""
    model = Model()
    jobs = [model.job("a") for _ in range(3)]
    model.end(model.start())
    model.cancel(jobs[1])
    model.scheduler.end_waiting(jobs[2], S.SKIPPED)
    for job in jobs:
        assert (job._task, job._position, job._next, job._previous) == (None, None, None, None)


def test_superseded() -> None:
    """Of the ready jobs of a function the latest in the queue stays, in whatever order they become ready."""
    model = Model()
    jobs = [model.job("a", ready=False, keep="latest") for _ in range(3)]
    model.scheduler.inbox += [jobs[1], jobs[0]]
    model.scheduler.drain()
    assert [job.state for job in jobs] == [S.SUPERSEDED, S.QUEUED, S.PENDING]
    model.scheduler.inbox.append(jobs[2])
    model.scheduler.drain()
    check(model.scheduler)
    assert [job.state for job in jobs] == [S.SUPERSEDED, S.SUPERSEDED, S.QUEUED]
    assert model.start().job is jobs[2]


def test_let_in_while_another_is_superseded() -> None:
    """A submit that is let in while a task of its function replaces an older one is the latest of all."""
    model = Model(max_waiting=1)
    scheduler, options = model.scheduler, model.settings.options.replace(keep="latest")

    def latest() -> Job[Any]:
        job: Job[Any] = Job(BackgroundTask(print), None, options, scheduler.waiting)
        job._make_special().function = "function"
        return job

    def add() -> Job[Any]:  # as a task that was made outside of any request: it is always accepted
        job = latest()
        job._position = model.position("a")
        scheduler.accept(job, job._position.lane, model.now, refuse=False)
        job._position.added.append(job)
        scheduler.inbox.append(job)
        scheduler.drain()
        return job

    model.job("a")
    submitted = latest()
    submitted._position = model.position("a", take=False)
    scheduler.drain()
    scheduler.capacity.want(Wanted(submitted, submitted._position, object()))
    jobs = [add(), add(), submitted]
    assert [job.state for job in jobs] == [S.SUPERSEDED, S.SUPERSEDED, S.QUEUED]
    jobs.append(add())
    assert [job.state for job in jobs] == [S.SUPERSEDED, S.SUPERSEDED, S.SUPERSEDED, S.QUEUED]
    check(scheduler)


# -- capacity ------------------------------------------------------------------------------------------------


def test_capacity_of_the_executor() -> None:
    """`max_waiting` jobs may wait; a refused one has changed nothing."""
    model = Model(max_waiting=2)
    jobs = [model.job("a"), model.job("b")]
    with pytest.raises(QueueFull, match="2 tasks wait already"):
        model.job("c")
    assert model.scheduler.waiting == set(jobs)
    model.start()
    model.job("c")
    with pytest.raises(QueueFull):
        model.job("c")


def test_capacity_of_a_lane() -> None:
    """The limit of a lane counts what waits in it, also what was there before anybody named a limit."""
    model = Model()
    for _ in range(2):
        model.job("a")
    with pytest.raises(QueueFull, match="2 tasks wait already"):
        model.job("a", max_waiting=2)
    model.job("a", max_waiting=3)
    model.job("b", max_waiting=1)
    model.start()
    model.job("a", max_waiting=3)


# -- closing -------------------------------------------------------------------------------------------------


def test_closed() -> None:
    """After the end no job is accepted, and what nobody awaited is dropped."""
    model = Model()
    held, ready = model.job("a", ready=False), model.job("a")
    model.scheduler.drain()
    assert operations.close(model.scheduler) == [held]
    assert held.state is S.DROPPED
    with pytest.raises(ExecutorClosed):
        model.job("a")
    assert model.start().job is ready


@pytest.mark.parametrize("how", ["paused", "stopped"])
def test_closed_heads(how: str) -> None:
    """What stands behind a paused or stopped head is dropped, also where that happens while closing."""
    model = Model(lane_after_failure="stop")
    jobs = [model.job(key) for key in "aab"]
    lane = model.start()
    if how == "paused":
        operations.pause(model.scheduler, lane)
        model.end(lane)
    else:
        model.fail(lane)
    assert operations.close(model.scheduler) == [jobs[1]]
    other = model.start()
    later = model.scheduler.lanes.default
    operations.pause(model.scheduler, later)
    operations.pause(model.scheduler, other)
    assert operations.drop_closed_heads(model.scheduler) == []
    model.end(other)
    assert model.start_next() is None
    assert [job.state for job in jobs[1:]] == [S.DROPPED, S.SUCCEEDED]
    assert (model.scheduler.lanes.by_key, model.scheduler.unfinished) == ({}, 0)


def test_end_of_everything() -> None:
    """The end drops everything that waits: what is ready, what is held, what is outside of any queue."""
    model = Model()
    outside = model.add(model.position("b", take=False))
    jobs = [model.job("a", ready=False), model.job("a"), outside]
    model.scheduler.drain()
    assert set(operations.drop_all(model.scheduler)) == set(jobs)
    assert [job.state for job in jobs] == [S.DROPPED] * 3
    assert model.start_next() is None
    assert (model.scheduler.lanes.by_key, model.scheduler.unfinished) == ({}, 0)


# -- what other threads do in the middle of a move -----------------------------------------------------------


def test_cancelled_while_it_stands_in_the_queue() -> None:
    """What a thread has claimed, but not told the loop yet, is passed over, at the head and within a run."""
    model = Model()
    position = model.position("a")
    jobs = [model.add(position) for _ in range(4)]
    model.scheduler.inbox += jobs
    model.scheduler.drain()
    assert jobs[0]._claim()
    assert jobs[2]._claim()
    lane = model.scheduler.turns.start_next()
    assert lane is not None
    assert lane.job is jobs[1]
    assert model.scheduler.end(lane, jobs[1], S.SUCCEEDED, None, lambda: True) is jobs[3]
    for job in (jobs[0], jobs[2]):
        job._end(S.CANCELLED)
    model.scheduler.inbox += [jobs[0], jobs[2]]
    assert model.end(lane) is None
    assert (model.start_next(), model.scheduler.lanes.by_key) == (None, {})


def test_cancelled_as_it_starts() -> None:
    """Jobs that a thread claims, each in the moment in which it would start, do not start."""
    model = Model()
    position = model.position("a")
    jobs = [model.add(position) for _ in range(4)]
    model.scheduler.inbox += jobs
    model.scheduler.drain()
    model.scheduler.waiting = ClaimedMeanwhile(jobs)
    lane = model.scheduler.turns.start_next()
    assert lane is None
    assert [job.state for job in jobs] == [S.CANCELLED] * 4


def test_cancelled_as_its_run_comes_to_it() -> None:
    """The same within a run of one position: the lane is left, with nothing in it."""
    model = Model()
    position = model.position("a")
    jobs = [model.add(position) for _ in range(2)]
    model.scheduler.inbox += jobs
    lane = model.start()
    assert lane.job is jobs[0]
    model.scheduler.waiting = ClaimedMeanwhile({jobs[1]})
    assert model.end(lane) is None
    assert jobs[1].state is S.CANCELLED
    assert (model.start_next(), model.scheduler.lanes.by_key) == (None, {})


def test_skipped_as_it_starts() -> None:
    """`skip_head` skips the next job where a thread has just started the head."""
    model = Model()
    jobs = [model.job("a") for _ in range(2)]
    model.scheduler.drain()
    jobs[0]._claims = ClaimedMeanwhile({jobs[0]})
    assert operations.skip_head(model.scheduler, model.scheduler.lanes.by_key["a"]) is jobs[1]
    assert jobs[1].state is S.SKIPPED


def test_added_as_its_position_leaves() -> None:
    """A job that a thread adds in the moment in which its position leaves the queue gets a new one."""
    model = Model()
    scheduler = model.scheduler
    position = model.position("a")
    first = model.add(position)
    scheduler.inbox.append(first)
    lane = model.start()
    added: list[Job[Any]] = []

    class Gone(list[Any]):
        def append(self, what: Any) -> None:
            super().append(what)
            added.extend([model.add(position)] if what is position and not added else [])

    scheduler.gone = Gone()
    assert model.end(lane) is None
    assert (position.state, list(lane)) == (IN_QUEUE, [position])
    scheduler.inbox += added
    assert model.start().job is added[0]


def test_ready_twice() -> None:
    """A job that is said to be ready again, or when it has been claimed, is queued once, or not at all."""
    model = Model()
    jobs = [model.job("a") for _ in range(2)]
    assert jobs[1]._claim()
    jobs[1]._end(S.CANCELLED)
    model.scheduler.drain()
    model.scheduler.ready(jobs[0])
    model.scheduler.ready(jobs[1])
    check(model.scheduler)
    assert [job._queued for job in jobs] == [True, False]


def test_counted_in_while_another_is_counted_out() -> None:
    """A job that a thread counts in while the last one of its function is counted out stays counted."""
    model = Model()
    capacity = model.scheduler.capacity
    jobs = [model.job("a", keep="latest", max_waiting=1) for _ in range(2)]
    lane = model.scheduler.lanes.of("a")
    assert lane.counted is not None
    (token,) = lane.counted
    capacity.discard(jobs[1])

    class Racing(dict[Any, Any]):
        def pop(self, token: object, *default: Any) -> Any:
            counted = super().pop(token, *default)
            counted.add(jobs[1])
            return counted

    lane.counted = Racing(lane.counted)
    capacity.discard(jobs[0])
    assert lane.counted == {token: {jobs[1]}}


def test_counted_in_a_lane_that_was_retired() -> None:
    """A job that a thread has added to a lane which is gone by now counts in the new lane of that key."""
    model = Model()
    gone = model.scheduler.lanes.of("a")
    model.job("a", max_waiting=2)
    model.end(model.start())
    assert model.scheduler.lanes.by_key == {}
    position = Position(gone, None, [])
    late = model.add(position, max_waiting=2)
    assert model.job("a", max_waiting=2)._position is not position
    model.scheduler.inbox.append(position)
    model.scheduler.drain()
    assert position.lane is model.scheduler.lanes.by_key["a"] is not gone
    with pytest.raises(QueueFull, match="2 tasks wait already"):
        model.job("a", max_waiting=2)
    assert late._claim()


def test_uncounted_in_a_lane_that_was_retired() -> None:
    """A job without a limit, in a lane which is gone by now, counts in the new lane of that key."""
    model = Model()
    gone = model.scheduler.lanes.of("a")
    model.job("a")
    model.end(model.start())
    position = Position(gone, None, [])
    late = model.add(position)
    limited = model.job("a", max_waiting=2)
    model.scheduler.inbox.append(position)
    model.scheduler.drain()
    assert position.lane is not gone
    with pytest.raises(QueueFull, match="2 tasks wait already"):
        model.job("a", max_waiting=2)
    model.cancel(late)
    model.cancel(limited)
    assert model.start_next() is None
    assert model.scheduler.lanes.by_key == {}


# -- the rest ------------------------------------------------------------------------------------------------


def test_without_a_loop() -> None:
    """A job cannot start before there is a clock."""
    with pytest.raises(RuntimeError, match="no event loop yet"):
        Scheduler(Settings()).clock()


def test_check_sees_a_broken_invariant() -> None:
    """`check`, which the model test calls after every step, sees a count that is wrong."""
    model = Model()
    model.job("a")
    model.scheduler.drain()
    check(model.scheduler)
    model.scheduler.lanes.by_key["a"].queued += 1
    with pytest.raises(AssertionError):
        check(model.scheduler)


@pytest.mark.parametrize("before", S)
def test_transitions(before: JobState) -> None:
    """A state without a next one is an end; every other move is one of the table."""
    for after in S:
        if after in TRANSITIONS[before]:
            check_transition(before, after)
        else:
            with pytest.raises(RuntimeError, match=f"cannot go from {before.value} to {after.value}"):
                check_transition(before, after)
    assert before.ended is (before not in (S.PENDING, S.QUEUED, S.RUNNING))


def test_undo_of_no_start() -> None:
    """A KeyboardInterrupt while nothing is being started undoes nothing: what runs goes on."""
    model = Model()
    job = model.job("a")
    lane = model.start()
    handle: Any = object()
    lane.handle = handle
    model.scheduler.turns.undo_start(lane)
    assert (lane.job, lane.occupied, job.state) == (job, True, S.RUNNING)
    check(model.scheduler)
