"""The ids under which jobs and lanes are found from outside of the process.

A job's id is made of its number and a code that only this executor can make: nothing has to be kept for it,
and nobody can guess it. A lane's id is opaque, as keys may be tuples, or 1 beside "1".
"""

from __future__ import annotations

import secrets
from collections.abc import Hashable
from hashlib import blake2b
from hmac import compare_digest
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from fifo_background._core.job import Job
from fifo_background._core.lane import look_up, plain_key
from fifo_background._core.plain import text_of

if TYPE_CHECKING:
    from fifo_background._core.scheduler import Scheduler

__all__ = ("Names", "text_of_key")

# Only lanes that somebody has looked at have an id. From so many on, those that are gone are forgotten.
_MOST_LANES = 10_000


def text_of_key(key: Hashable) -> str:
    """How a lane is named. Outside of moves: the key's own code may run."""
    plain = plain_key(key)
    return "default" if plain is None else text_of(plain)


class Names:
    """The ids of one executor."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._secret = secrets.token_bytes(16)
        self.epoch: str = secrets.token_hex(4)  # tells this executor's events from others'
        # jobs whose id somebody has; the scheduler keeps those that wait or run
        self._jobs: WeakValueDictionary[int, Job[Any]] = WeakValueDictionary()
        self._lanes: dict[Hashable, tuple[str, str]] = {}
        self._keys: dict[str, Hashable] = {}
        self._most_lanes = _MOST_LANES

    def id_of(self, number: int) -> str:
        code = blake2b(str(number).encode(), key=self._secret, digest_size=12).hexdigest()
        return f"{number}-{code}"

    def of_job(self, job: Job[Any]) -> str:
        """The id of a job, by which it is found from here on. From any thread."""
        self._jobs[job._number] = job
        return self.id_of(job._number)

    def number(self, id: str) -> int | None:
        """The number of the job with that id; None if it is no id of this executor."""
        digits = id.partition("-")[0]
        if not (digits.isdecimal() and digits.isascii() and len(digits) < 20 and id.isascii()):
            return None
        number = int(digits)
        return number if compare_digest(self.id_of(number), id) else None

    def job(self, number: int) -> Job[Any] | None:
        """The job, if it is alive and somebody has its id."""
        return self._jobs.get(number)

    def of_lane(self, key: Hashable) -> tuple[str, str]:
        """The id and the name of a lane. From any thread, outside of moves: the key's own code may run."""
        where, known = look_up(self._lanes, key)
        if known is None:
            if len(self._lanes) >= self._most_lanes:
                self._forget_lanes()
            # one atomic act: another thread may be naming the lane, too
            known = self._lanes.setdefault(where, (secrets.token_urlsafe(9), text_of_key(key)))
            self._keys[known[0]] = key
        return known

    def _forget_lanes(self) -> None:
        """Forget the lanes in which nothing is, and of which the history has nothing."""
        records, lanes = self._scheduler.history.records, self._scheduler.lanes.by_key
        past: dict[Hashable, bool] = {None: True}  # the default lane stays
        for record in list(records):  # copied by one atomic act, as are the lanes: other threads go on
            past[look_up(past, record.key)[0]] = True
        for where, (id, _) in list(self._lanes.items()):
            key = self._keys.get(id)  # None if another thread forgets it, or has not put it there yet
            if not (look_up(past, key)[1] or look_up(lanes, key)[1]):
                self._lanes.pop(where, None)
                self._keys.pop(id, None)
        self._most_lanes = max(_MOST_LANES, 2 * len(self._lanes))

    def key(self, id: str) -> Hashable:
        """The key of a lane that was listed under that id. Raises KeyError."""
        return self._keys[id]
