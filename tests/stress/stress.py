"""Random stress: adds and cancels from threads, finalizers, signal handlers and requests, at once.

    python tests/stress/stress.py LOOP SECONDS [SEED]

`LOOP` is `asyncio`, `uvloop` or `trio`, or `all` for a process for each, at once. An oracle sees every start
and end: nothing is lost, doubled, overlapped, out of order, hung or kept. Prints the seed, so that a failure
can be tried again; exit code 1 if something is wrong. Not collected by pytest.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import logging
import random
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import defaultdict
from typing import Any

import anyio
import anyio.to_thread

from fifo_background import BackgroundTasks, Job, JobState, OrderedBackgroundMiddleware, SerialExecutor
from fifo_background._core.invariants import check

LANES = (None, "a", "b", ("c", 1))
LOOPS = ("asyncio", "uvloop", "trio")


class Oracle:
    """What was submitted, what ran, and what is wrong."""

    def __init__(self) -> None:
        self.running: dict[Any, int] = defaultdict(int)
        self.last: dict[Any, int] = {}
        self.ran: dict[Any, int] = defaultdict(int)
        self.jobs: dict[Any, Job[Any]] = {}
        self.cancelled: set[Any] = set()
        self.wrong: list[str] = []

    def start(self, lane: Any, producer: Any, n: int) -> None:
        self.running[lane] += 1
        if self.running[lane] != 1:
            self.wrong.append(f"overlap in {lane!r}: {producer} {n}")
        if self.last.get((lane, producer), -1) >= n:
            self.wrong.append(f"out of order in {lane!r}: {producer} {n} after {self.last[lane, producer]}")
        self.last[lane, producer] = n
        self.ran[lane, producer, n] += 1

    def end(self, lane: Any) -> None:
        self.running[lane] -= 1

    def check(self) -> None:
        for key, job in self.jobs.items():
            ran = self.ran.get(key, 0)
            if not job.done():
                self.wrong.append(f"lost: {key} is {job.state}")
            elif ran > 1:
                self.wrong.append(f"ran {ran} times: {key}")
            elif key in self.cancelled and ran:
                self.wrong.append(f"ran after cancel() had returned True before its start: {key}")
            elif not ran and job.state is not JobState.CANCELLED:
                self.wrong.append(f"never ran: {key} is {job.state}")


class Producer:
    """Submits tasks to random lanes, each numbered in its lane, and cancels some."""

    def __init__(self, oracle: Oracle, executor: SerialExecutor, name: str, seed: int) -> None:
        self.oracle, self.executor, self.name = oracle, executor, name
        self.random = random.Random(seed)
        self.counts: dict[Any, int] = defaultdict(int)
        self.recent: list[tuple[Any, Job[Any]]] = []

    def sync_task(self, lane: Any, n: int) -> None:
        self.oracle.start(lane, self.name, n)
        if n % 7 == 0:
            time.sleep(0)
        self.oracle.end(lane)
        if n % 13 == 0:
            raise ValueError(n)

    async def async_task(self, lane: Any, n: int) -> None:
        self.oracle.start(lane, self.name, n)
        try:
            if n % 3 == 0:
                await anyio.sleep(0)
        finally:
            self.oracle.end(lane)
        if n % 17 == 0:
            raise ValueError(n)

    def submit(self) -> None:
        lane = self.random.choice(LANES)
        n = self.counts[lane]
        self.counts[lane] += 1
        func = self.random.choice((self.sync_task, self.async_task))
        job = self.executor.lane(lane).submit_nowait(func, lane, n)
        self.oracle.jobs[lane, self.name, n] = job
        self.recent.append(((lane, self.name, n), job))

    def step(self) -> None:
        self.submit()
        if self.random.random() < 0.2 and self.recent:
            key, job = self.recent.pop(self.random.randrange(len(self.recent)))
            if job.cancel() and not self.oracle.ran.get(key):
                self.oracle.cancelled.add(key) if job.state is JobState.CANCELLED else None
        del self.recent[:-20]


class Garbage:
    """A cycle whose finalizer submits a task."""

    def __init__(self, producer: Producer) -> None:
        self.me = self
        weakref.finalize(self, producer.step)


class Raises(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise OSError("disk full")


async def asks(app: Any, oracle: Oracle, name: str, n: int, lane: Any) -> None:
    """One request, whose handler adds a task in a thread and another one on the loop."""

    async def receive() -> Any:
        await anyio.sleep_forever()

    async def send(message: Any) -> None:
        await anyio.sleep(0)

    scope = {"type": "http", "method": "POST", "path": f"/{name}/{n}", "headers": [], "query_string": b""}
    scope["task"] = (name, n, lane)
    with contextlib.suppress(ValueError):
        await app(scope, receive, send)


def make_app(oracle: Oracle) -> Any:
    def work(name: str, n: int, lane: Any) -> None:
        oracle.start(("app", lane), name, n)
        oracle.end(("app", lane))

    async def awork(name: str, n: int, lane: Any) -> None:
        oracle.start(("app", lane), name, n)
        try:
            await anyio.sleep(0)
        finally:
            oracle.end(("app", lane))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        name, n, lane = scope["task"]
        tasks = BackgroundTasks()
        first = await anyio.to_thread.run_sync(tasks.lane(lane).add_task, work, name, 2 * n, lane)
        second = tasks.lane(lane).add_task(awork, name, 2 * n + 1, lane)
        oracle.jobs[("app", lane), name, 2 * n] = first
        oracle.jobs[("app", lane), name, 2 * n + 1] = second
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        await tasks()

    return OrderedBackgroundMiddleware(app)


async def cancels_waits(oracle: Oracle, rng: random.Random, until: float) -> None:
    """Waits for jobs, and is cancelled natively or by a scope in the middle."""
    while time.monotonic() < until:
        jobs = [job for job in list(oracle.jobs.values())[-30:] if not job.done()]
        if jobs:
            with anyio.move_on_after(rng.random() / 500), contextlib.suppress(Exception):
                await rng.choice(jobs)
        await anyio.sleep(0)


async def main(seconds: float, seed: int) -> list[str]:
    rng = random.Random(seed)
    oracle = Oracle()
    app = make_app(oracle)
    until = time.monotonic() + seconds
    async with SerialExecutor(max_lanes_running=3) as executor:
        executor.submit_nowait(int)
        producers = [Producer(oracle, executor, f"p{k}", rng.random().__hash__() + k) for k in range(6)]
        *of_threads, of_loop, of_garbage, of_signals = producers

        def produce(producer: Producer) -> None:
            while time.monotonic() < until:
                if is_behind():
                    time.sleep(0.002)
                else:
                    producer.step()

        def is_behind() -> bool:
            """On a busy machine more is submitted than runs: what waits must be done soon after the end."""
            return len(executor._runner.scheduler.waiting) > 500

        threads = [threading.Thread(target=produce, args=(producer,)) for producer in of_threads]

        def on_signal(*_: Any) -> None:
            if time.monotonic() >= until:
                return  # a signal that came just before the timer was stopped must not start it again
            if not is_behind():
                of_signals.step()
            executor.statistics()
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0005, 0.003))

        signal.signal(signal.SIGALRM, on_signal)
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        for thread in threads:
            thread.start()
        counts: dict[Any, int] = defaultdict(int)
        async with anyio.create_task_group() as group:
            group.start_soon(cancels_waits, oracle, rng, until)
            while time.monotonic() < until:
                if not is_behind():
                    of_loop.step()
                    Garbage(of_garbage)
                if rng.random() < 0.3:
                    lane = rng.choice(LANES)
                    # one request at a time for each of these names: their order is known
                    name = f"client {lane}"
                    await asks(app, oracle, name, counts[name], lane)
                    counts[name] += 1
                if rng.random() < 0.05:
                    pauses = executor.lane(rng.choice(LANES))
                    pauses.pause()
                    await anyio.sleep(0.001)
                    pauses.resume()
                await anyio.sleep(0)
        await anyio.to_thread.run_sync(lambda: [thread.join() for thread in threads])
        signal.setitimer(signal.ITIMER_REAL, 0)
        gc.collect()
        with anyio.move_on_after(30) as scope:
            await executor.join()
            await app.executor.join()
        if scope.cancelled_caught:
            oracle.wrong.append(f"hangs: {executor.statistics()} {app.executor.statistics()}")
        for one in (executor, app.executor):
            check(one._runner.scheduler)
            picture = one.statistics()
            if picture.unfinished or picture.waiting or picture.running:
                oracle.wrong.append(f"not idle: {picture}")
    oracle.check()
    keys = len(oracle.jobs)
    print(f"{keys} tasks, {len(oracle.cancelled)} cancelled, {sum(oracle.ran.values())} ran", flush=True)
    return oracle.wrong


if __name__ == "__main__":
    loop, seconds = sys.argv[1], float(sys.argv[2])
    if loop == "all":
        each = [subprocess.Popen([sys.executable, __file__, one, *sys.argv[2:]]) for one in LOOPS]
        codes = [process.wait() for process in each]
        sys.exit(any(codes))
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else random.randrange(1_000_000)
    print(f"Python {sys.version.split()[0]}, {loop}, {seconds:g} s, seed {seed}", flush=True)
    faulthandler.dump_traceback_later(seconds + 90, exit=True)
    log = logging.getLogger("fifo_background")
    log.addHandler(Raises())
    log.propagate = logging.raiseExceptions = False
    sys.setswitchinterval(1e-6)
    backend = "trio" if loop == "trio" else "asyncio"
    options = {"use_uvloop": loop == "uvloop"} if backend == "asyncio" else {}
    wrong = anyio.run(main, seconds, seed, backend=backend, backend_options=options)
    for line in wrong[:20]:
        print("WRONG:", line)
    sys.exit(bool(wrong))
