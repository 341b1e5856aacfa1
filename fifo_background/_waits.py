"""Who waits for which job: finds the waits that cannot end. Pure data, as the line is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Union

from fifo_background._job import PENDING, RUNNING, Job
from fifo_background._lane import IN_LINE

if TYPE_CHECKING:
    from fifo_background._request import TrackedRequest

__all__ = ("Party", "Waits", "holds_anything", "holds_back", "jobs_awaited", "name_of_party")

# What can keep a job from ending while it waits: a running job, or a request that holds places.
Party = Union["Job[Any]", "TrackedRequest"]


class Waits:
    """The waits of running jobs and of requests, for jobs, at this moment."""

    def __init__(self) -> None:
        self._of: dict[Party, list[Job[Any]]] = {}

    def add(self, party: Party, job: Job[Any]) -> None:
        self._of.setdefault(party, []).append(job)

    def remove(self, party: Party, job: Job[Any]) -> None:
        jobs = self._of[party]
        jobs.remove(job)
        if not jobs:
            del self._of[party]

    def has(self, party: Party | None) -> bool:
        """Whether the party waits for a job."""
        return party in self._of

    def would_deadlock(self, party: Party, job: Job[Any]) -> bool:
        """Whether `job` cannot end before `party` goes on, if need be by way of others that wait."""
        if not holds_anything(party):
            return False  # no need to look at all who wait
        look = [job]
        seen: set[Party] = set()
        while look:
            job = look.pop()
            if holds_back(party, job):
                return True
            if job.place is not None and job.state is PENDING and job.batch is None:
                look += jobs_awaited(job.place.owner)  # before them its request neither ends nor awaits it
            for other, jobs in self._of.items():
                if other not in seen and holds_back(other, job):
                    seen.add(other)
                    look += jobs
        return False


def jobs_awaited(request: TrackedRequest | None) -> list[Job[Any]]:
    """The jobs that a request waits for, and which have not ended."""
    batch = None if request is None else request.awaits
    if request is None or batch is None or not batch.attached or batch.stopped is not None:
        return []
    jobs = [job for place in request.places.values() for job in place.waiting]
    for place in request.places.values():
        if place.lane is not None and place.lane.runner is not None:
            jobs.append(place.lane.runner.job)
    return [job for job in jobs if job.batch is batch and not job.state.ended]


def holds_anything(party: Party | None) -> bool:
    """Whether something may have to wait for it."""
    return isinstance(party, Job) or (
        party is not None and any(place.held for place in party.places.values())
    )


def holds_back(party: Party, job: Job[Any]) -> bool:
    """Whether `job` cannot end before `party` ends or gives up its place."""
    place = job.place
    if place is None or job.state.ended:
        return False
    if isinstance(party, Job):
        if party.state is not RUNNING or party.place is None:
            return False
        if job.state is RUNNING:
            return place is party.place  # it is the party, or runs inside it
        return place.lane is party.place.lane
    if job.state is RUNNING:
        return False
    if job.state is PENDING and place.owner is party and job in place.added:
        return True
    held = party.places.get(place.key)
    return (
        held is not None
        and held.state is IN_LINE
        and held is not place
        and held.held
        and (place.state is not IN_LINE or held.number < place.number)
    )


def name_of_party(party: Party | None) -> str:
    return party.name if isinstance(party, Job) else str(party)
