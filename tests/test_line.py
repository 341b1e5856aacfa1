"""The line as pure data: no event loop, no clock but a number."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.background import BackgroundTask

from fifo_background import ExecutorClosed, Job, JobState
from fifo_background._effects import Held, Lost
from fifo_background._lane import Place, PlaceState, Runner
from fifo_background._line import Line
from fifo_background._operations import close
from fifo_background._settings import Settings
from fifo_background._waits import holds_back


class Model:
    """A line whose time is `now`."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.line = Line(self.settings)
        self.now = 0.0
        self.line.clock = lambda: self.now

    def job(self, key: Any, *, ready: bool = True, **options: Any) -> Job[Any]:
        place = Place(key, None)
        job: Job[Any] = Job(BackgroundTask(print), None, self.settings.options.but(**options))
        self.line.add(job, place, take=True)
        if ready:
            self.line.queue(place, [job])
        return job

    def start(self) -> Runner:
        runner = self.line.next_runner()
        assert runner is not None
        return runner

    def end(self, runner: Runner) -> Job[Any] | None:
        self.line.end(runner.job, JobState.SUCCEEDED)
        return self.line.next_job(runner)


def test_two_keys() -> None:
    """Lanes of two keys run side by side; of a key whose lane is empty nothing is left behind."""
    model = Model()
    jobs = [model.job("a"), model.job("b")]
    runners = [model.start(), model.start()]
    assert [runner.job for runner in runners] == jobs
    assert list(model.line.runners) == runners
    assert model.end(runners[0]) is None
    assert model.line.next_runner() is None
    assert list(model.line.lanes) == [None, "b"]


def test_one_runner() -> None:
    """A lane has at most one runner; its jobs start one after the other."""
    model = Model()
    jobs = [model.job("a"), model.job("a")]
    runner = model.start()
    assert model.line.next_runner() is None
    assert runner.job is jobs[0]
    assert model.end(runner) is jobs[1]
    assert model.end(runner) is None
    assert runner.lane is None
    assert model.line.next_job(runner) is None


def test_held_head() -> None:
    """A held head costs what is ready behind it the rest of its time, and then its place."""
    model = Model(hold=5)
    held = model.job("a", ready=False)
    assert model.line.next_runner() is None
    model.now = 1
    ready = model.job("a")
    assert model.line.next_runner() is None
    lane = model.line.lanes["a"]
    assert model.line.effects == [Held(lane, 4)]
    model.now = 5
    model.line.wants_turn(lane)
    assert model.start().job is ready
    assert held.place is not None
    assert model.line.effects[1:] == [Lost(held.place)]
    assert held.place.state is PlaceState.OUTSIDE


def test_without_a_loop() -> None:
    """A place cannot be taken before there is a clock."""
    with pytest.raises(AssertionError, match="no event loop yet"):
        Line(Settings()).take(Place(None, None))


def test_hold_begins_anew() -> None:
    """A place in which a job has just run is held for `hold` seconds from there."""
    model = Model(hold=5)
    job = model.job("a")
    place = job.place
    assert place is not None
    held: Job[Any] = Job(BackgroundTask(print), None, model.settings.options)
    model.line.add(held, place, take=True)
    behind = model.job("a")
    runner = model.start()
    assert runner.job is job
    model.now = 100
    assert model.end(runner) is None
    assert model.line.next_runner() is None
    lane = model.line.lanes["a"]
    assert model.line.effects == [Held(lane, 5)]
    model.now = 105
    model.line.wants_turn(lane)
    assert model.start().job is behind
    assert model.line.effects[1:] == [Lost(place)]


def test_books() -> None:
    """A job counts from the moment it is registered, and closes the books when it ends."""
    model = Model()
    line = model.line
    model.job("a")
    assert (line.unfinished, line.ready, line.waiting) == (1, 1, 1)
    runner = model.start()
    assert (line.unfinished, line.ready, line.waiting) == (1, 1, 0)
    model.end(runner)
    assert (line.unfinished, line.ready, line.waiting) == (0, 0, 0)


def test_turns() -> None:
    """With fewer slots than lanes, lanes take turns: one that has run stands behind those that wait."""
    model = Model(max_lanes_running=1)
    names = {model.job(key): f"{key}{n}" for key in "ab" for n in range(3)}
    ran: list[str] = []
    while (runner := model.line.next_runner()) is not None:
        job: Job[Any] | None = runner.job
        assert model.line.next_runner() is None
        while job is not None:
            ran.append(names[job])
            job = model.end(runner)
    assert ran == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert model.line.slots == 1


def test_thread_goes_from_lane_to_lane() -> None:
    """A runner in a thread takes over the next lane that waits for a slot: no thread is started for it."""
    model = Model(max_lanes_running=1)
    jobs = [model.job(key) for key in "abc"]
    runner = model.start()
    assert model.end(runner) is jobs[1]
    assert runner.lane is model.line.lanes["b"]
    assert "a" not in model.line.lanes
    assert model.end(runner) is jobs[2]
    assert model.end(runner) is None
    assert list(model.line.lanes) == [None]


def test_closed_line_takes_no_place() -> None:
    """After the end a place that is not in line cannot be taken."""
    model = Model()
    place = Place(None, None)
    job: Job[Any] = Job(BackgroundTask(print), None, model.settings.options)
    model.line.add(job, place, take=False)
    assert close(model.line) == []
    with pytest.raises(ExecutorClosed):
        model.line.queue(place, [job])


def test_timer_of_an_idle_lane() -> None:
    """A lane that becomes idle while its head is held leaves no timer behind."""
    model = Model()
    held = model.job("a", ready=False)
    behind = model.job("a")
    assert model.line.next_runner() is None
    lane = model.line.lanes["a"]
    cancelled: list[int] = []

    class Timer:
        def cancel(self) -> None:
            cancelled.append(1)

    lane.timer = Timer()
    for job in (held, behind):
        model.line.end_waiting(job, JobState.CANCELLED)
    assert model.line.next_runner() is None
    assert (cancelled, lane.timer, list(model.line.lanes)) == ([1], None, [None])


def test_slot_that_came_in_time() -> None:
    """Who was given a slot while being cancelled does not take another one."""
    model = Model(max_lanes_running=1)
    model.job("a")
    runner = model.start()
    model.line.lend(runner)
    model.job("b")
    model.start()
    waiter: Any = object()
    assert not model.line.take_back(runner, waiter)
    model.line._free_slot()
    assert model.line.woken == [waiter]
    model.line.take_anyway(waiter)
    assert model.line.slots == 0


def test_waits() -> None:
    """A job that has ended keeps nobody waiting, neither as what is waited for nor as who waits."""
    model = Model()
    jobs = [model.job(key) for key in "aab"]
    waits = model.line.waits
    runner = model.start()
    model.start()
    assert waits.begin(jobs[0], [jobs[2]])
    assert not waits.begin(jobs[0], [jobs[1]])
    assert model.end(runner) is jobs[1]
    assert not holds_back(jobs[0], jobs[2])
    assert not holds_back(jobs[1], jobs[0])
    assert not waits.begin(jobs[1], [jobs[1]])
    assert waits.begin(jobs[1], [jobs[2]])
    waits.end(jobs[0], [jobs[2]])
    waits.end(jobs[1], [jobs[2]])
    assert waits._of == {}
