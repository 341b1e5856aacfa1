"""Who waits for what: finds the waits that cannot end. Pure data, under the line's lock as the line is.

A wait ends when its need is met: a job has ended, or there is room for one. A need has openings, jobs one of
which has to end, or to start; an opening may be held back by parties, running jobs and requests. Who does not
wait goes on some time. So one is stuck whose need has no opening but such as are held back by who is stuck.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Union

from fifo_background._job import PENDING, RUNNING, Job
from fifo_background._lane import IN_LINE

if TYPE_CHECKING:
    from fifo_background._request import TrackedRequest
    from fifo_background._room import Room, Wanted

__all__ = ("Party", "Waits", "holds_back", "jobs_awaited", "name_of_party")

# What can keep a job from ending while it waits: a running job, or a request that holds places.
Party = Union["Job[Any]", "TrackedRequest"]
Need = Union["Job[Any]", "Wanted"]
# Of each opening, by whom it is held back; None if one of them is free.
Openings = Union["list[set[Party]]", None]


class Waits:
    """The waits of running jobs and of requests, at this moment."""

    def __init__(self, room: Room) -> None:
        self._of: dict[Party, list[Need]] = {}
        self._requests: set[TrackedRequest] = set()  # those of them that hold a place
        self._room = room

    def begin(self, party: Party, needs: Sequence[Need]) -> bool:
        """The party waits for all of these. False, and it does not, if it would wait for ever."""
        for need in needs:
            self._of.setdefault(party, []).append(need)
        if not isinstance(party, Job) and any(place.held for place in party.places.values()):
            self._requests.add(party)
        if party in self.stuck([party]):
            self.end(party, needs)
            return False
        return True

    def end(self, party: Party, needs: Sequence[Need]) -> None:
        """The party does not wait for these any more."""
        left = self._of.get(party, [])
        for need in needs:
            left.remove(need)
        if not left:
            self._of.pop(party, None)
            self._requests -= {party}

    def stuck(self, parties: Iterable[Party]) -> set[Party]:
        """Those of these, and of whom they wait for, who wait for ever."""
        found = set(parties)
        look = list(found)
        seen: dict[object, Openings] = {}  # of each need
        while look:
            for need in self._needs(look.pop()):
                for holders in self._openings(need, seen) or ():
                    look += holders - found
                    found |= holders
        while found:
            free = {party for party in found if self._goes_on(party, found, seen)}
            if not free:
                break
            found -= free
        return found

    def _goes_on(self, party: Party, stuck: set[Party], seen: dict[object, Openings]) -> bool:
        for need in self._needs(party):
            openings = self._openings(need, seen)
            if openings is not None and not any(stuck.isdisjoint(holders) for holders in openings):
                return False
        return True

    def _needs(self, party: Party) -> list[Need]:
        """What the party still waits for; a request that awaits its own tasks waits for these."""
        needs: list[Need] = [] if isinstance(party, Job) else [*jobs_awaited(party)]
        for need in self._of.get(party, ()):
            if not need.state.ended if isinstance(need, Job) else need.waits:
                needs.append(need)
        return needs

    def _openings(self, need: Need, seen: dict[object, Openings]) -> Openings:
        key = need if isinstance(need, Job) else self._room.full_lane(need)
        if key not in seen:
            seen[key] = self._look(need)
        return seen[key]

    def _look(self, need: Need) -> Openings:
        openings: list[set[Party]] = []
        for job in [need] if isinstance(need, Job) else self._room.openings(need):
            holders = self._holders(job)
            if not holders:
                return None
            openings.append(holders)
        return openings

    def _holders(self, job: Job[Any]) -> set[Party]:
        """Those who wait, and before whose end, or before they give up a place, the job cannot end."""
        place = job.entry.place
        holders: set[Party] = {request for request in self._requests if holds_back(request, job)}
        runner = None if place is None or place.lane is None else place.lane.runner
        if runner is not None and runner.job in self._of and holds_back(runner.job, job):
            holders.add(runner.job)
        owner = None if place is None else place.owner
        if owner is not None and holds_back(owner, job) and (owner in self._of or jobs_awaited(owner)):
            holders.add(owner)
        return holders


def jobs_awaited(request: TrackedRequest | None) -> list[Job[Any]]:
    """The jobs that a request waits for as it awaits its own tasks, and which have not ended."""
    batch = None if request is None else request.awaits
    if request is None or batch is None or not batch.attached or batch.stopped is not None:
        return []
    jobs = [job for place in request.places.values() for job in place.waiting]
    for place in request.places.values():
        if place.lane is not None and place.lane.runner is not None:
            jobs.append(place.lane.runner.job)
    return [job for job in jobs if job.batch is batch and not job.state.ended]


def holds_back(party: Party, job: Job[Any]) -> bool:
    """Whether `job` cannot end before `party` ends or gives up its place."""
    job = job.entry
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
    if job.state is PENDING and place.owner is party:
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
