"""Looks at the whole of an executor in bounded steps: between them the event loop gets its turn."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Hashable
from itertools import chain
from typing import TYPE_CHECKING, Any

import anyio.lowlevel

from fifo_background._core.history import Record, Timing
from fifo_background._core.job import Job
from fifo_background._core.job_record import JobRecord
from fifo_background._core.lane import Lane, look_up, plain_key
from fifo_background._core.lane_picture import LaneList, LaneRecord, age_of_head, of_lane, urgency
from fifo_background._core.names import text_of_key
from fifo_background._core.picture import of_jobs, of_record
from fifo_background._core.state import JobState

if TYPE_CHECKING:
    from fifo_background._run.runner import Runner

__all__ = ("Overview",)

# So many jobs or lanes are looked at, or pictures made, in one turn of the loop: a few milliseconds of work.
_STEP, _PICTURES = 500, 10


class Overview:
    """Pictures of one runner's jobs and lanes."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._scheduler = runner.scheduler

    def _look(self) -> None:
        """Hear of what others have done."""
        scheduler = self._scheduler
        self._runner.check_in_loop()
        self._runner.hear()
        now = scheduler.clock()
        scheduler.history.compare_clocks(now)
        scheduler.history.forget_old(now)

    def find(self, id: str) -> Job[Any] | JobRecord | None:
        """The job with that id, or its picture, if that is what is left of it."""
        self._look()
        scheduler = self._scheduler
        number = scheduler.names.number(id)
        if number is None:
            return None
        job = scheduler.names.job(number)
        if job is not None:
            return job
        record = scheduler.history.find(number)
        return None if record is None else of_record(scheduler, record)

    def counts(self) -> dict[str, Any]:
        """How many jobs run, wait, and have ended in which way.

        A thread does not see the end of a job of which the loop has not heard yet.
        """
        self._runner.hear()
        scheduler = self._scheduler
        running = sum(lane.running is not None for lane in list(scheduler.turns.occupied))
        return {
            "state": scheduler.status.value,
            "running": running,
            "max_running": scheduler.slots.most,
            "waiting": len(scheduler.waiting),
            "added": len(scheduler.waiting) + running + sum(scheduler.history.outcomes.values()),
            **{state.value: count for state, count in scheduler.history.outcomes.items() if state.ended},
            "history": self._runner.settings.history,
        }

    def oldest_head(self) -> float | None:
        """The age of the oldest head; from any thread: it only reads."""
        if not self._scheduler.waiting:
            return None
        now = self._scheduler.clock()
        ages = (age_of_head(lane, now) for lane in self._scheduler.lanes.all())
        return max((age for age in ages if age is not None), default=None)

    def timings(self, after: int) -> tuple[list[Timing], int]:
        return self._scheduler.history.timings(after)

    def ended(self, after: int, limit: int) -> tuple[list[JobRecord], int] | None:
        """Pictures of what has ended behind the first `after` ends."""
        self._look()
        if not self._runner.settings.history:
            return [], 0
        records = self._scheduler.history.after(after, limit)
        if records is None:
            return None
        return [of_record(self._scheduler, record) for record in records], after + len(records)

    @property
    def ended_count(self) -> int:
        self._look()
        return self._scheduler.history.ended

    async def jobs(
        self,
        states: Collection[JobState] | None,
        lane: str | None,
        function: str | None,
        search: str | None,
        limit: int,
        before: int | None,
    ) -> list[JobRecord]:
        """The newest jobs that match."""
        self._look()
        scheduler = self._scheduler
        # Copied in the order in which threads move jobs: one that has just left a place is in the next.
        waiting = list(scheduler.waiting)
        running = [lane.job if lane.trip is None else lane.trip.job for lane in scheduler.turns.occupied]
        self._runner.hear()
        stack: list[Any] = [
            *(job for job in running if job is not None),
            *waiting,
            *scheduler.history.records,
        ]
        try:
            key: Hashable = None if lane is None else scheduler.names.key(lane)
        except KeyError:
            return []
        sought = None if search is None else search.casefold()
        newest: list[tuple[int, int, Any]] = []  # a heap: the smallest number of those that are kept is first
        seen: set[int] = set()
        for start in range(0, len(stack), _STEP):
            if start:
                await anyio.lowlevel.checkpoint()
            for one in stack[start : start + _STEP]:
                number = one._number if isinstance(one, Job) else one.number
                if (before is not None and number >= before) or number in seen or not number:
                    continue
                if len(newest) == limit and number < newest[0][0]:
                    continue
                if self._matches(one, states, lane is not None, key, function, sought):
                    seen.add(number)
                    (heapq.heappush if len(newest) < limit else heapq.heapreplace)(
                        newest, (number, id(one), one)
                    )
        return await self._pictures([one for _, _, one in newest])

    async def _pictures(self, chosen: Collection[Job[Any] | Record]) -> list[JobRecord]:
        """The newest first."""
        # Jobs of one lane together, so that the lane is looked through once for several of them.
        by_lane = sorted(chosen, key=_place_of_lane)
        pictures: list[JobRecord] = []
        for start in range(0, len(by_lane), _PICTURES):
            if start:
                await anyio.lowlevel.checkpoint()
            part = by_lane[start : start + _PICTURES]
            pictures += of_jobs(self._scheduler, [one for one in part if isinstance(one, Job)])
            pictures += [of_record(self._scheduler, one) for one in part if isinstance(one, Record)]
        return sorted(pictures, key=lambda picture: picture.number, reverse=True)

    def _matches(
        self,
        one: Any,
        states: Collection[JobState] | None,
        in_lane: bool,
        key: Hashable,
        function: str | None,
        sought: str | None,
    ) -> bool:
        if states is not None and one.state not in states:
            return False
        if function is not None and one.name != function:
            return False
        if not in_lane and sought is None:
            return True
        position = one._position if isinstance(one, Job) else None
        if position is not None:
            its_key = position.lane.key
        else:
            record = one._record if isinstance(one, Job) else one
            if record is None:  # it has ended meanwhile, without a history
                return False
            its_key = record.key
        if in_lane and not _equal(its_key, key):
            return False
        if sought is None or sought in one.name.casefold():
            return True
        if sought in text_of_key(its_key).casefold():
            return True
        number = one._number if isinstance(one, Job) else one.number
        id_of = self._scheduler.names.id_of
        return sought == str(number) or (len(sought) > 5 and id_of(number).startswith(sought))

    async def lanes(self, limit: int) -> LaneList:
        """The lanes that need a person most, and how many there are; those in the history are idle."""
        self._look()
        scheduler, now = self._scheduler, self._scheduler.clock()
        past = await self._records_by_lane()
        # both at one moment, so that no lane is in both
        known = [lane for lane in scheduler.lanes.all() if not lane.idle]
        keys = {id(plain_key(lane.key)) for lane in known}
        idle = [key for key, _ in past.values() if self._is_idle(key, keys)]
        oldest: tuple[float, Lane] | None = None
        worst: list[tuple[tuple[int, float, int], int, Lane]] = []
        for start in range(0, len(known), _STEP):
            if start:
                await anyio.lowlevel.checkpoint()
            part = known[start : start + _STEP]
            worst = heapq.nsmallest(limit, chain(worst, ((urgency(lane), id(lane), lane) for lane in part)))
            for lane in part:
                age = age_of_head(lane, now)
                if age is not None and (oldest is None or age > oldest[0]):
                    oldest = age, lane
        pictures = []
        for place, (_, _, lane) in enumerate(worst):
            if place and not place % _PICTURES:
                await anyio.lowlevel.checkpoint()
            pictures.append(self._picture(lane.key, lane, past))
        pictures += [self._picture(key, None, past) for key in idle[: limit - len(pictures)]]
        longest = None if oldest is None else self._picture(oldest[1].key, oldest[1], past)
        return LaneList(tuple(pictures), len(known) + len(idle), longest)

    def lane(self, key: Hashable) -> LaneRecord:
        """One lane, whether there is one now or not."""
        self._look()
        scheduler = self._scheduler
        records = [one for one in scheduler.history.records if _equal(one.key, key)]
        return of_lane(scheduler, key, scheduler.lanes.find(key), records)

    def _picture(self, key: Hashable, lane: Lane | None, past: _Past) -> LaneRecord:
        found = look_up(past, key)[1]
        return of_lane(self._scheduler, key, lane, [] if found is None else found[1])

    def _is_idle(self, key: Hashable, known: set[int]) -> bool:
        try:
            lane = self._scheduler.lanes.find(key)
        except Exception:  # the `__eq__` of a key
            return id(plain_key(key)) not in known
        return lane is None or lane.idle

    async def _records_by_lane(self) -> _Past:
        """The history's records by the key of their lane, the newest lanes first."""
        records = list(self._scheduler.history.records)
        lanes: _Past = {}
        for place, record in enumerate(reversed(records)):
            if place and not place % _STEP:
                await anyio.lowlevel.checkpoint()
            where, found = look_up(lanes, record.key)
            if found is None:
                found = lanes[where] = record.key, []
            found[1].append(record)
        for _, listed in lanes.values():
            listed.reverse()
        return lanes


# Keys and records of lanes, as `look_up` finds them.
_Past = dict[Hashable, tuple[Hashable, list[Record]]]


def _place_of_lane(one: Job[Any] | Record) -> int:
    """Of one lane always the same number."""
    position = one._position if isinstance(one, Job) else None
    return 0 if position is None else id(position.lane)


def _equal(one: Hashable, other: Hashable) -> bool:
    try:
        return bool(one == other)
    except Exception:  # a key's own `__eq__`
        return False
