"""Rings of waits, in random schedules: what does not come to its end is told in the log, nothing else is.

Tasks and requests wait for one another at random, in virtual time, with few slots. `FIFO_EXAMPLES=4000` plays
as many schedules of each kind.
"""

from __future__ import annotations

import asyncio
import os
from random import Random
from typing import Any

import anyio
import pytest

from fifo_background import BackgroundTasks, Job, JobNoResult, QueueFull, SerialExecutor, WouldDeadlock
from fifo_background._core.invariants import check
from tests.support.apps import app_of
from tests.support.log import Log
from tests.support.loops import run

EXAMPLES = int(os.environ.get("FIFO_EXAMPLES", "200"))
FOR_EVER = 50_000.0  # virtual seconds
HOLD = 100.0

Program = list[tuple[Any, ...]]


class Schedule:
    """What a seed makes: who does what, and when."""

    def __init__(self, seed: int, requests: bool) -> None:
        self.random = Random(seed)
        choose = self.random.choice
        self.lanes = choose([1, 2, 3, 4])
        self.settings: dict[str, Any] = {
            "max_lanes_running": choose([1, 2, 3]),
            "max_waiting": None if requests else choose([None, 1, 2, 3, 4]),
            "order": choose(["added", "responded", "arrived"]),
            "wait": choose([True, True, False]),
            "hold_timeout": HOLD,
            "lane_key": lambda scope: 0,
        }
        if self.settings["order"] == "arrived":
            self.settings["may_add_tasks"] = lambda scope: True
        self.outsiders = [
            (self.moment(), self.submit("submit", [None, 1], 0)) for _ in range(choose([2, 3, 4, 5]))
        ]
        self.requests = [(self.moment(), self.request()) for _ in range(choose([1, 2, 3]) if requests else 0)]

    def moment(self) -> float:
        return self.random.uniform(1, 40)

    def submit(self, kind: str, limits: list[int | None], depth: int) -> tuple[Any, ...]:
        program = self.task(depth) if depth < 3 else []
        return (kind, self.random.randrange(self.lanes), self.random.choice(limits), program)

    def task(self, depth: int) -> Program:
        return [self.step(depth) for _ in range(self.random.randrange(5))]

    def step(self, depth: int) -> tuple[Any, ...]:
        kind = self.random.choice(
            ["sleep", "sleep", "submit", "submit_nowait", "submit_nowait", "wait", "wait"]
        )
        if kind == "sleep":
            return (kind, self.moment())
        if kind == "wait":
            return (kind, self.random.randrange(1000))
        return self.submit(kind, [None], depth + 1)

    def request(self) -> Program:
        steps = range(self.random.randrange(6))
        add = [self.random.random() < 0.4 for _ in steps]
        return [self.submit("add", [None], 2) if one else self.step(1) for one in add]


class Play:
    """One schedule as it goes."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.jobs: list[Job[Any]] = []
        self.refused: list[str] = []
        self.app = app_of(self.handle, **schedule.settings)

    async def play(self) -> bool:
        """Whether everything has come to its end."""
        outsiders = [after(when, self.do, "outsider", step) for when, step in self.schedule.outsiders]
        requests = [
            after(when, self.app, {"type": "http", "path": str(n)}, None, self.send)
            for n, (when, _) in enumerate(self.schedule.requests)
        ]
        with anyio.move_on_after(FOR_EVER):
            await asyncio.gather(*outsiders, *requests)
            await self.app.executor.join()
            await self.app.executor.aclose()
            self.check_nothing_is_left()
            return True
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.wait(others, timeout=0.01)
        return False

    def check_nothing_is_left(self) -> None:
        runner = self.app.executor._runner
        scheduler = runner.scheduler
        check(scheduler)
        assert (scheduler.unfinished, scheduler.lanes.by_key, runner.waits.rings.of_jobs) == (0, {}, {})
        assert scheduler.slots.free == self.schedule.settings["max_lanes_running"]
        assert not scheduler.slots.returning
        assert not scheduler.capacity.wanted

    async def send(self, message: Any) -> None: ...

    async def handle(self, path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        for step in self.schedule.requests[int(path)][1]:
            if step[0] == "add":
                _, key, _, program = step
                self.jobs.append(tasks.lane(key).add_task(self.task, f"task {len(self.jobs)}", program))
            else:
                await self.do(f"request {path}", step)
        await respond()
        await tasks()

    async def task(self, name: str, program: Program) -> None:
        for step in program:
            await self.do(name, step)

    async def do(self, who: str, step: tuple[Any, ...]) -> None:
        kind, *rest = step
        try:
            if kind == "sleep":
                await asyncio.sleep(rest[0])
            elif kind == "wait":
                if self.jobs:
                    await self.jobs[rest[0] % len(self.jobs)]
            else:
                key, limit, program = rest
                lane = self.app.executor.lane(key, max_waiting=limit)
                name = f"task {len(self.jobs)}"
                if kind == "submit_nowait":
                    self.jobs.append(lane.submit_nowait(self.task, name, program))
                else:
                    self.jobs.append(await lane.submit(self.task, name, program))
        except WouldDeadlock:
            self.refused.append(f"{who}: {kind}")
        except (QueueFull, JobNoResult):
            pass


def play(seed: int, requests: bool) -> tuple[bool, list[str]]:
    plays: list[tuple[bool, list[str]]] = []

    async def main() -> None:
        one = Play(Schedule(seed, requests))
        plays.append((await one.play(), one.refused))

    run("asyncio", main, virtual=True)
    return plays[0]


async def after(seconds: float, what: Any, *args: Any) -> None:
    """Sleep, and then do that."""
    await anyio.sleep(seconds)
    await what(*args)


@pytest.mark.parametrize("requests", [False, True])
def test_rings(requests: bool, log: Log) -> None:
    """A ring through third parties is told: whatever does not end is in a record, and without one all end."""
    rings = refusals = 0
    for seed in range(EXAMPLES):
        log.clear()
        ended, refused = play(seed, requests)
        told = [line for line in log if "wait for each other" in line]
        refusals += bool(refused)
        rings += not ended
        assert ended or told, f"seed {seed} hangs, and nobody says so; refused: {refused}"
        if not requests:  # the position that a request holds may be lost, which ends a ring
            assert not (ended and told), f"seed {seed}: {told}, and all of it ends"
    assert EXAMPLES / 20 < refusals < EXAMPLES
    assert 0 < rings < EXAMPLES


@pytest.mark.virtual_clock
async def test_path_of_a_ring(log: Log) -> None:
    """The record of a ring names each wait in order, from the one that closed it on, and none beside it."""
    jobs: dict[str, Job[Any]] = {}

    async def aside() -> None:
        await anyio.sleep(1000)

    async def first() -> None:
        async with anyio.create_task_group() as group:
            for name in ("aside", "second", "aside"):
                group.start_soon(jobs[name].wait)

    async def second() -> None:
        await jobs["behind third"]

    async def third() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(jobs["aside"].wait)
            await anyio.sleep(1)
            group.start_soon(jobs["first"].wait)

    async def behind() -> None: ...

    async with SerialExecutor(drain_timeout=0) as executor:
        for one in (aside, first, second, third):
            jobs[one.__name__] = executor.lane(one.__name__).submit_nowait(one)
        jobs["behind third"] = executor.lane("third").submit_nowait(behind)
        await anyio.sleep(7)
        (record,) = log
        where = "test_path_of_a_ring.<locals>."
        assert record.split(": ", 1)[1].replace(where, "").split("; ") == [
            "third waits for first",
            "first waits for second",
            "second waits for behind, which is behind third",
        ]
