"""The history of an executor: what has ended, in the order of its end. It keeps no `Job`.

A move adds the records. What may run users' code follows after the move (`effects.py`): an error's
`__str__`, the copy of a result. Records that are forgotten are freed after the move, too.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable
from itertools import islice
from time import time
from typing import Any, NamedTuple, cast

from fifo_background._core.job import Job
from fifo_background._core.plain import LONGEST_TEXT, as_plain, text_of, type_name
from fifo_background._core.position import Position
from fifo_background._core.special import Progress
from fifo_background._core.state import FAILED, SUCCEEDED, JobState
from fifo_background._settings import Settings

__all__ = ("NOTHING_MORE", "History", "More", "NoHistory", "Record", "Returned", "Timing", "error_of")


def error_of(error: BaseException) -> tuple[str, str]:
    """Its type and what it says. Outside of moves: its own code may run."""
    return type_name(error), text_of(error)


class Timing(NamedTuple):
    """How long one job that has ended has waited and run."""

    name: str
    """The qualified name of the task's function."""
    state: JobState
    waited: float | None
    """Seconds from its adding to its start; None if it has not started."""
    ran: float | None
    """Seconds from its start to its end."""


class More:
    """What few records have."""

    __slots__ = ("error", "omitted", "progress", "result", "retry_of", "size")

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self.retry_of: int | None = None
        self.error: tuple[str, str] | None = None  # its type and its message
        self.result: Any = None  # a copy in terms of JSON
        self.omitted: str | None = None  # why there is no result
        self.size: int = 0  # of the result, about, in bytes


NOTHING_MORE = More()


_new = tuple.__new__


class Record(NamedTuple):
    """One job that has ended. Times are the loop's, in seconds."""

    place: int
    """In the order of ends, from 1."""
    number: int
    name: str
    key: Hashable
    """Of its lane, as `key_of` returned it."""
    state: JobState
    added: float
    started: float | None
    ended: float
    behind: float
    """So many seconds the loop's clock was behind Unix time."""
    request: str | None
    more: More | None


class Returned(NamedTuple):
    """An effect of a move: a job has succeeded, and its result is to be kept."""

    job: Job[Any]
    result: object


class History:
    """How many jobs have ended, and the last records: at most `history` of them."""

    def __init__(self, settings: Settings, gone: list[object], effects: list[Any]) -> None:
        self.outcomes: dict[JobState, int] = dict.fromkeys(JobState, 0)  # how many jobs have ended, and how
        # the loop's clock is so many seconds behind Unix time, which may be set, or the machine may sleep
        self.behind: float = 0.0
        self._compare_at: float = -math.inf
        self.records: deque[Record] = deque()
        self.ended: int = 0  # the number of the last record, in the order of ends
        self._keeps_results = settings.results
        self._gone = gone  # what a move lets go
        self._effects = effects  # what follows after the move
        self._most = settings.history
        self._seconds = settings.history_seconds
        self._most_bytes = settings.results_bytes
        self._with_results: deque[More] = deque()  # in the order of their ends
        self._bytes = 0  # of all results

    def compare_clocks(self, now: float) -> None:
        """Look at Unix time. What is about right is kept, so that times are in order."""
        self._compare_at = now + 1
        behind = time() - now
        if not -1 < behind - self.behind < 1:
            self.behind = behind

    def add(self, job: Job[Any], position: Position, state: JobState, clock: Callable[[], float]) -> None:
        """In a move: a job has ended. A job that is kept keeps no other alive."""
        self.outcomes[state] += 1
        ended = job._ended or clock()
        if ended > self._compare_at:
            self.compare_clocks(ended)
        special, more = job._special, None
        if special is not None and (special.progress is not None or special.retry_of is not None):
            more = More()
            more.progress, more.retry_of = special.progress, special.retry_of
        if state is FAILED:
            more = more or More()
            more.error = type_name(job._outcome.error), ""
        elif self._keeps_results and state is SUCCEEDED:
            more = more or More()
            self._effects.append(Returned(job, job._outcome))
        owner = position.owner
        label = None if owner is None else owner.label
        if label is not None:
            label = label[:LONGEST_TEXT]
        self.ended = place = self.ended + 1
        # not by Record's own `__new__`, which would take twice as long
        record = job._record = _new(
            Record,
            (
                place,
                job._number,
                job._name,
                position.lane.key,
                state,
                job._added,
                job._started,
                ended,
                self.behind,
                label,
                more,
            ),
        )
        records = self.records
        records.append(record)
        if len(records) > self._most:
            self._gone.append(self._forget_first() if self._with_results else records.popleft())

    def _forget_first(self) -> Record:
        record = self.records.popleft()
        if self._with_results and self._with_results[0] is record.more:
            self._forget_result()
        return record

    def _forget_result(self) -> None:
        more = self._with_results.popleft()
        self._bytes -= more.size
        more.result, more.omitted = None, "newer results took its place"

    def keep_message(self, record: Record, error: BaseException) -> None:
        """After the move: what the error says."""
        cast(More, record.more).error = error_of(error)

    def keep_result(self, record: Record, result: object) -> None:
        """After the move: a copy of the result, if there is space for it."""
        if record.place <= self.ended - len(self.records):  # it is forgotten already
            return
        more = cast(More, record.more)
        more.result, more.size, more.omitted = as_plain(result, self._most_bytes // 10)
        if more.omitted is None:
            self._with_results.append(more)
            self._bytes += more.size
        while self._bytes > self._most_bytes:
            self._forget_result()

    def forget_old(self, now: float) -> None:
        """Outside of moves: forget the records that are too old."""
        while self.records and self.records[0].ended < now - self._seconds:
            self._forget_first()

    def after(self, ended: int, most: int) -> list[Record] | None:
        """The records behind the one with this number in the order of ends. None if some are forgotten."""
        first = len(self.records) - (self.ended - ended)
        if first < 0 or ended > self.ended:
            return None
        return list(islice(self.records, first, first + most))

    def timings(self, after: int) -> tuple[list[Timing], int]:
        """What has ended behind that place and is not forgotten, and the last place; from any thread."""
        records = list(self.records)  # one atomic act
        timings = [
            Timing(one.name, one.state, None, None)
            if one.started is None
            else Timing(one.name, one.state, one.started - one.added, one.ended - one.started)
            for one in records
            if one.place > after
        ]
        return timings, records[-1].place if records else after

    def find(self, number: int) -> Record | None:
        """The record of the job with that number."""
        return next((record for record in self.records if record.number == number), None)


class NoHistory(History):
    """`history=0`: how many jobs have ended, and nothing else."""

    def add(self, job: Job[Any], position: Position, state: JobState, clock: Callable[[], float]) -> None:
        self.outcomes[state] += 1
        job._key = position.lane.key  # nothing else knows it from here on
