"""The jobs of an object that was awaited in a request: it waits for them, also for those added meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fifo_background._core.job import Job

__all__ = ("AwaitedJobs", "HeldBack")


class AwaitedJobs(list[Job[Any]]):
    """The jobs of an object that was awaited in a request, in order. Any thread appends."""

    __slots__ = ("waited",)

    waited: bool
    """Whether the request waits for those that are attached, and raises their failures."""

    def go_on(self) -> None:
        """The request waits again: also for those that were added while it did not."""
        if not self.waited:
            self.waited = True
            for job in self:
                job._attached = job._options.wait and (job._attached or not job.done())

    are_ready = True
    """Whether they were handed over, or are in this moment: one more is handed over by who adds it."""

    def __init__(self, jobs: Iterable[Job[Any]] = ()) -> None:
        super().__init__(jobs)
        self.waited = False

    def last_unfinished(self) -> Job[Any] | None:
        """Jobs of one position end in order: the wait for the last one is mostly the only one."""
        for job in reversed(self):
            if job._attached and not job.done():
                return job
        return None

    def last_look(self) -> Job[Any] | None:
        """For a job that a thread adds just now: see `TrackedRequest.join`."""
        self.waited = False
        return self.last_unfinished()


class HeldBack(AwaitedJobs):
    """The jobs that were awaited before the response of their request had ended: it hands them over later."""

    __slots__ = ("are_ready",)

    def __init__(self) -> None:
        super().__init__()
        self.are_ready = False

    def put(self, jobs: Sequence[Job[Any]], waits: bool, at: int | None = None) -> None:
        """Keep jobs where `at` says: else behind the others.

        Threads may be adding to the list: each change of it is one atomic act.
        """
        self.waited = waits
        self._leave_out(jobs)
        at = len(self) if at is None else at
        self[at:at] = jobs
        for job in jobs:
            job._attached = waits and job._options.wait
        for position in [job._position for job in jobs if job._position is not None]:
            position.keep_context()

    def take(self, new: Sequence[Job[Any]] = ()) -> list[Job[Any]]:
        """They are ready now: what joins them from here on is handed over by itself.

        `new`: those that are awaited now, which run after these.
        """
        self.are_ready = True  # before the look: see `TrackedRequest.join`
        if new:
            self._leave_out(new)
        return [job for job in self if not job.done() and not job._queued]

    def _leave_out(self, jobs: Sequence[Job[Any]]) -> None:
        """One that was added since the last await stands where this await puts it."""
        again, known = set(jobs), len(self)
        self[:known] = [job for job in self[:known] if job not in again]
