"""What this process's worker runs, in numbers: for metrics, which threads of their own read."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from fifo_background._core.history import Timing
from fifo_background._core.state import JobState

__all__ = ("Measured",)

# How many timings are kept until somebody reads them, as in the history of an executor in memory.
_KEPT = 1000


class Measured:
    """The event loop of the worker writes; any thread reads, as it does a `SerialExecutor`."""

    def __init__(self) -> None:
        self.is_read: bool = False
        self.running: int = 0
        self.waiting: int = 0  # in all lanes, and for how many seconds the first: when the worker looked last
        self.oldest: float | None = None
        self._ended: Counter[JobState] = Counter()
        self._timings: deque[tuple[int, Timing]] = deque(maxlen=_KEPT)

    def ended(self, timing: Timing) -> None:
        """A task has ended that the worker has run."""
        self._ended[timing.state] += 1
        self._timings.append((self._ended.total(), timing))

    def counts(self) -> dict[str, Any]:
        self.is_read = True
        ended = {state.value: self._ended[state] for state in JobState if state.ended}
        return {"running": self.running, "waiting": self.waiting, **ended}

    def oldest_head(self) -> float | None:
        self.is_read = True
        return self.oldest

    def timings(self, after: int = 0) -> tuple[list[Timing], int]:
        """How long what has ended behind the first `after` has waited and run, and what to give next."""
        kept = list(self._timings)  # one atomic act
        return [timing for place, timing in kept if place > after], kept[-1][0] if kept else after
