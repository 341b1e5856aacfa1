"""A lane: one queue of positions, and what runs in it. Also the keys under which lanes are found."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Protocol, TypeVar
from uuid import UUID

from fifo_background._core.chain import Chain
from fifo_background._core.job import Job
from fifo_background._core.position import GONE, IN_QUEUE, OUTSIDE, Position

__all__ = ("Cancellable", "Lane", "LaneKey", "Trip", "Wanted", "key_of", "look_up", "plain_key")

T = TypeVar("T")

# Types whose values hash and compare without running anybody's code, and always the same.
_PLAIN = frozenset({str, int, bytes, bool, float, type(None), UUID})


class LaneKey:
    """Any other key: hashed once, where it is given, so that it stays what it was."""

    __slots__ = ("hash", "key")

    def __init__(self, key: Hashable) -> None:
        self.key: Hashable = key
        self.hash: int = hash(key)

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        theirs = other.key if type(other) is LaneKey else other
        return self.key is theirs or bool(self.key == theirs)


def key_of(key: Hashable) -> Hashable:
    """The key under which a lane is found. Raises what the key's own `__hash__` raises."""
    if type(key) in _PLAIN or (type(key) is tuple and all(type(part) in _PLAIN for part in key)):
        return key
    return LaneKey(key)


def plain_key(key: Hashable) -> Hashable:
    """The key as the user gave it."""
    return key.key if type(key) is LaneKey else key


class Itself:
    """A key whose `__eq__` raises: equal to nothing but itself."""

    __slots__ = ("key",)

    def __init__(self, key: Hashable) -> None:
        self.key: Hashable = key

    def __hash__(self) -> int:
        return id(self.key)

    def __eq__(self, other: object) -> bool:
        return type(other) is Itself and other.key is self.key


def look_up(known: Mapping[Hashable, T], key: Hashable) -> tuple[Hashable, T | None]:
    """Under which a lane's key is, or would be, in `known`, and what is there. It raises nothing."""
    try:
        return key, known.get(key)
    except Exception:
        itself = Itself(plain_key(key))
        return itself, known.get(itself)


class Cancellable(Protocol):
    """A running task, or a call that waits for its time."""

    def cancel(self) -> Any: ...


class Trip:
    """One trip of a lane to a worker thread, which runs a batch of sync jobs.

    The loop appends to `jobs` and sets `stop`; the thread takes from `jobs`, and writes `job`.
    """

    __slots__ = ("alone", "job", "jobs", "last", "reached", "stop")

    def __init__(self) -> None:
        self.jobs: deque[Job[Any]] = deque()
        self.last: Job[Any] | None = None  # that was given; None if the loop has heard of its end
        self.reached: int = 0  # the number of the last position of which jobs were given
        self.job: Job[Any] | None = None  # that runs; set before it is claimed
        self.stop: bool = False  # start no more jobs
        self.alone: bool = False  # its one job has a timeout, so that its time can be watched


class Wanted:
    """A `submit` that waits for capacity."""

    __slots__ = ("error", "job", "position", "waiter")

    def __init__(self, job: Job[Any], position: Position, waiter: Any) -> None:
        self.job: Job[Any] = job
        self.position: Position = position
        self.waiter: Any = waiter
        self.error: Exception | None = None


class Lane(Chain[Position]):
    """The positions of one lane, in order, and what runs. Written by the event loop."""

    __slots__ = (
        "counted",
        "counts",
        "handle",
        "has_uncounted",
        "in_turn",
        "job",
        "key",
        "latest",
        "lent",
        "listed",
        "number",
        "occupied",
        "paused",
        "paused_at",
        "queued",
        "rings",
        "stopped",
        "stopping",
        "timer",
        "trip",
        "wanted",
    )

    def __init__(self, key: Hashable) -> None:
        self.first: Position | None = None
        self.last: Position | None = None
        self.key: Hashable = key  # as `key_of` returned it
        self.listed: bool = False  # it is the scheduler's lane of this key
        self.number: int = 0  # of the last position that was taken
        self.queued: int = 0  # jobs in the chains of its positions
        # what runs: nothing unless `occupied`
        self.occupied: bool = False
        self.job: Job[Any] | None = None  # on the loop; in a thread it is `trip.job`
        self.trip: Trip | None = None
        self.handle: Cancellable | None = None  # the loop's task that runs it
        self.stopping: bool = False  # somebody asked us to cancel what runs
        self.lent: int = 0  # how many waits of the running job lend its slot
        self.in_turn: bool = False  # it is in `Turns.due`
        self.timer: Cancellable | None = None  # looks again when the head may be lost
        self.rings: float = 0.0  # when the timer does
        self.paused: bool = False
        self.paused_at: float = 0.0
        self.stopped: Position | None = None  # with the failed job in `added`, for a retry
        self.latest: dict[object, Job[Any]] | None = None  # of each function, with keep="latest"
        self.counts: bool = False  # whether `counted` has its waiting jobs: see `Capacity`
        self.counted: dict[object, set[Job[Any]]] = {}
        self.has_uncounted: bool = False  # a job without a limit was added before
        self.wanted: deque[Wanted] | None = None  # wait for capacity in this lane

    def take(self, position: Position) -> None:
        """The named moment, as the loop sees it: `position` is behind everything that is in the queue."""
        position.number = self.number = self.number + 1
        position.lane = self
        if self.last is not position:  # else a KeyboardInterrupt came here the first time
            self.append(position)

    def put_first(self, position: Position) -> None:
        """Before everything in the queue: for a retry, which keeps the order that there was."""
        position.state = IN_QUEUE
        self.prepend(position)

    def lose(self, position: Position) -> None:
        """The head keeps ready jobs waiting for too long: it leaves, and keeps its tasks."""
        self.remove(position)
        position.state = OUTSIDE

    def drop(self, position: Position, gone: list[object]) -> None:
        """A position that has nothing more to run leaves the queue."""
        self.remove(position)
        position.state = GONE  # before the look: a thread looks at the state after it has added a job
        if position.owner is None or position.owner.has_ended:  # else the request has it
            gone.append(position)  # freed later: what it holds is the user's
        if position.added and position.held:
            self.take(position)
            position.state = IN_QUEUE

    def stop_at(self, job: Job[Any], position: Position) -> None:
        """The lane stops at a failed job: what a retry needs is kept."""
        self.stopped = Position(self, position.owner, made_by=position.made_by)
        self.stopped.context = None if position.context is None else position.context.copy()
        self.stopped.taken = position.taken
        self.stopped.added = [job]

    def go_on(self) -> Position | None:
        """It is not stopped anymore. Returns what a retry needs."""
        stopped, self.stopped = self.stopped, None
        return stopped

    def pause(self, now: float) -> None:
        """Its thread, if it has one, starts no more jobs, either."""
        if not self.paused:
            self.paused, self.paused_at = True, now
        if self.trip is not None:
            self.trip.stop = True

    def resume(self) -> None:
        self.paused = False

    def keep_latest(self, job: Job[Any], function: object) -> Job[Any] | None:
        """Of the waiting jobs of a function the latest in the queue stays. Returns the one that does not.

        A job replaces others only when it is ready, so that one whose request fails replaces nothing.
        """
        if self.latest is None:
            self.latest = {}
        other, position = self.latest.get(function), job._position
        before = None if other is None else other._position
        if before is not None and position is not None and before.number > position.number:
            return job
        self.latest[function] = job
        return None if before is None else other

    def forget_latest(self, job: Job[Any]) -> None:
        """The job does not wait anymore."""
        function = None if job._special is None else job._special.function
        if self.latest is not None and self.latest.get(function) is job:
            del self.latest[function]

    def cancel_timer(self) -> None:
        timer, self.timer = self.timer, None
        if timer is not None:
            timer.cancel()

    @property
    def is_open(self) -> bool:
        """Whether its jobs may start."""
        return not self.paused and self.stopped is None

    @property
    def running(self) -> Job[Any] | None:
        """The job that runs, on the loop or in a thread."""
        job = self.job if self.trip is None else self.trip.job
        return job if job is not None and not job.done() else None

    @property
    def waiting(self) -> Iterator[Job[Any]]:
        """What waits in its positions, in order."""
        for position in self:
            yield from position.waiting

    def head(self) -> Position | None:
        """The position that is next, if any."""
        return next((p for p in self if p.arriving or next(p.waiting, None) is not None), None)

    def peek(self) -> Job[Any] | None:
        """The failed job of a stopped lane, else the one that is next."""
        if self.stopped is not None:
            return self.stopped.added[0]
        head = self.head()
        return None if head is None else next(head.waiting, None)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to remember about it."""
        return not (self.first or self.occupied or self.wanted or self.counted) and self.is_open
