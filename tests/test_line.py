"""The line as pure data: no event loop, no clock but a number."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.background import BackgroundTask

from fifo_background import Job, JobState
from fifo_background._lane import Place, PlaceState, Runner
from fifo_background._line import Line


class Model:
    """A line whose time is `now`."""

    def __init__(self, hold: float = 5.0) -> None:
        self.line = Line(hold)
        self.now = 0.0
        self.line.clock = lambda: self.now

    def job(self, key: str, *, ready: bool = True) -> Job[Any]:
        place = Place(key, None)
        job: Job[Any] = Job(BackgroundTask(print), None, place)
        self.line.register(job)
        if ready:
            self.line.queue(place, job)
        else:
            self.line.take(place)
            place.hold(job)
        return job

    def start(self, key: str) -> Any:
        lost: list[Place] = []
        found = self.line.next_runner(self.line.lanes[key], lost)
        return (found, lost) if lost else found

    def run(self, key: str) -> Job[Any] | None:
        runner = self.start(key)
        return self.line.start_job(self.line.lanes[key], runner) if isinstance(runner, Runner) else None


def test_two_keys() -> None:
    """Lanes of two keys run side by side; of a key whose lane is empty nothing is left behind."""
    model = Model()
    jobs = [model.job("a"), model.job("b")]
    assert [model.run("a"), model.run("b")] == jobs
    assert model.line.running == 2
    lane = model.line.lanes["a"]
    for job in jobs:
        model.line.end(job, JobState.SUCCEEDED)
    assert lane.runner is not None
    assert model.line.start_job(lane, lane.runner) is None
    assert model.start("a") is None
    assert list(model.line.lanes) == [None, "b"]


def test_one_runner() -> None:
    """A lane has at most one runner; another one starts nothing and cannot leave for it."""
    model = Model()
    model.job("a")
    model.job("a")
    first = model.start("a")
    assert model.start("a") is None
    lane = model.line.lanes["a"]
    other = Runner(None)
    assert model.line.start_job(lane, other) is None
    model.line.leave(lane, other)
    assert lane.runner is first


def test_held_head() -> None:
    """A held head costs what is ready behind it the rest of its time, and then its place."""
    model = Model(hold=5)
    held = model.job("a", ready=False)
    assert model.start("a") is None
    model.now = 1
    ready = model.job("a")
    assert model.start("a") == 4
    model.now = 5
    runner, lost = model.start("a")
    assert lost == [held.place]
    assert held.place is not None
    assert held.place.state is PlaceState.OUTSIDE
    assert model.line.start_job(model.line.lanes["a"], runner) is ready


def test_without_a_loop() -> None:
    """A place cannot be taken before there is a clock."""
    with pytest.raises(AssertionError, match="no event loop yet"):
        Line(1).take(Place(None, None))


def test_hold_begins_anew() -> None:
    """A place in which a job has just run is held for `hold` seconds from there."""
    model = Model(hold=5)
    job = model.job("a")
    place = job.place
    assert place is not None
    held: Job[Any] = Job(BackgroundTask(print), None, place)
    model.line.register(held)
    place.hold(held)
    behind = model.job("a")
    runner = model.start("a")
    lane = model.line.lanes["a"]
    assert model.line.start_job(lane, runner) is job
    model.now = 100
    model.line.end(job, JobState.SUCCEEDED)
    assert model.line.start_job(lane, runner) is None
    assert model.start("a") == 5
    model.now = 105
    _, lost = model.start("a")
    assert lost == [place]
    assert behind.state is JobState.QUEUED


def test_added_while_the_request_ends() -> None:
    """A job counts from the moment it is registered, and closes the books when it ends."""
    model = Model()
    job = model.job("a")
    assert (model.line.unfinished, model.line.ready) == (1, 1)
    model.run("a")
    model.line.end(job, JobState.SUCCEEDED)
    assert (model.line.unfinished, model.line.ready) == (0, 0)
