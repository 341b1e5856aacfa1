"""The lanes of an executor, by key."""

from __future__ import annotations

from collections.abc import Hashable

from fifo_background._core.lane import Lane

__all__ = ("Lanes",)


class Lanes:
    """All lanes that there are. Any thread may ask for one; the loop alone lists and retires them.

    A thread may have a lane in hand that is retired just now: the loop looks it up anew (`Lane.listed`).
    """

    def __init__(self) -> None:
        self.by_key: dict[Hashable, Lane] = {}  # all but the default lane, which stays
        self.default: Lane = Lane(None)
        self.default.listed = True

    def of(self, key: Hashable) -> Lane:
        """The lane of a key that `key_of` returned. Raises what the key's own `__eq__` raises."""
        if key is None:
            return self.default
        lane = self.by_key.get(key)
        return self.by_key.setdefault(key, Lane(key)) if lane is None else lane  # one atomic act

    def find(self, key: Hashable) -> Lane | None:
        """The lane of that key, if there is one."""
        return self.default if key is None else self.by_key.get(key)

    def list_lane(self, lane: Lane) -> Lane:
        """The lane of that key: a thread may have made another one, or have one that was just retired."""
        try:
            lane = self.by_key.setdefault(lane.key, lane)
        except Exception:  # the key's own `__eq__`, which did not raise where the key was given
            pass
        lane.listed = True
        return lane

    def retire(self, lane: Lane) -> None:
        """Of a key whose lane is idle nothing is left behind."""
        lane.listed = False
        try:
            if self.by_key.get(lane.key) is lane:
                del self.by_key[lane.key]
        except Exception:  # some other key's `__eq__`
            pass
        if not self.by_key:
            self.by_key.clear()  # gives back the memory that many keys needed

    def all(self) -> list[Lane]:
        return [self.default, *list(self.by_key.values())]
