"""A linked list whose elements carry the links: every operation takes constant time, anywhere in the list."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

__all__ = ("Chain",)

N = TypeVar("N", bound=Any)


class Chain(Generic[N]):
    """Elements have `previous` and `next`, and are in one chain at most."""

    __slots__ = ("first", "last")

    first: N | None
    last: N | None

    def append(self, node: N) -> None:
        last = self.last
        if last is None:
            self.first = node
        else:
            last._next = node
            node._previous = last
        self.last = node

    def prepend(self, node: N) -> None:
        first = self.first
        if first is None:
            self.last = node
        else:
            first._previous = node
            node._next = first
        self.first = node

    def remove(self, node: N) -> None:
        before, after = node._previous, node._next
        if before is None:
            self.first = after
        else:
            before._next = after
            node._previous = None
        if after is None:
            self.last = before
        else:
            after._previous = before
            node._next = None

    def __iter__(self) -> Iterator[N]:
        node = self.first
        while node is not None:
            after = node._next
            yield node
            node = after
