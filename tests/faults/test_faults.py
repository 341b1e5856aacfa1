"""Two apps and four workers under random faults: nothing is lost, overlapped or out of order in its lane.

The faults: `kill -9` of apps and workers, their graceful ends, processes that are frozen for longer than they
may be, PostgreSQL killed and started again, connections cut. FAULTS_SEED draws the same faults again,
FAULTS_TASKS says how many tasks (default 2000), FAULTS_FROZEN for how many seconds processes are frozen.

A new worker needs seconds to import the app: where one is killed, others are up already.

A client that gets a 503, or whose connection breaks, sends a new request with a name of its own: what got a
2xx is accepted, and what did not may run or not.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from cluster import Accepted, Cluster, Postgres, Process, cluster, judge, wait_until
from proxy import Proxy

SEED = int(os.environ.get("FAULTS_SEED") or random.randrange(1_000_000))
TASKS = int(os.environ.get("FAULTS_TASKS", "2000"))
FROZEN = float(os.environ.get("FAULTS_FROZEN", "6"))

LOST_AFTER = 3.0
ENGINE = {
    "lost_after": LOST_AFTER, "heartbeat": 0.5, "most_crashes": 1000, "concurrency": 6, "keep_ended": 60.0,
}  # fmt: skip
SETTINGS = {"drain_timeout": 0.5}

# How many tasks are interrupted, at least, and over how many faults the first TASKS are spread.
INTERRUPTED, FAULTS = max(1, 30 * TASKS // 2000), max(1, 24 * TASKS // 2000)


class Clients:
    """Each sends one request after the other, until that is enough.

    The tasks are spread over the faults, so that a fast machine sees as many interruptions as a slow one.
    """

    def __init__(self, faults: Faults, dice: random.Random) -> None:
        self._faults = faults
        self._apps = faults.ports()
        self._dice = dice
        self.accepted: list[Accepted] = []
        self.sent: dict[str, float] = {}  # when each request was, by its name
        self.refused = 0
        self.tasks = 0
        self._number = 0

    async def run(self, many: int) -> None:
        async with httpx.AsyncClient(timeout=10) as http:
            await asyncio.gather(*(self._client(http) for _ in range(many)))

    def _next(self) -> tuple[str, str, list[str], float]:
        dice = self._dice
        self._number += 1
        lane = "only" if dice.random() < 0.3 else f"l{dice.randrange(50)}"
        kinds = [
            dice.choice(("waits", "sleeps", "waits", "sleeps", "fails"))
            for _ in range(dice.choice((1, 1, 2)))
        ]
        seconds = 0.0
        if "fails" in kinds:  # what fails skips the rest
            kinds = ["fails"]
        elif lane != "only" and dice.random() < 0.35:
            seconds = dice.uniform(0.5, 3.0)
        return f"n{self._number}", lane, kinds, seconds

    async def _client(self, http: httpx.AsyncClient) -> None:
        faults = self._faults
        while self.tasks < TASKS or faults.interrupted < INTERRUPTED:
            if self.tasks >= TASKS * (len(faults.done) + 1) / FAULTS:
                await asyncio.sleep(0.05)
                continue
            name, lane, kinds, seconds = self._next()
            self.tasks += len(kinds)
            way = "retry" if "fails" in kinds else self._dice.choice(("add", "def"))
            query = {"kinds": ",".join(kinds), "seconds": seconds}
            while True:
                port = self._dice.choice(self._apps)
                sent = self.sent[name] = time.monotonic()
                try:
                    answer = await http.post(f"http://127.0.0.1:{port}/{way}/{lane}/{name}", params=query)
                except httpx.HTTPError:
                    pass
                else:
                    if answer.status_code == 200:
                        break
                    assert answer.status_code == 503, answer.text
                self.refused += 1
                self._number += 1
                name = f"n{self._number}"
                await asyncio.sleep(0.1)
            self.accepted.append(Accepted(name, lane, len(kinds), sent, time.monotonic()))
            await asyncio.sleep(self._dice.uniform(0.0, 0.08))


class Faults:
    """One after the other, in a random order, until there were enough tasks."""

    def __init__(self, one: Cluster, postgres: Postgres, proxy: Proxy, dice: random.Random) -> None:
        self._cluster = one
        self._postgres = postgres
        self._proxy = proxy
        self._dice = dice
        self.processes: list[Process] = [one.app(wait=False), one.app(wait=False), one.worker(), one.worker()]
        self.done: list[str] = []
        self.interrupted: int = 0

    def ports(self) -> list[int]:
        return [process.port for process in self.processes if process.port is not None]

    async def run(self, until: asyncio.Future[Any]) -> None:
        dice, ways = self._dice, ["kill", "kill", "kill", "freeze", "freeze", "stop", "restart", "cut", "cut"]
        while not until.done():
            dice.shuffle(ways)
            for way in ways:
                await asyncio.wait([until], timeout=dice.uniform(0.5, 1.5))
                if until.done():
                    return
                self.done.append(way)
                await getattr(self, way)()
                self.interrupted = judge(self._cluster.lines(), []).interrupted

    def _again(self, place: int) -> None:
        ended = self.processes[place]
        if ended.port is None:
            self.processes[place] = self._cluster.worker()
        else:
            self.processes[place] = self._cluster.app(port=ended.port, wait=False)

    def look(self) -> None:
        """What a supervisor does: the watchdog ends processes, too."""
        for place, process in enumerate(self.processes):
            if not process.runs:
                self._again(place)

    def _choose(self) -> int:
        """One of the processes; rather one that has tasks in hand."""
        in_hand: Counter[int] = Counter()
        for line in self._cluster.lines():
            in_hand[line.pid] += {"start": 1, "end": -1, "fail": -1, "cut": -1}.get(line.what, 0)
        weights = [0.5 + in_hand[process.pid] for process in self.processes]
        (place,) = self._dice.choices(range(4), weights)
        return place

    async def kill(self) -> None:
        place = self._choose()
        self.processes[place].end(signal.SIGKILL)
        self._again(place)
        await asyncio.sleep(2.0)

    async def stop(self) -> None:
        place = self._choose()
        process = self.processes[place]
        process.send(signal.SIGTERM)
        await asyncio.get_running_loop().run_in_executor(None, process.popen.wait, 30)
        self._again(place)

    async def freeze(self) -> None:
        process = self.processes[self._choose()]
        process.send(signal.SIGSTOP)
        await asyncio.sleep(FROZEN)
        process.send(signal.SIGCONT)
        await asyncio.sleep(0.5)
        self.look()

    async def restart(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._postgres.restart)

    async def cut(self) -> None:
        self._proxy.cut(lambda: self._dice.random() < 0.7)


async def _run(faults: Faults, clients: Clients) -> None:
    sending = asyncio.ensure_future(clients.run(20))
    try:
        await faults.run(sending)
    finally:
        sending.cancel()
        await asyncio.wait([sending])
    if not sending.cancelled():
        sending.result()


def test_random_faults(postgres: Postgres, tmp_path: Path) -> None:
    """Traps 1, 2, 3, 4, 5, 8, 13, 14 and 19 of the engine, all at once."""
    print(f"FAULTS_SEED={SEED}")
    dice = random.Random(SEED)
    with Proxy(postgres.socket) as proxy, cluster(tmp_path, proxy.dsn(), ENGINE, SETTINGS) as one:
        one.environment["FAULTS_UNASKED"] = "1000"  # a lane that nobody was told of stands still
        faults = Faults(one, postgres, proxy, dice)
        for process in faults.processes[:2]:
            one.wait_for_app(process)
        clients = Clients(faults, dice)
        begun = time.monotonic()
        asyncio.run(_run(faults, clients))
        took = time.monotonic() - begun

        def is_idle() -> bool:
            faults.look()
            query = "SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"
            return bool(postgres.ask(query) == 0)

        wait_until(is_idle, 60, lambda: postgres.ask(OPEN))
        idle = time.monotonic() - begun - took
        verdict = judge(one.lines(), clients.accepted, sent=clients.sent)
        print(
            f"{len(clients.accepted)} requests accepted, {clients.refused} refused, {verdict.runs} runs, "
            f"{verdict.interrupted} interrupted, {verdict.repeated} run again after their end, "
            f"{len(faults.done)} faults in {took:.0f} s, idle {idle:.1f} s later; lost {len(verdict.lost)}, "
            f"overlapped {len(verdict.overlapped)}, inverted {len(verdict.inverted)}"
        )
        assert verdict.wrong == []
        assert verdict.interrupted >= INTERRUPTED


OPEN = "SELECT jsonb_agg(job) FROM procrastinate_jobs AS job WHERE status IN ('todo', 'doing')"
