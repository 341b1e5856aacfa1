"""The ids under which jobs and lanes are found from outside of the process.

A job's id is made of its number and a code that only this executor can make: nothing has to be kept for it,
and nobody can guess it. A lane's id is opaque, as keys may be tuples, or 1 beside "1".
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Hashable
from hashlib import blake2b
from hmac import compare_digest
from typing import Any
from weakref import WeakValueDictionary

from fifo_background._core.job import Job
from fifo_background._core.lane import plain_key
from fifo_background._core.plain import text_of

__all__ = ("Names",)

# Lanes whose ids are known. Only those that somebody has listed have one.
_MOST_LANES = 10_000


class Names:
    """The ids of one executor."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(16)
        self.epoch: str = secrets.token_hex(4)  # tells this executor's events from others'
        # jobs whose id somebody has; the scheduler keeps those that wait or run
        self._jobs: WeakValueDictionary[int, Job[Any]] = WeakValueDictionary()
        self._lanes: OrderedDict[Hashable, tuple[str, str]] = OrderedDict()
        self._keys: dict[str, Hashable] = {}

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
        """The id and the name of a lane. Outside of moves: the key's own code may run."""
        try:
            known = self._lanes.get(key)
            if known is None:
                plain = plain_key(key)
                known = secrets.token_urlsafe(9), "default" if plain is None else text_of(plain)
                self._lanes[key] = known
                self._keys[known[0]] = key
                if len(self._lanes) > _MOST_LANES:
                    _, (old, _) = self._lanes.popitem(last=False)
                    del self._keys[old]
            else:
                self._lanes.move_to_end(key)
        except Exception:  # the `__eq__` of a key
            return "", f"<{type(plain_key(key)).__name__}>"
        return known

    def key(self, id: str) -> Hashable:
        """The key of a lane that was listed under that id. Raises KeyError."""
        return self._keys[id]
