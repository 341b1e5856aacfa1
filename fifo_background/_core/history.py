"""The history of an executor: what has ended, in the order of its end. It keeps no `Job`.

A move notes what has ended (`note`); after the move the loop completes these records (`complete`), as that
may run users' code: an error's `__str__`, and the destructors of what the history forgets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from itertools import islice
from typing import Any

from fifo_background._core.job import Job, Progress
from fifo_background._core.plain import LONGEST_TEXT, as_plain, text_of
from fifo_background._core.position import Owner, Position
from fifo_background._core.state import FAILED, SUCCEEDED, JobState
from fifo_background._settings import Settings

__all__ = ("History", "Record")


class Record:
    """One job that has ended. Times are the loop's, in seconds."""

    __slots__ = (
        "added",
        "ended",
        "error",
        "key",
        "name",
        "number",
        "omitted",
        "outcome",
        "owner",
        "progress",
        "request",
        "result",
        "retry_of",
        "size",
        "started",
        "state",
    )

    def __init__(self, job: Job[Any], position: Position, state: JobState, ended: float) -> None:
        self.number: int = job._number
        self.name: str = job.name
        self.key: Hashable = position.lane.key
        self.state: JobState = state
        self.added: float = job._added
        self.started: float | None = job._started
        self.ended: float = ended
        special = job._special
        self.progress: Progress | None = None if special is None else special.progress
        self.retry_of: int | None = None if special is None else special.retry_of
        # until it is completed
        self.owner: Owner | None = position.owner
        self.outcome: Any = None
        self.request: str | None = None
        self.error: tuple[str, str] | None = None  # type and message
        self.result: Any = None  # a copy in terms of JSON
        self.omitted: str | None = None  # why there is no result
        self.size: int = 0  # of the result, about, in bytes


class History:
    """The last records: at most `history` of them, none older than `history_seconds`."""

    def __init__(self, settings: Settings) -> None:
        self.records: deque[Record] = deque()
        self.ended: int = 0  # how many jobs have ended; the number of the last record, in the order of ends
        self._most = settings.history
        self._seconds = settings.history_seconds
        self._results = settings.results
        self._most_bytes = settings.results_bytes
        self._bytes = 0  # of all results

    def note(self, job: Job[Any], position: Position, state: JobState, ended: float) -> Record:
        """In a move: a job has ended. Returns what is to be completed after the move."""
        record = job._record = Record(job, position, state, ended)
        if state is FAILED or self._results:
            record.outcome = job._outcome
        return record

    def complete(self, noted: list[Record]) -> None:
        """Outside of moves: make the records that were noted part of the history; empties the list."""
        fresh = noted.copy()
        noted.clear()
        for record in fresh:
            owner, outcome = record.owner, record.outcome
            record.owner = record.outcome = None
            if owner is not None and owner.named:
                record.request = str(owner)[:LONGEST_TEXT]
            if record.state is FAILED:
                record.error = type(outcome.error).__qualname__, text_of(outcome.error)
            elif self._results and record.state is SUCCEEDED:
                self._keep_result(record, outcome)
            self.records.append(record)
            self.ended += 1
        if fresh:
            self.forget_old(fresh[-1].ended)

    def _keep_result(self, record: Record, result: object) -> None:
        record.result, record.size, record.omitted = as_plain(result, self._most_bytes // 10)
        self._bytes += record.size

    def forget_old(self, now: float) -> None:
        """Forget the oldest records that are too many, or too old, or whose results take too much."""
        records = self.records
        while records and (len(records) > self._most or records[0].ended < now - self._seconds):
            self._bytes -= records.popleft().size
        if self._bytes > self._most_bytes:
            for record in records:
                if record.size:
                    self._bytes -= record.size
                    record.result, record.size, record.omitted = None, 0, "newer results took its place"
                if self._bytes <= self._most_bytes:
                    break

    def after(self, ended: int, most: int) -> list[Record] | None:
        """The records behind the one with this number in the order of ends. None if some are forgotten."""
        first = len(self.records) - (self.ended - ended)
        if first < 0 or ended > self.ended:
            return None
        return list(islice(self.records, first, first + most))

    def find(self, number: int) -> Record | None:
        """The record of the job with that number."""
        return next((record for record in self.records if record.number == number), None)
