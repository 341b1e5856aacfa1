"""Rings of waits, in random schedules: `WouldDeadlock` is raised where one would wait for ever, only there.

The oracle is the same schedule with nobody looking for rings. Where `WouldDeadlock` was raised, that hangs;
where it was not, everything comes to its end. `FIFO_EXAMPLES=4000` plays as many schedules of each kind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable
from random import Random
from typing import Any

import anyio
import pytest

from fifo_background import BackgroundTasks, Job, JobDropped, QueueFull, SerialExecutor, WouldDeadlock
from fifo_background._waits import Waits
from tests.apps import app_of
from tests.asgi import get
from tests.loops import run

EXAMPLES = int(os.environ.get("FIFO_EXAMPLES", "200"))
FOR_EVER = 50_000.0  # virtual seconds

Program = list[tuple[Any, ...]]


class Schedule:
    """What a seed makes: who does what, and when."""

    def __init__(self, seed: int, requests: bool) -> None:
        self.random = Random(seed)
        choose = self.random.choice
        self.lanes = choose([1, 2, 3, 4])
        self.settings: dict[str, Any] = {
            "max_lanes_running": choose([1, 2, 3]),
            "max_pending": choose([None, 1, 1, 2, 3, 4]),
            "order": choose(["added", "responded", "arrived"]),
            "wait": choose([True, True, False]),
            "hold": FOR_EVER * 10,
            "lane": lambda scope: 0,
        }
        if self.settings["order"] == "arrived":
            self.settings["arrives"] = lambda scope: True
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
        kind = self.random.choice(["sleep", "sleep", "submit", "submit", "submit_nowait", "wait", "wait"])
        if kind == "sleep":
            return (kind, self.moment())
        if kind == "wait":
            return (kind, self.random.randrange(1000))
        return self.submit(kind, [None, None, 1, 2], depth + 1)

    def request(self) -> Program:
        steps = range(self.random.randrange(6))
        add = [self.random.random() < 0.4 for _ in steps]
        return [self.submit("add", [None, None, 1, 2], 2) if one else self.step(1) for one in add]


class Play:
    """One schedule as it goes."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.jobs: list[Job[Any]] = []
        self.deadlocks: list[str] = []
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
            self.nothing_is_left()
            return True
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.wait(others, timeout=0.01)
        return False

    def nothing_is_left(self) -> None:
        line = self.app.executor.line
        assert (line.unfinished, line.waiting, line.ready, list(line.lanes)) == (0, 0, 0, [None])
        assert line.slots == self.schedule.settings["max_lanes_running"]
        assert (line.waits._of, line.waits._requests, line.room.in_need) == ({}, set(), set())
        assert not line.room.wanted
        assert not line.lane(None).outside
        assert not line.returning

    async def send(self, message: Any) -> None: ...

    async def handle(self, path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        for step in self.schedule.requests[int(path)][1]:
            if step[0] == "add":
                _, key, limit, program = step
                with contextlib.suppress(QueueFull):
                    lane = tasks.lane(key, max_pending=limit)
                    self.jobs.append(lane.add_task(self.task, f"task {len(self.jobs)}", program))
            else:
                await self.do(f"request {path}", step)
        await respond()
        await tasks()

    async def task(self, name: str, program: Program) -> None:
        for step in program:
            await self.do(name, step)

    async def do(self, who: str, step: Iterable[Any]) -> None:
        kind, *rest = step
        try:
            if kind == "sleep":
                await asyncio.sleep(rest[0])
            elif kind == "wait":
                if self.jobs:
                    await self.jobs[rest[0] % len(self.jobs)].wait()
            else:
                key, limit, program = rest
                lane = self.app.executor.lane(key, max_pending=limit)
                name = f"task {len(self.jobs)}"
                if kind == "submit_nowait":
                    self.jobs.append(lane.submit_nowait(self.task, name, program))
                else:
                    self.jobs.append(await lane.submit(self.task, name, program))
        except WouldDeadlock:
            self.deadlocks.append(f"{who}: {kind}")
        except (QueueFull, JobDropped):
            pass


def play(seed: int, requests: bool) -> tuple[bool, list[str]]:
    plays: list[tuple[bool, list[str]]] = []

    async def main() -> None:
        one = Play(Schedule(seed, requests))
        plays.append((await one.play(), one.deadlocks))

    run("asyncio", main, virtual=True)
    return plays[0]


@pytest.mark.parametrize("requests", [False, True])
def test_rings(requests: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No self-made deadlock: where one would wait for ever `WouldDeadlock` is raised, and nowhere else."""
    raised = 0
    for seed in range(EXAMPLES):
        ended, deadlocks = play(seed, requests)
        assert ended, f"seed {seed} hangs, after {deadlocks}"
        if deadlocks:
            raised += 1
            with monkeypatch.context() as nobody_looks:
                nobody_looks.setattr(Waits, "stuck", lambda self, parties: set())
                ended, _ = play(seed, requests)
            assert not ended, f"seed {seed}: {deadlocks}, and no need for it"
    assert EXAMPLES / 4 < raised < EXAMPLES


async def after(seconds: float, what: Any, *args: Any) -> None:
    """Sleep, and then do that."""
    await anyio.sleep(seconds)
    await what(*args)


async def told(events: list[Any], wait: Any, *args: Any) -> None:
    try:
        await wait(*args)
        events.append("ok")
    except WouldDeadlock:
        events.append("told")


async def quick() -> None: ...


@pytest.mark.virtual_clock
async def test_let_in_by_its_lane(events: list[Any]) -> None:
    """Who has got room in its lane, and waits for room in the line, waits for no room in its lane."""
    async with SerialExecutor(max_pending=1) as executor, anyio.create_task_group() as group:
        lane = executor.lane("b")
        lane.submit_nowait(anyio.sleep, 10)
        await anyio.sleep(0.1)
        wants_room = executor.lane("a", max_pending=1).submit
        executor.submit_nowait(after, 2, told, events, wants_room, quick)
        await anyio.sleep(0.1)
        lane.submit_nowait(anyio.sleep, 10)
        group.start_soon(lane.submit, anyio.sleep, 10)  # stands before the other in the line for room
        await executor.join()
    assert events == ["ok"]


@pytest.mark.virtual_clock
async def test_behind_another_in_the_same_lane(events: list[Any]) -> None:
    """Who stands behind another that waits for room in a lane gets none before it, whatever the own limit."""
    async with SerialExecutor() as executor, anyio.create_task_group() as group:
        lane = executor.lane("a")
        lane.submit_nowait(after, 2, told, events, executor.lane("a", max_pending=2).submit, quick)
        await anyio.sleep(0.1)
        executor.lane("b").submit_nowait(anyio.sleep, 10)
        executor.lane("b").submit_nowait(quick)
        lane.submit_nowait(quick)
        group.start_soon(executor.lane("a", max_pending=1).submit, quick)
        await anyio.sleep(3)
        assert events == ["told"]


@pytest.mark.virtual_clock
async def test_behind_who_has_arrived(events: list[Any]) -> None:
    """What waits behind a request that has arrived, and may respond, makes room some time."""

    async def handle(path: str, respond: Any) -> None:
        await anyio.sleep(5)
        await respond()

    app = app_of(handle, order="arrived", arrives=lambda scope: True, max_pending=1)
    async with anyio.create_task_group() as group:
        group.start_soon(get, app)
        await anyio.sleep(0.1)
        app.executor.lane("b").submit_nowait(after, 2, told, events, app.executor.submit, quick)
        await anyio.sleep(0.1)
        app.executor.submit_nowait(quick)
        await app.executor.join()
    assert events == ["ok"]


@pytest.mark.virtual_clock
async def test_hope_that_gets_in_line(events: list[Any]) -> None:
    """What would have made room from outside the line stands behind who waits for it when it gets in line."""

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(quick)
        await anyio.sleep(5)
        await respond()
        await tasks()

    app = app_of(handle, order="responded", max_pending=1)
    app.executor.submit_nowait(after, 2, told, events, app.executor.submit, quick)
    await anyio.sleep(0.1)
    assert (await get(app)).error is None
    assert events == ["told"]


@pytest.mark.virtual_clock
@pytest.mark.parametrize("request_first", [True, False])
async def test_hope_that_waits(request_first: bool, events: list[Any]) -> None:
    """The tasks of a request make no room while it waits for what is behind the one who waits for room."""

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.lane("z").add_task(quick)
        behind = app.executor.submit_nowait(quick)
        await anyio.sleep(2 if request_first else 5)
        await told(events, behind.wait)
        await respond()
        await tasks()

    app = app_of(handle, order="responded", max_pending=2)
    app.executor.submit_nowait(after, 3, told, events, app.executor.submit, quick)
    await anyio.sleep(0.1)
    assert (await get(app)).error is None
    await app.executor.join()
    assert events == ["told", "ok"]
