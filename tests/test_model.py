"""A model of the contract and the executor play the same random scripts and agree on every start and end.

The model knows lanes as lists of positions, and nothing of how the executor works. Where the contract leaves
a choice (which of several lanes that can start gets a free slot) it follows the executor, and checks that the
choice was fair. `FIFO_EXAMPLES=5000`, with `-o faulthandler_timeout=0`, plays that many scripts, other ones
each time.

`scripts/mutations.py` breaks the package in each of the ways that docs/testing.md lists, and sees this test
fail.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
import anyio.abc
import pytest
from anyio import wait_all_tasks_blocked
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from fifo_background import (
    BackgroundTasks,
    ExecutorClosed,
    Job,
    JobState,
    OrderedBackgroundMiddleware,
    QueueFull,
    SerialExecutor,
    executor_of,
)
from fifo_background._core.invariants import check
from fifo_background._core.state import TRANSITIONS
from tests.support.asgi import Exchange
from tests.support.loops import VIRTUAL, run

HOLD = 1000.0
KEYS = (None, "a", "b")
S = JobState


class Boom(Exception):
    pass


# -- the model -----------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Position:
    """Of one request or submission; `pending` and `ready` are numbers of tasks, in order."""

    pending: list[int] = field(default_factory=list)
    ready: list[int] = field(default_factory=list)
    taken: float = 0.0
    arriving: bool = False
    rest_is_skipped: bool = True


@dataclass(eq=False)
class Lane:
    queue: list[Position] = field(default_factory=list)
    running: int | None = None
    running_position: Position | None = None
    paused: bool = False
    failed: int | None = None
    failed_position: Position | None = None
    overtaken_by: set[Any] = field(default_factory=set)  # who has started since this lane can start

    def head(self) -> Position | None:
        while self.queue and not (self.queue[0].pending or self.queue[0].ready or self.queue[0].arriving):
            del self.queue[0]
        return self.queue[0] if self.queue else None

    @property
    def can_start(self) -> bool:
        head = self.head()
        free = self.running is None and not self.paused and self.failed is None
        return free and head is not None and bool(head.ready)


@dataclass(eq=False)
class Ask:
    """One request: the tasks it adds, as (key, number of the task), and its positions."""

    adds: list[tuple[Any, int]]
    positions: dict[Any, Position] = field(default_factory=dict)
    added: list[tuple[Any, int]] = field(default_factory=list)
    go: anyio.Event = field(default_factory=anyio.Event)
    fails: bool = False
    over: bool = False


class Model:
    def __init__(
        self, order: str, rest_after_failure: str, stop: bool, lanes: int, max_waiting: int | None
    ) -> None:
        self.order, self.rest_after_failure, self.stop = order, rest_after_failure, stop
        self.most = lanes
        self.max_waiting = max_waiting
        self.lanes = {key: Lane() for key in KEYS}
        self.lane_of: dict[int, Any] = {}
        self.state: dict[int, JobState] = {}
        self.latest: set[int] = set()
        self.wanted: list[tuple[Any, int]] = []  # submits that wait for capacity
        self.now = 0.0

    @property
    def waiting(self) -> int:
        return sum(state in (S.PENDING, S.QUEUED) for state in self.state.values())

    def counted(self, *more: object) -> int:
        """How many tasks wait: with keep="latest" those of one lane, which are of one function, are one."""
        waiting = [n for n, state in self.state.items() if state in (S.PENDING, S.QUEUED)]
        return len({self.token(self.lane_of[n]) if n in self.latest else n for n in waiting}.union(more))

    def token(self, key: Any) -> object:
        return ("latest", key)

    def is_full(self, key: Any, *, latest: bool = False) -> bool:
        """Whether one more task is refused; none overtakes a `submit` that waits."""
        if self.max_waiting is None:
            return False
        more = self.token(key) if latest else "one more"
        if self.counted(more) == self.counted():  # it counts as one that waits already
            return False
        return bool(self.wanted) or self.counted(more) > self.max_waiting

    def submit(self, key: Any, n: int, *, latest: bool = False) -> None:
        position = Position(taken=self.now)
        self.lanes[key].queue.append(position)
        self.lane_of[n], self.state[n] = key, S.PENDING
        if latest:
            self.latest.add(n)
        self.make_ready(key, position, n)

    def make_ready(self, key: Any, position: Position, n: int) -> None:
        position.ready.append(n)
        self.state[n] = S.QUEUED
        if n in self.latest:
            for other in [m for p in self.lanes[key].queue for m in p.ready if m in self.latest and m != n]:
                self.take_out(other, S.SUPERSEDED)

    def take_out(self, n: int, state: JobState) -> None:
        """A task that waits will not run."""
        self.state[n] = state
        for position in [*self.lanes[self.lane_of[n]].queue, *self.outside]:
            for kept in (position.pending, position.ready):
                if n in kept:
                    kept.remove(n)
        self.let_in()

    outside: list[Position] = []  # noqa: RUF012 - replaced, never changed

    def let_in(self) -> None:
        while self.wanted and (self.max_waiting is None or self.counted() < self.max_waiting):
            key, n = self.wanted.pop(0)
            self.submit(key, n)

    # -- requests -------------------------------------------------------------------------------------------

    def arrive(self, ask: Ask) -> None:
        if self.order == "arrived":
            position = ask.positions[None] = Position(taken=self.now, arriving=True)
            self.lanes[None].queue.append(position)

    def add(self, ask: Ask, key: Any, n: int) -> None:
        position = ask.positions.get(key)
        if position is None:
            position = ask.positions[key] = Position(taken=self.now)
            if self.order == "responded":
                self.outside = [*self.outside, position]
            else:
                self.lanes[key].queue.append(position)
        position.rest_is_skipped = self.rest_after_failure == "skip"
        position.pending.append(n)
        ask.added.append((key, n))
        self.lane_of[n], self.state[n] = key, S.PENDING

    def respond(self, ask: Ask) -> None:
        ask.over = True
        if self.order == "responded":
            for key, position in ask.positions.items():
                self.take(key, position)
        for key, n in ask.added:
            if self.state[n] is S.PENDING:
                self.take(key, ask.positions[key])
        for key, n in ask.added:
            if self.state[n] is S.PENDING:
                ask.positions[key].pending.remove(n)
                self.make_ready(key, ask.positions[key], n)
        for position in ask.positions.values():
            position.arriving = False

    def take(self, key: Any, position: Position) -> None:
        if position in self.outside:
            self.outside = [other for other in self.outside if other is not position]
            position.taken = self.now
            self.lanes[key].queue.append(position)

    def fail(self, ask: Ask) -> None:
        ask.over = True
        for position in ask.positions.values():
            position.arriving = False
        for _, n in ask.added:
            if self.state[n] is S.PENDING:
                self.take_out(n, S.DROPPED)

    # -- what happens ---------------------------------------------------------------------------------------

    def lose_held_heads(self, lane: Lane, age: float | None = None) -> None:
        """Held heads lose their positions where they are all that keeps a ready task from starting.

        `age`: that of the head at which the executor stopped, for lack of a slot.
        """
        while (head := lane.head()) is not None and not head.ready and self.now - head.taken != age:
            ready_behind = any(position.ready for position in lane.queue)
            closed = lane.running is not None or lane.paused or lane.failed is not None
            if not ready_behind or closed or self.now < head.taken + HOLD:
                break
            lane.queue.remove(head)
            self.outside = [*self.outside, head]

    def started(self, n: int) -> None:
        key = self.lane_of[n]
        lane = self.lanes[key]
        self.lose_held_heads(lane)
        head = lane.head()
        assert lane.can_start, f"{n} starts in a lane that is not free"
        assert head is not None
        assert head.ready[0] == n, f"{n} starts before {head.ready[0]}"
        running = sum(other.running is not None for other in self.lanes.values())
        assert running < self.most, "too many lanes run"
        for other_key, other in self.lanes.items():
            if other is not lane and other.can_start:
                assert key not in other.overtaken_by, f"{key} overtook {other_key} twice"
                other.overtaken_by.add(key)
        lane.overtaken_by.clear()
        head.ready.pop(0)
        lane.running, lane.running_position = n, head
        self.state[n] = S.RUNNING
        self.let_in()

    def ended(self, n: int, how: str) -> None:
        lane = self.lanes[self.lane_of[n]]
        assert lane.running == n, f"{n} ends and does not run"
        position = lane.running_position
        assert position is not None
        lane.running = lane.running_position = None
        self.state[n] = {"end": S.SUCCEEDED, "fail": S.FAILED, "cancelled": S.CANCELLED}[how]
        if how == "fail":
            if position.rest_is_skipped:
                for rest in list(position.ready):
                    self.take_out(rest, S.SKIPPED)
            if self.stop:
                lane.failed, lane.failed_position = n, position

    def retry(self, key: Any, n: int) -> None:
        lane = self.lanes[key]
        assert lane.failed_position is not None
        lane.failed = None
        self.lane_of[n] = key
        if n in self.latest and any(m in self.latest for position in lane.queue for m in position.ready):
            self.state[n] = S.SUPERSEDED
            return
        self.state[n] = S.QUEUED
        skips = lane.failed_position.rest_is_skipped
        taken = lane.failed_position.taken
        lane.queue.insert(0, Position(taken=taken, ready=[n], rest_is_skipped=skips))

    def peek(self, key: Any) -> int | None:
        lane = self.lanes[key]
        if lane.failed is not None:
            return lane.failed
        head = lane.head()
        return None if head is None else next(iter([*head.ready, *head.pending]), None)

    def head_age(self, key: Any) -> float | None:
        head = self.lanes[key].head()
        return None if head is None else self.now - head.taken

    def clear(self, key: Any) -> None:
        lane = self.lanes[key]
        lane.failed = None
        for position in list(lane.queue):
            for n in [*position.ready, *position.pending]:
                self.take_out(n, S.CANCELLED)

    def close(self) -> None:
        """What is held, paused, stopped or waits for capacity is given up; the rest is still to run."""
        self.wanted.clear()
        for lane in self.lanes.values():
            closed = lane.paused or lane.failed is not None
            lane.paused, lane.failed, self.stop = False, None, False
            for position in list(lane.queue):
                position.arriving = False
                for n in [*(position.ready if closed else ()), *position.pending]:
                    self.take_out(n, S.DROPPED)
        for n in [n for position in self.outside for n in position.pending]:
            self.take_out(n, S.DROPPED)

    def give_up(self) -> None:
        """The time for that is over."""
        for lane in self.lanes.values():
            for n in [n for position in lane.queue for n in position.ready]:
                self.take_out(n, S.DROPPED)

    def check_settled(self) -> None:
        """Nothing that could start waits."""
        running = sum(lane.running is not None for lane in self.lanes.values())
        for lane in self.lanes.values():
            if not lane.can_start:
                lane.overtaken_by.clear()
        if running < self.most:
            for lane in self.lanes.values():
                self.lose_held_heads(lane)
            assert not any(lane.can_start for lane in self.lanes.values()), "a lane is left behind"


# -- the executor --------------------------------------------------------------------------------------------


class Moves:
    """Watches every write to what `Job.state` is made of, and checks each move against `TRANSITIONS`."""

    def __init__(self) -> None:
        self.seen: set[tuple[JobState, JobState]] = set()

    @property
    def wrong(self) -> list[tuple[JobState, JobState]]:
        return [(before, after) for before, after in self.seen if after not in TRANSITIONS[before]]

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("_own_state", "_queued"):
                patch.setattr(Job, name, self.watch(Job.__dict__[name]))
            yield

    def watch(self, slot: Any) -> Any:
        def write(job: Job[Any], value: Any) -> None:
            try:
                before = job.state
            except AttributeError:  # the job is being made
                slot.__set__(job, value)
                return
            slot.__set__(job, value)
            after = job.state
            if after is not before or (before.ended and isinstance(value, JobState)):
                self.seen.add((before, after))

        return property(slot.__get__, write)


class Play:
    """Does each step of a script with the executor and the model, and compares."""

    def __init__(self, setup: dict[str, Any], group: anyio.abc.TaskGroup, moves: Moves) -> None:
        self.group = group
        self.moves = moves
        self.model = Model(**setup)
        self.events: list[tuple[str, int, float]] = []
        self.gates: dict[int, anyio.Event] = {}
        self.failing: set[int] = set()
        self.jobs: dict[int, Job[Any]] = {}
        self.asks: list[Ask] = []
        self.count = 0
        self.to_be_cancelled: int | None = None
        self.app = Starlette()
        self.app.add_route("/", self.handle)
        self.app.add_middleware(
            OrderedBackgroundMiddleware,
            order=setup["order"],
            may_add_tasks=(lambda scope: True) if setup["order"] == "arrived" else None,
            rest_after_failure=setup["rest_after_failure"],
            lane_after_failure="stop" if setup["stop"] else "continue",
            max_lanes_running=setup["lanes"],
            max_waiting=setup["max_waiting"],
            hold_timeout=HOLD,
        )

    async def task(self, n: int) -> None:
        self.events.append(("start", n, anyio.current_time()))
        try:
            await self.gates[n].wait()
        except BaseException:
            self.events.append(("cancelled", n, anyio.current_time()))
            raise
        self.events.append(("fail" if n in self.failing else "end", n, anyio.current_time()))
        if n in self.failing:
            raise Boom

    async def handle(self, request: Request) -> Response:
        ask: Ask = request.scope["ask"]
        tasks = BackgroundTasks()
        for key, n in ask.adds:
            self.jobs[n] = tasks.lane(key).add_task(self.task, n)
        await ask.go.wait()
        if ask.fails:
            raise Boom
        return Response(background=tasks)

    @property
    def executor(self) -> SerialExecutor:
        return executor_of(self.app)

    def new(self) -> int:
        self.count += 1
        self.gates[self.count] = anyio.Event()
        return self.count

    async def settle(self) -> None:
        """Let everything happen that can, and tell the model what did."""
        for _ in range(3):
            await wait_all_tasks_blocked()
        told, self.events = self.events, []
        begun: list[int] = []  # trio lets the tasks that were started together begin in any order
        for kind, n, self.model.now in told:
            if kind == "start":
                begun.append(n)
            else:
                self.model.ended(n, kind)
            while known := [m for m in begun if m in self.model.lane_of]:
                begun.remove(known[0])
                self.model.started(known[0])
        assert not begun
        if self.to_be_cancelled is not None:
            assert self.model.state[self.to_be_cancelled] is S.CANCELLED
            self.to_be_cancelled = None
        self.model.now = anyio.current_time()
        self.model.check_settled()
        check(self.executor._runner.scheduler)
        assert self.moves.wrong == []
        model, statistics = self.model, self.executor.statistics()
        assert {n: job.state for n, job in self.jobs.items()} == {n: model.state[n] for n in self.jobs}
        assert statistics.waiting == model.waiting
        assert statistics.running == sum(lane.running is not None for lane in model.lanes.values())
        for key in KEYS:
            seen = statistics.lanes.get(key)
            if model.lanes[key].failed is None and seen is not None:
                if told and seen.head_age != model.head_age(key):
                    # a slot was free when the executor looked at this lane, and another lane has it now
                    model.lose_held_heads(model.lanes[key], seen.head_age)
                assert seen.head_age == model.head_age(key)
            head = self.executor.lane(key).peek()
            expected = model.peek(key)
            assert head is (None if expected is None else self.jobs[expected])

    async def step(self, what: str, key: Any, number: int) -> None:
        self.model.now = anyio.current_time()
        getattr(self, f"do_{what}")(key, number)
        if what == "wait":
            await anyio.sleep((600.0, 1100.0)[number % 2])
            self.model.now = anyio.current_time()
        await self.settle()

    # -- steps ----------------------------------------------------------------------------------------------

    def do_wait(self, key: Any, number: int) -> None:
        """Time passes."""

    def do_submit(self, key: Any, number: int, *, latest: bool = False) -> None:
        n = self.new()
        lane = self.executor.lane(key, keep="latest") if latest else self.executor.lane(key)
        if self.model.is_full(key, latest=latest):
            with pytest.raises(QueueFull):
                lane.submit_nowait(self.task, n)
        else:
            self.jobs[n] = lane.submit_nowait(self.task, n)
            self.model.submit(key, n, latest=latest)

    def do_latest(self, key: Any, number: int) -> None:
        self.do_submit(key, number, latest=True)

    def do_submit_waiting(self, key: Any, number: int) -> None:
        n = self.new()

        async def submit() -> None:
            with contextlib.suppress(ExecutorClosed):  # in the end
                self.jobs[n] = await self.executor.lane(key).submit(self.task, n)

        if self.model.is_full(key):
            self.model.wanted.append((key, n))
        else:
            self.model.submit(key, n)
        self.group.start_soon(submit)

    def do_request(self, key: Any, number: int) -> None:
        keys = [key, *[key][: number % 2], *[KEYS[number % 3]][: number // 2 % 2]]
        ask = Ask([(k, self.new()) for k in keys])
        self.model.arrive(ask)
        for k, n in ask.adds:
            if self.model.is_full(k):
                self.model.fail(ask)
                break
            self.model.add(ask, k, n)
        self.asks.append(ask)
        self.group.start_soon(self.ask, ask)

    async def ask(self, ask: Ask) -> None:
        await Exchange(self.app, "/", ask=ask).run()

    def open_ask(self, number: int) -> Ask | None:
        asks = [ask for ask in self.asks if not ask.over]
        return asks[number % len(asks)] if asks else None

    def do_respond(self, key: Any, number: int) -> None:
        ask = self.open_ask(number)
        if ask is not None:
            ask.go.set()
            self.model.respond(ask)

    def do_raise(self, key: Any, number: int) -> None:
        ask = self.open_ask(number)
        if ask is not None:
            ask.fails = True
            ask.go.set()
            self.model.fail(ask)

    def running(self) -> list[int]:
        return [lane.running for lane in self.model.lanes.values() if lane.running is not None]

    def do_end(self, key: Any, number: int) -> None:
        running = self.running()
        if running:
            self.gates[running[number % len(running)]].set()

    def do_fail(self, key: Any, number: int) -> None:
        self.failing.update(self.running())
        self.do_end(key, number)

    def do_cancel(self, key: Any, number: int) -> None:
        if self.jobs:
            n = list(self.jobs)[number % len(self.jobs)]
            state = self.model.state[n]
            assert self.jobs[n].cancel() is not state.ended
            if state is S.RUNNING:
                self.to_be_cancelled = n
            if state in (S.PENDING, S.QUEUED):
                self.model.take_out(n, S.CANCELLED)

    def do_pause(self, key: Any, number: int) -> None:
        self.executor.lane(key).pause()
        self.model.lanes[key].paused = True
        self.model.lanes[key].overtaken_by.clear()

    def do_resume(self, key: Any, number: int) -> None:
        self.executor.lane(key).resume()
        self.model.lanes[key].paused = False

    def do_skip(self, key: Any, number: int) -> None:
        expected = self.model.peek(key)
        skipped = self.executor.lane(key).skip_head()
        assert skipped is (None if expected is None else self.jobs[expected])
        if self.model.lanes[key].failed is not None:
            self.model.lanes[key].failed = None
        elif expected is not None:
            self.model.take_out(expected, S.SKIPPED)

    def do_retry(self, key: Any, number: int) -> None:
        lane = self.model.lanes[key]
        if lane.failed is None:
            with pytest.raises(RuntimeError, match="has not stopped"):
                self.executor.lane(key).retry_head()
            return
        n = lane.failed
        self.gates[n] = anyio.Event()
        self.failing.discard(n)
        self.jobs[-n] = self.jobs[n]  # the failed handle stays as it is
        self.model.state[-n] = S.FAILED
        self.model.lane_of[-n] = key
        self.jobs[n] = self.executor.lane(key).retry_head()
        self.model.retry(key, n)

    def do_clear(self, key: Any, number: int) -> None:
        self.executor.lane(key).clear()
        self.model.clear(key)

    async def close(self, end: str) -> None:
        """The executor is closed while requests are open and tasks wait and run."""
        self.model.close()
        self.group.start_soon(self.executor.aclose)
        await self.settle()
        while self.running():
            self.do_end(None, 0)
            await self.settle()
            if end == "cancel":
                cancelled = self.running()
                await anyio.sleep(31)  # the drain timeout is 30 s
                self.model.give_up()
                await self.settle()
                assert all(self.jobs[n].state is S.CANCELLED for n in cancelled)
        for ask in self.asks:
            ask.go.set()
            if not ask.over:
                self.model.fail(ask)  # what it has added does not run
                await self.settle()

    async def finish(self, end: str) -> None:
        """Everything ends, and nothing is left."""
        if end != "join":
            await self.close(end)
        for ask in self.asks:
            ask.go.set()
            if not ask.over:
                self.model.respond(ask)
                await self.settle()
        if end == "join":
            for key in KEYS:
                if self.model.lanes[key].failed is not None:
                    self.do_skip(key, 0)
                    await self.settle()
                if self.model.lanes[key].paused:
                    self.do_resume(key, 0)
                    await self.settle()
            while self.running():
                self.do_end(None, 0)
                await self.settle()
                for key in KEYS:
                    if self.model.lanes[key].failed is not None:
                        self.do_skip(key, 0)
                await self.settle()
            assert self.model.waiting == 0
        for gate in self.gates.values():
            gate.set()
        executor = self.executor
        await executor.aclose()
        for _ in range(3):
            await wait_all_tasks_blocked()
        assert all(job.state.ended for job in self.jobs.values())
        self.check_nothing_is_left()

    def check_nothing_is_left(self) -> None:
        runner = self.executor._runner
        scheduler, capacity = runner.scheduler, runner.scheduler.capacity
        check(scheduler)
        assert (scheduler.unfinished, scheduler.waiting, scheduler.turns.occupied) == (0, set(), set())
        assert (scheduler.lanes.by_key, scheduler.lanes.default.head()) == ({}, None)
        assert scheduler.lanes.default.idle
        assert (scheduler.slots.free, runner.waits.rings.of_jobs, runner.tasks_alive) == (
            self.model.most,
            {},
            0,
        )
        for queue in (scheduler.turns.due, scheduler.inbox, scheduler.slots.returning, capacity.wanted):
            assert not queue
        for left in (scheduler.woken, scheduler.effects, scheduler.gone):
            assert left == []
        assert not capacity._counted


STEPS = [
    *("submit", "submit", "submit_waiting", "submit_waiting", "latest", "request", "request", "request"),
    *("respond", "respond", "respond", "raise", "end", "end", "end", "fail", "fail", "cancel", "wait"),
    *("pause", "resume", "resume", "skip", "retry", "retry", "clear"),
]
scripts = st.lists(
    st.tuples(st.sampled_from(STEPS), st.sampled_from(KEYS), st.integers(0, 30)), min_size=12, max_size=60
)
setups = st.fixed_dictionaries(
    {
        "order": st.sampled_from(["added", "arrived", "responded"]),
        "rest_after_failure": st.sampled_from(["skip", "run"]),
        "stop": st.booleans(),
        "lanes": st.integers(1, 3),
        "max_waiting": st.sampled_from([None, None, None, 2, 4]),
    }
)
EXAMPLES = int(os.environ.get("FIFO_EXAMPLES", "0"))
PLAIN = {"order": "added", "rest_after_failure": "skip", "stop": False, "lanes": 3, "max_waiting": None}
# What random scripts come to only now and then: (settings, script, end).
BY_HAND: list[tuple[dict[str, Any], list[tuple[str, Any, int]], str]] = [
    # the first of two tasks of a request fails
    ({}, [("request", "a", 1), ("respond", None, 0), ("fail", None, 0)], "join"),
    ({"rest_after_failure": "run"}, [("request", "a", 1), ("respond", None, 0), ("fail", None, 0)], "join"),
    # the head of a stopped lane is retried while a newer task of its function waits
    ({"stop": True}, [("latest", "a", 0), ("latest", "a", 0), ("fail", None, 0), ("retry", "a", 0)], "join"),
    ({}, [("latest", "a", 0)] * 4, "join"),
    ({"max_waiting": 1}, [("latest", "a", 0)] * 4, "join"),
    (
        {"max_waiting": 1},
        [*[("latest", "a", 0)] * 2, ("submit_waiting", "b", 0), ("latest", "a", 0)],
        "join",
    ),
    # skipped, with something behind
    ({"stop": True}, [("submit", "a", 0), ("submit", "a", 0), ("fail", None, 0), ("skip", "a", 0)], "join"),
    # two lanes fail, one of them in the end
    ({"stop": True}, [("submit", "a", 0), ("submit", "b", 0), ("fail", None, 0)], "join"),
    # a lane is paused, or stops, in the middle of a request's tasks
    ({}, [("request", "a", 1), ("respond", None, 0), ("pause", "a", 0), ("end", None, 0)], "join"),
    (
        {"stop": True, "rest_after_failure": "run"},
        [("request", "a", 1), ("respond", None, 0), ("fail", None, 0)],
        "join",
    ),
    # three wait for capacity
    ({"max_waiting": 1}, [("submit", "a", 0)] * 2 + [("submit_waiting", "a", 0)] * 3, "join"),
    # a held head with nothing behind, and one that is lost while another lane gets the slot
    ({}, [("request", "a", 0), ("wait", None, 1), ("respond", None, 0)], "join"),
    (
        # capacity in the middle of a wait
        {"order": "arrived", "lanes": 1, "max_waiting": 2},
        [
            *(("request", "a", 1), ("skip", "a", 5), ("submit", None, 10)),
            *(("submit_waiting", "a", 5), ("wait", None, 5), ("raise", "b", 14)),
        ],
        "join",
    ),
    (
        {"lanes": 1},
        [
            *(("submit", "b", 0), ("request", "a", 0), ("wait", None, 1), ("request", "a", 0)),
            *(("submit", "a", 0), ("submit", None, 0), ("end", None, 0)),
        ],
        "join",
    ),
]


async def play(setup: dict[str, Any], script: list[tuple[str, Any, int]], end: str) -> None:
    async with anyio.create_task_group() as group:
        moves = Moves()
        game = Play(setup, group, moves)
        await Exchange(game.app, "/none").run()  # makes the executor
        with moves.watched():
            for step in script:
                await game.step(*step)
            await game.finish(end)
        assert moves.wrong == []


def by_hand(test: Any) -> Any:
    for setup, script, end in BY_HAND:
        test = example({**PLAIN, **setup}, script, end)(test)
    return test


@pytest.mark.version_free
@pytest.mark.parametrize("loop", VIRTUAL)
def test_model(loop: str) -> None:
    """The executor starts and ends what the model says, in the same order, whatever is done to it."""

    @settings(
        max_examples=EXAMPLES or 300,
        deadline=None,
        derandomize=not EXAMPLES,
        database=None,
        suppress_health_check=list(HealthCheck),
        # to find out quickly whether there is a failure, `scripts/mutations.py` does without a small one
        phases=[Phase.explicit, Phase.generate] if "FIFO_NO_SHRINK" in os.environ else list(Phase),
        print_blob=False,
    )
    @by_hand
    @given(setups, scripts, st.sampled_from(["join", "join", "drain", "cancel"]))
    def plays(setup: dict[str, Any], script: list[tuple[str, Any, int]], end: str) -> None:
        run(loop, partial(play, setup, script, end), virtual=True)

    plays()
