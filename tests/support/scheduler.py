"""A scheduler without an event loop, driven by hand."""

from __future__ import annotations

from typing import Any

from starlette.background import BackgroundTask

from fifo_background import Job, JobState
from fifo_background._core.invariants import check
from fifo_background._core.lane import Lane
from fifo_background._core.position import Position
from fifo_background._core.scheduler import Scheduler
from fifo_background._settings import Settings


class Request:
    """An owner of positions, who skips the rest after a failure."""

    skips_rest = True
    named = True
    label = "POST /"
    has_ended = True


class Model:
    """A scheduler whose time is `now`."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.scheduler = Scheduler(self.settings)
        self.now = 0.0
        self.scheduler.clock = lambda: self.now

    def position(self, key: Any, owner: Any = None, *, take: bool = True) -> Position:
        """A position without jobs; `take`: in the queue."""
        position = Position(self.scheduler.lanes.of(key), owner)
        position.added = []
        position.taken = self.now
        if take:
            self.scheduler.inbox.append(position)
        return position

    def add(self, position: Position, **options: Any) -> Job[Any]:
        """A job that is added to a position, and not ready."""
        options = {"task": BackgroundTask(print), **options}
        task = options.pop("task")
        job: Job[Any] = Job(task, None, self.settings.options.replace(**options), self.scheduler.waiting)
        job._position = position
        if job._options.keep == "latest":
            job._make_special().function = "function"
        self.scheduler.accept(job, position.lane, self.scheduler.clock())
        position.added.append(job)
        return job

    def job(self, key: Any, owner: Any = None, *, ready: bool = True, **options: Any) -> Job[Any]:
        """A job in a position of its own."""
        job = self.add(self.position(key, owner), **options)
        if ready:
            self.scheduler.inbox.append(job)
        return job

    def start(self) -> Lane:
        """Start the first job of the next lane."""
        lane = self.start_next()
        assert lane is not None
        return lane

    def start_next(self) -> Lane | None:
        self.scheduler.drain()
        check(self.scheduler)
        lane = self.scheduler.turns.start_next()
        check(self.scheduler)
        return lane

    def end(self, lane: Lane, state: JobState = JobState.SUCCEEDED, outcome: Any = None) -> Job[Any] | None:
        """End what runs in the lane; the next job that was started in it, if the run goes on."""
        assert lane.job is not None
        job = self.scheduler.end(lane, lane.job, state, outcome, lambda: True)
        check(self.scheduler)
        return job

    def fail(self, lane: Lane) -> Job[Any] | None:
        return self.end(lane, JobState.FAILED, self.scheduler.failure(ValueError()))

    def cancel(self, job: Job[Any]) -> None:
        """What `Job.cancel` and the inbox do."""
        assert job._claim()
        job._end(JobState.CANCELLED)
        self.scheduler.inbox.append(job)
        self.scheduler.drain()
