"""Each trap that engines on PostgreSQL were seen to fall into; `tests/faults` has those that need a kill."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import anyio
import psycopg
import pytest
from starlette.requests import Request
from starlette.responses import Response

from fifo_background import BackgroundTasks, JobState, executor_of
from fifo_background.engines.postgres import PostgresEngine, Retry, StoreError
from fifo_background.engines.postgres._connections import Connections, connect
from fifo_background.engines.postgres._database import Database
from fifo_background.engines.postgres._errors import WorkerLost
from fifo_background.engines.postgres._heartbeat import Heard
from fifo_background.engines.postgres._lease import Lease, Watchdog, now
from fifo_background.engines.postgres._listener import Listener
from fifo_background.engines.postgres._request import groups_of
from fifo_background.engines.postgres._schema import migrate
from fifo_background.engines.postgres._tasks import Tasks
from tests.engines import work
from tests.engines.stored import QUICK, engine_of, handler, rows, states, stored_app
from tests.engines.work import fresh, ran  # noqa: F401
from tests.support.apps import until
from tests.support.asgi import get, started
from tests.support.log import Log


class Queue:
    """A queue without a worker of its own: the questions that workers ask, one by one."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.engine = engine_of(dsn)
        self.connections = Connections(dsn, 4)
        self.database = Database(self.connections, self.engine.queue, 5.0)

    async def add(self, *funcs: Any, lane: Any = None, **options: Any) -> list[str]:
        """One request's tasks in a lane; their ids."""
        from starlette.background import BackgroundTask

        from fifo_background._entries import Entry

        entry = Entry(lane, options)
        text = self.engine.lane_text(lane)
        new = [
            self.engine.new_task(BackgroundTask(func, 1), text, entry, self.engine.settings) for func in funcs
        ]
        await self.database.store(groups_of(self.engine, new, None), None, self._nothing)
        return [one.id for one in new]

    async def _nothing(self) -> None: ...

    async def worker(self, lost_after: float = 60.0) -> int:
        return await self.database.register(lost_after, "host", 1, 1)

    async def silent(self, worker: int) -> None:
        """Its last heartbeat was long ago."""
        query = "UPDATE procrastinate_workers SET last_heartbeat = now() - interval '1 hour' WHERE id = %s"
        await rows(self.dsn, query, worker)

    async def recover(self, most_crashes: int) -> int:
        """As one who has heard nothing of any worker for a while."""
        heard = Heard()
        await self.database.recover(most_crashes, heard)
        heard._last = {id: (heartbeat, now(), 0.0) for id, (heartbeat, *_) in heard._last.items()}
        return await self.database.recover(most_crashes, heard)

    async def sweep_at_once(self) -> list[int]:
        """What four workers that look for lost ones at the same time have recovered."""
        recovered: list[int] = []

        async def sweep() -> None:
            recovered.append(await self.recover(3))

        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(sweep)
        return recovered

    async def fetch(self, worker: int) -> dict[str, Any]:
        return await self.database.fetch(worker)

    async def end(self, worker: int, job: dict[str, Any], id: str, **more: Any) -> Any:
        told = {"id": id, "state": "succeeded", "fetch": False, "wake": False, **more}
        return await self.database.end(worker, job["job"], job["attempts"], told)

    async def states(self) -> list[str]:
        return [state for _, state in await states(self.dsn, self.engine)]


@pytest.fixture
async def queue(dsn: str) -> AsyncIterator[Queue]:
    made = Queue(dsn)
    yield made
    await made.connections.drop_idle()


async def test_1_a_lane_that_frees_wakes_the_others(dsn: str) -> None:
    """A lane that frees wakes nobody, as NOTIFY is sent on INSERT only: every ended job wakes its own worker,
    which fetches until nothing comes, and others where it is full or stops."""
    engine = engine_of(dsn, concurrency=1)
    app = stored_app(engine)
    async with started(app):
        executor = executor_of(app)
        jobs = [await executor.lane(n % 3).submit(work.quick, n) for n in range(9)]
        for job in jobs:
            await job
    other = PostgresEngine(dsn, packages=["tests"], queue=engine.queue)
    first, second = stored_app(engine_of(dsn, queue=other.queue, concurrency=1)), stored_app(other)
    async with started(first), started(second):
        executor = executor_of(first)
        held = await executor.lane("a").submit(work.gated, "a")
        behind = await executor.lane("a").submit(work.quick, "b")
        work.gate("a").set()
        assert [await held, await behind] == ["a", "b"]


async def test_1_a_wake_does_not_keep_a_worker_from_ending(dsn: str) -> None:
    """A worker that is told to end as it is woken ends."""
    worker = engine_of(dsn).session()._make_worker()

    async def serve() -> None:
        while True:
            await worker._woken()
            worker._wake.clear()

    serving = asyncio.get_running_loop().create_task(serve())
    await asyncio.sleep(0.01)
    worker._wake.set()
    await asyncio.sleep(0)
    serving.cancel()
    with anyio.fail_after(5):
        await asyncio.wait({serving})


async def test_2_retries_hold_the_lane(dsn: str) -> None:
    """Retries with a wait and the same priority hold the lane: `[0, 0, 1, 2, 3]`; nothing of ours sets a
    priority or another lock on a task."""
    engine = engine_of(dsn)
    app = stored_app(engine)
    async with started(app):
        executor = executor_of(app)
        retrying = executor.options(retry=Retry(3, wait=0.01))
        first = await retrying.submit(work.fails_until, 0, 2)
        for n in (1, 2, 3):
            await executor.submit(work.quick, n)
        assert await first == 2
        await executor.join()
        assert (await first.record()).error is None
    assert ran == [0, 0, 1, 2, 3]
    found = await rows(
        dsn, "SELECT priority, lock FROM procrastinate_jobs WHERE queue_name = %s", engine.queue
    )
    assert set(found) == {(0, f"{engine.queue}/null")}


@pytest.mark.parametrize("leaves_out", ["cancel", "skip_head"])
async def test_2_a_retry_that_is_left_out(leaves_out: str, queue: Queue) -> None:
    """Where a task that waits to be run again is cancelled or skipped, the rest of its request does not wait
    for that moment; where the rest is, the task still waits."""
    first, second, third = await queue.add(work.quick, work.sync, work.quick)
    worker = await queue.worker()
    await queue.end(worker, await queue.fetch(worker), first, state="failed", retry_in=3600)
    assert await queue.database.cancel(third) == "queued"
    assert 3500 < (await queue.fetch(worker))["next_at"] <= 3600
    if leaves_out == "cancel":
        assert await queue.database.cancel(first) == "queued"
    else:
        assert await queue.database.on_lane("skip_head", f"{queue.engine.queue}/null", first) == first
    assert [task["id"] for task in (await queue.fetch(worker))["tasks"]] == [second]


async def test_2_no_retry_of_one_that_is_to_be_cancelled(queue: Queue) -> None:
    """A task that was asked to end, and raises an error of its own, has failed: it does not run again."""
    (first,) = await queue.add(work.quick)
    worker = await queue.worker()
    job = await queue.fetch(worker)
    assert await queue.database.cancel(first) == "running"
    assert await queue.end(worker, job, first, state="failed", retry_in=0.0) == {"fetched": None}
    assert await queue.states() == ["failed"]


async def test_3_crash_recovery(queue: Queue) -> None:
    """No crash recovery of its own: a sweep puts the jobs of lost workers at the heads of their lanes, under
    the same id; sweeps at once do it once; a task that has lost its worker too often has failed."""
    first, second, last = [(await queue.add(work.quick))[0], *(await queue.add(work.quick, work.sync))]
    for crashes in range(1, 4):
        worker = await queue.worker()
        job = await queue.fetch(worker)
        assert (job["tasks"][0]["id"], job["attempts"]) == (first, crashes - 1)
        assert await queue.recover(3) == 0  # its heartbeat is fresh
        await queue.silent(worker)
        assert sorted(await queue.sweep_at_once()) == [0, 0, 0, 1]
    row = await queue.database.task(first)
    assert row is not None
    assert (row["state"], row["error_type"], row["error"]) == (
        "failed",
        "WorkerLost",
        "the worker that ran it was lost, 3 times",
    )
    worker = await queue.worker()
    job = await queue.fetch(worker)
    assert [task["id"] for task in job["tasks"]] == [second, last]


async def test_3_crash_of_a_part(queue: Queue) -> None:
    """What a request's tasks have done is not done again: its job goes on at the one that was interrupted."""
    first, second = await queue.add(work.quick, work.sync)
    worker = await queue.worker()
    job = await queue.fetch(worker)
    assert await queue.end(worker, job, first) == {"next": second}
    await queue.silent(worker)
    assert await queue.recover(5) == 1
    assert [task["id"] for task in (await queue.fetch(await queue.worker()))["tasks"]] == [second]


async def test_3_a_clock_that_is_set(queue: Queue) -> None:
    """Where the server's clock is set, all heartbeats look old: who still hears them takes nothing over."""
    await queue.add(work.quick)
    worker = await queue.worker()
    await queue.fetch(worker)
    heard = Heard()
    for _ in range(3):
        await queue.silent(worker)  # each time another heartbeat, an hour ago
        assert await queue.database.recover(5, heard) == 0
        heard._last = {id: (beat, since - 60.0, lost) for id, (beat, since, lost) in heard._last.items()}
    assert await queue.database.recover(5, heard) == 1  # the last one stays the last one


async def test_3_a_clock_that_is_set_back(queue: Queue) -> None:
    """Where it is set back as a worker dies, its last heartbeat seems to be one to come: silence counts."""
    await queue.add(work.quick)
    worker = await queue.worker()
    await queue.fetch(worker)
    ahead = "UPDATE procrastinate_workers SET last_heartbeat = now() + interval '1 hour' WHERE id = %s"
    await rows(queue.dsn, ahead, worker)
    heard = Heard()
    for seconds, recovered in ((0.0, 0), (40.0, 0), (30.0, 1)):  # of the 60 after which it is lost
        heard._last = {id: (beat, since - seconds, lost) for id, (beat, since, lost) in heard._last.items()}
        assert await queue.database.recover(5, heard) == recovered


async def test_3_a_cancelled_one_does_not_run_again(queue: Queue) -> None:
    """A task that somebody has cancelled while it ran does not run again after it was interrupted."""
    (first,) = await queue.add(work.quick)
    worker = await queue.worker()
    job = await queue.fetch(worker)
    assert await queue.database.cancel(first) == "running"
    assert await queue.database.cancelled([first]) == [first]
    assert await queue.database.give_back(worker, job["job"], job["attempts"]) is True
    assert await queue.states() == ["cancelled"]
    assert "job" not in await queue.fetch(worker)


async def test_4_zombies(queue: Queue) -> None:
    """Zombies: ending a job is fenced by the worker's id and the attempts; who comes back ends nothing."""
    first, second = await queue.add(work.quick, work.sync)
    zombie, other = await queue.worker(), await queue.worker()
    before = await queue.fetch(zombie)
    await queue.silent(zombie)
    await queue.recover(5)
    assert await queue.end(zombie, before, first) is None
    job = await queue.fetch(other)
    assert job["job"] == before["job"]
    assert await queue.end(zombie, before, first) is None
    assert await queue.database.give_back(zombie, before["job"], before["attempts"]) is False
    assert await queue.database.give_back(other, job["job"], job["attempts"] + 1) is False
    assert await queue.states() == ["running", "queued"]
    assert await queue.end(other, job, first) == {"next": second}


async def test_5_stopping(dsn: str) -> None:
    """A graceful shutdown past its timeout puts what runs back at the head, and the lane does not move on."""
    engine = engine_of(dsn)
    app = stored_app(engine, handler((work.gated, 1), (work.quick, 2)), drain_timeout=0.0)
    async with started(app):
        await get(app, "/handle")
        await until(lambda: ran == ["start 1"])
    assert await states(dsn, engine) == [("gated", "queued"), ("quick", "queued")]
    found = await rows(dsn, "SELECT status FROM procrastinate_jobs WHERE queue_name = %s", engine.queue)
    assert found == [("todo",)]
    assert await rows(dsn, "SELECT id FROM fifo_background_workers WHERE queue = %s", engine.queue) == []
    work.gate(1).set()
    async with started(app):
        await executor_of(app).join()
    assert ran == ["start 1", "start 1", "end 1", 2]


async def test_5_what_is_said_of_a_slow_database(dsn: str, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that has ended, and is being given back, is no `def` task that runs on."""
    engine = engine_of(dsn)
    app = stored_app(engine, handler((work.gated, 1)), drain_timeout=0.0)
    async with started(app):
        await get(app, "/handle")
        await until(lambda: ran == ["start 1"])
        database = engine.session().database
        give_back = database.give_back

        async def slowly(*values: Any) -> bool:
            await anyio.sleep(1.2)
            return await give_back(*values)

        monkeypatch.setattr(database, "give_back", slowly)
    assert "runs on" not in "".join(log)
    assert await states(dsn, engine) == [("gated", "queued")]


async def test_5_between_two_tasks(dsn: str) -> None:
    """A worker that stops between two tasks of a job gives the second one back."""
    engine = engine_of(dsn)
    app = stored_app(engine, handler((work.gated, 1), (work.quick, 2)))
    async with started(app):
        await get(app, "/handle")
        await until(lambda: ran == ["start 1"])
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(_open_soon, engine)
                await engine.close()
                scope.cancel()
        await engine.open()
    assert ran[:2] == ["start 1", "end 1"]


async def _open_soon(engine: PostgresEngine) -> None:
    await until(lambda: engine.session()._worker is None)
    work.gate(1).set()


async def test_6_the_fetch_has_its_index(dsn: str) -> None:
    """Fetch cost: there is a partial index on the lock and the id, and the fetch does not sort."""
    query = "SELECT proconfig FROM pg_proc WHERE proname = 'procrastinate_fetch_job_v2'"
    assert ["enable_sort=off"] in [found for (found,) in await rows(dsn, query)]
    query = "SELECT indexdef FROM pg_indexes WHERE indexname = 'fifo_background_jobs_lock_id'"
    ((definition,),) = await rows(dsn, query)
    assert "(lock, id)" in definition


async def test_7_a_lock_spans_queues(queue: Queue) -> None:
    """A lock spans queues: a head in a queue that nobody serves pauses its lane, and only that of its app."""
    await queue.add(work.quick)
    lock = f"{queue.engine.queue}/null"
    assert await queue.database.on_lane("pause", lock) is True
    worker = await queue.worker()
    assert await queue.fetch(worker) == {"next_at": None}
    assert await queue.database.on_lane("pause", lock) is False
    other = Queue(queue.dsn)
    await other.add(work.quick)
    assert "job" in await other.fetch(await other.worker())
    await other.connections.drop_idle()
    assert await queue.database.on_lane("resume", lock) is True
    assert "job" in await queue.fetch(worker)


async def test_7_a_pause_in_a_queue_with_a_long_name(dsn: str) -> None:
    """What stands before a paused lane is not told by procrastinate, whose channels have longer names."""
    lane = engine_of(dsn, queue=f"{uuid4().hex}-of-us-7").executor.lane(1)
    await lane.pause()
    assert (await lane.picture()).state == "paused"


async def test_7_a_stopped_lane_stands(queue: Queue) -> None:
    """A failed head stops its lane, also where the rest of its request is cancelled."""
    lock = f"{queue.engine.queue}/null"
    first, second = await queue.add(work.quick, work.sync)
    (behind,) = await queue.add(work.quick)
    worker = await queue.worker()
    failed = {"state": "failed", "error_type": "E", "error": "e", "skip": False, "stop": True}
    await queue.end(worker, await queue.fetch(worker), first, **failed)
    assert await queue.database.cancel(second) == "queued"
    assert await queue.fetch(worker) == {"next_at": None}
    assert await queue.database.on_lane("skip_head", lock, None) == first
    assert (await queue.fetch(worker))["tasks"][0]["id"] == behind
    assert await queue.states() == ["failed", "cancelled", "running"]


async def test_7_a_head_that_was_to_be_cancelled(queue: Queue) -> None:
    """A failed head that is run again is a new run: who has cancelled the last one has not meant it."""
    (first,) = await queue.add(work.quick)
    worker = await queue.worker()
    job = await queue.fetch(worker)
    await queue.database.progress(first, {"done": 1})
    assert await queue.database.cancel(first) == "running"
    failed = {"state": "failed", "error_type": "E", "error": "e", "skip": True, "stop": True}
    await queue.end(worker, job, first, **failed)
    assert await queue.database.on_lane("retry_head", f"{queue.engine.queue}/null", first) == first
    assert (await queue.fetch(worker))["tasks"][0]["id"] == first
    assert await queue.database.cancelled([first]) == []
    assert (await queue.database.task(first) or {})["progress"] is None


@pytest.mark.parametrize("end", [{}, {"state": "failed", "retry_in": 3600}])
async def test_8_what_was_answered_before(end: dict[str, Any], queue: Queue) -> None:
    """A lower id in an open transaction does not block a committed higher one: only what was answered before
    a request was sent runs before it. It may also come between two runs of a task that is retried."""
    worker = await queue.worker()
    async with await psycopg.AsyncConnection.connect(queue.dsn) as connection:
        from psycopg.types.json import Jsonb
        from starlette.background import BackgroundTask

        new = queue.engine.new_task(BackgroundTask(work.quick, 1), "null", None, queue.engine.settings)
        await connection.execute(
            "SELECT fifo_background_store(%s, %s, NULL)",
            (queue.engine.queue, Jsonb(groups_of(queue.engine, [new], None))),
        )
        (later,) = await queue.add(work.quick)
        job = await queue.fetch(worker)
        assert job["tasks"][0]["id"] == later
    assert "job" not in await queue.fetch(worker)  # the lane is kept as soon as it is committed
    await queue.end(worker, job, later, **end)
    assert (await queue.fetch(worker))["tasks"][0]["id"] == new.id


async def test_9_results(dsn: str) -> None:
    """No results are stored by procrastinate: a table of ours has them, up to a size, as long as the job."""
    engine = engine_of(dsn, results_bytes=20)
    app = stored_app(engine)
    async with started(app):
        executor = executor_of(app)
        small, large, odd = [
            await executor.submit(work.sync, "small"),
            await executor.submit(work.sync, "x" * 30),
            await executor.submit(work.returns_object),
        ]
        assert await small == "small"
        for job, text in (
            (large, "it takes 32 bytes, and results_bytes is 20"),
            (odd, "object cannot be stored"),
        ):
            with pytest.raises(Exception, match=f"not stored: .*{text}"):
                await job
        assert (await small.record()).result == "small"
        assert "results_bytes" in ((await large.record()).result_omitted or "")
        await executor.join()
        assert await engine.session().database.prune(0.0) == 3
        with pytest.raises(LookupError, match="was not stored, or was pruned"):
            await small.record()
    assert await states(dsn, engine) == []


async def test_10_nothing_is_heard(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """LISTEN needs a session connection: a worker that hears nothing, as behind pgbouncer, looks."""

    async def hears_nothing(listener: Listener) -> None:
        listener.is_connected.set()
        await anyio.sleep_forever()

    monkeypatch.setattr(Listener, "_listen", hears_nothing)
    monkeypatch.setattr("fifo_background.engines.postgres._worker._UNASKED", 0.2)
    engine = engine_of(dsn)
    other = stored_app(engine_of(dsn, queue=engine.queue, worker=False))
    async with started(stored_app(engine)), started(other):
        await anyio.wait_all_tasks_blocked()
        await executor_of(other).submit(work.quick, 1)
        await until(lambda: ran == [1])


async def test_11_a_request_is_one_job(queue: Queue) -> None:
    """A failed job releases its lane: so a request's tasks are one job, which keeps Starlette's rule."""
    first, _, last = await queue.add(work.quick, work.sync, work.quick)
    (behind,) = await queue.add(work.quick)
    worker = await queue.worker()
    job = await queue.fetch(worker)
    end = {"state": "failed", "error_type": "E", "error": "e", "skip": True, "stop": False, "fetch": True}
    answer = await queue.end(worker, job, first, **end)
    assert await queue.states() == ["failed", "skipped", "skipped", "running"]
    assert answer["fetched"]["tasks"][0]["id"] == behind
    assert last


async def test_12_pruning(dsn: str) -> None:
    """Pruning: what has ended long ago is forgotten, and what waits is not."""
    engine = engine_of(dsn, keep_ended=0.02)
    app = stored_app(engine)
    async with started(app):
        executor = executor_of(app)
        await executor.lane("paused").pause()
        waiting = await executor.lane("paused").submit(work.quick, 1)
        ended = await executor.submit(work.quick, 2)
        while await executor.job(ended.id) is not None:
            await anyio.sleep(0.01)
        assert (await waiting.record()).state is JobState.QUEUED


async def test_12_pruning_a_part(queue: Queue) -> None:
    """A job is forgotten where all of its tasks have ended long ago, and not where the first one has."""
    first, second = await queue.add(work.quick, work.sync)
    worker = await queue.worker()
    job = await queue.fetch(worker)
    await queue.end(worker, job, first)
    await queue.end(worker, job, second)
    long_ago = "UPDATE fifo_background_tasks SET ended_at = ended_at - interval '1 day' WHERE id = %s"
    await rows(queue.dsn, long_ago, first)
    assert [await queue.database.count_old(3600.0), await queue.database.prune(3600.0)] == [0, 0]
    await rows(queue.dsn, long_ago, second)
    assert [await queue.database.count_old(3600.0), await queue.database.prune(3600.0)] == [1, 1]


async def test_13_a_pruned_worker(queue: Queue) -> None:
    """A pruned worker's heartbeat succeeds on 0 rows, and its next fetch fails: both are seen."""
    worker = await queue.worker()
    await queue.silent(worker)
    await queue.recover(5)
    query = "UPDATE procrastinate_workers SET last_heartbeat = clock_timestamp() WHERE id = %s RETURNING id"
    assert await rows(queue.dsn, query, worker) == []
    await queue.add(work.quick)
    with pytest.raises(WorkerLost):
        await queue.fetch(worker)
    assert await queue.states() == ["queued"]


async def test_13_a_worker_that_was_lost_begins_anew(dsn: str) -> None:
    """A worker that finds out that it was lost cancels what it has in hand, and begins anew."""
    engine = engine_of(dsn, **QUICK)
    app = stored_app(engine)
    async with started(app):
        job = await executor_of(app).submit(work.gated, 1)
        await until(lambda: ran == ["start 1"])
        await rows(
            dsn,
            "DELETE FROM procrastinate_workers WHERE id IN "
            "(SELECT id FROM fifo_background_workers WHERE queue = %s)",
            engine.queue,
        )
        await until(lambda: ran.count("start 1") == 2)
        work.gate(1).set()
        assert await job == 1
    assert ran == ["start 1", "start 1", "end 1"]


def test_14_the_watchdog() -> None:
    """The watchdog is armed only while a task is in hand: else it would end an app in an outage. Each
    confirmed heartbeat moves it on, and no task starts after its end."""
    at: list[float] = []
    lease = Lease(5.0, Watchdog(at.append))
    assert lease.hold() is False  # nothing is confirmed yet
    at.clear()
    sent = now()
    lease.renew(sent)
    assert [one for one in at if one] == []
    assert lease.hold() is True
    assert at[-1] == sent + 5.0
    lease.renew(sent + 1.0)
    lease.renew(sent)  # an older one does not move it back
    assert at[-2:] == [sent + 5.0, sent + 6.0]
    assert lease.hold() is True
    lease.let_go()
    assert at[-1] == sent + 6.0
    lease.let_go()
    assert at[-1] == 0.0


def test_14_elsewhere() -> None:
    """Where the kernel has no such timer, there is no watchdog, and a lease is still looked at."""
    lease = Lease(5.0, None)
    lease.renew(now())
    assert lease.hold() is True
    lease.let_go()
    assert signal.SIGKILL == 9


async def test_15_migrations_at_once(postgres: Any) -> None:
    """Two migrations at once: an advisory lock lets one follow the other. Of four all succeed."""
    dsn = postgres.database()
    done: list[bool] = []

    async def run() -> None:
        connection = await connect(dsn)
        try:
            done.append(await migrate(connection))
        finally:
            await connection.close()

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(run)
    assert sorted(done) == [False, False, False, True]


async def test_16_no_long_wait(dsn: str) -> None:
    """A pool waits 5 s, and backs off: here a store that cannot be done says so in its time, and the first
    one after PostgreSQL is back succeeds."""
    connections = Connections(f"{dsn}&port=1", 2)
    database = Database(connections, uuid4().hex, 0.1)

    async def nothing() -> None: ...

    with pytest.raises(StoreError):
        await database.store([], None, nothing)
    connections._dsn = dsn
    await database.store([], None, nothing)
    await connections.drop_idle()


async def test_16_a_caller_that_is_cancelled(dsn: str) -> None:
    """A statement whose caller is cancelled has no more time than the caller had, and takes no connection
    from others for longer."""
    connections = Connections(dsn, 1)
    with anyio.move_on_after(0.05):
        await connections.row("SELECT pg_sleep(60)", seconds=0.2)
    assert connections._calls
    assert await connections.row("SELECT 1", seconds=10.0) == (1,)
    assert not connections._calls
    await connections.drop_idle()


async def test_17_a_store_whose_answer_is_lost(queue: Queue) -> None:
    """A connection lost at COMMIT leaves the store unknown: done again by the same ids, it counts once."""
    from starlette.background import BackgroundTask

    new = queue.engine.new_task(BackgroundTask(work.quick, 1), "null", None, queue.engine.settings)
    groups = groups_of(queue.engine, [new], None)
    for _ in range(2):
        await queue.database.store(groups, None, queue._nothing)
    assert await queue.states() == ["queued"]


async def test_17_more_behind_a_lost_answer(dsn: str) -> None:
    """What a handler adds after a store whose answer was lost is stored, also where the queue is full."""
    engine = engine_of(dsn, worker=False)

    async def handle(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(work.quick, 1)
        session = engine.session()
        store = session.database.store

        async def lose(*given: Any) -> None:
            await store(*given)
            raise StoreError("the answer was lost")

        session.database.store = lose  # type: ignore[method-assign]
        with pytest.raises(StoreError):
            await tasks.store()
        session.database.store = store  # type: ignore[method-assign]
        tasks.add_task(work.sync, 2)
        tasks.lane("other").add_task(work.quick, 3)
        return Response(background=tasks)

    app = stored_app(engine, handle, max_waiting=1)
    async with started(app):
        assert (await get(app, "/handle")).status == 200
    assert await states(dsn, engine) == [("quick", "queued"), ("sync", "queued"), ("quick", "queued")]
    query = "SELECT count(*) FROM procrastinate_jobs WHERE queue_name = %s"
    assert await rows(dsn, query, engine.queue) == [(3,)]


async def test_17_an_end_whose_answer_is_lost(queue: Queue) -> None:
    """An end that is told again, as its answer was lost, ends nothing else: the next task is the same."""
    first, second, third = await queue.add(work.quick, work.sync, work.quick)
    worker = await queue.worker()
    job = await queue.fetch(worker)
    for _ in range(2):
        assert await queue.end(worker, job, first) == {"next": second}
    assert await queue.states() == ["succeeded", "running", "queued"]
    assert third


async def test_17_an_end_whose_fetch_fails(dsn: str) -> None:
    """The end of a task is told, also where the fetch that goes with it fails each time."""
    app = stored_app(engine := engine_of(dsn))
    async with started(app):
        database = engine.session().database
        end, fetches = database.end, []

        async def too_slow(worker: int, job: int, attempts: int, told: dict[str, Any]) -> Any:
            fetches.append(told["fetch"])
            if told["fetch"]:
                raise psycopg.errors.QueryCanceled("canceling statement due to statement timeout")
            return await end(worker, job, attempts, told)

        database.end = too_slow  # type: ignore[method-assign]
        assert [await (await executor_of(app).submit(work.quick, n)) for n in (1, 2)] == [1, 2]
    assert fetches == [True, False] * 2


async def test_17_a_fetch_whose_answer_is_lost(dsn: str) -> None:
    """A job whose fetch was not answered is given back by the worker that never had it in hand."""
    engine = engine_of(dsn, **QUICK)
    app = stored_app(engine)
    async with started(app):
        session = engine.session()
        worker = session._worker
        assert worker is not None
        fetch, lost = session.database.fetch, []

        async def lose_one(id: int) -> Any:
            found = await fetch(id)
            if "job" in found and not lost:
                lost.append(found["job"])
                raise psycopg.OperationalError("lost")
            return found

        session.database.fetch = lose_one  # type: ignore[method-assign]
        job = await executor_of(app).submit(work.quick, 1)
        assert await job == 1
        assert len(lost) == 1
        assert (await job.record()).state is JobState.SUCCEEDED


async def test_18_when_a_retry_is_due(queue: Queue) -> None:
    """A retry's wait would be rounded up to the poll: the fetch says when the next one is due, and each
    worker hears of it. One that is due, but waits for something else, is not asked for again and again."""
    (first,) = await queue.add(work.quick)
    worker, other = await queue.worker(), await queue.worker()
    job = await queue.fetch(worker)
    failed = {"state": "failed", "error_type": "E", "error": "e"}
    answer = await queue.end(worker, job, first, **failed, retry_in=30.0, fetch=True)
    for found in (answer["fetched"], await queue.fetch(other)):
        assert 29 < found["next_at"] <= 30
    await queue.database.on_lane("pause", f"{queue.engine.queue}/null")
    query = "UPDATE procrastinate_jobs SET scheduled_at = now() - interval '1 s' WHERE queue_name = %s"
    await rows(queue.dsn, query, queue.engine.queue)
    assert await queue.fetch(worker) == {"next_at": None}


async def test_20_types_survive(dsn: str) -> None:
    """JSON would lose tuples and int keys: arguments, results and keys keep them."""
    app = stored_app(engine_of(dsn))
    async with started(app):
        executor = executor_of(app)
        value = {1: (2, [3.0]), "x": work.Color.BLUE}
        job = await executor.lane(("a", (1, None))).submit(work.sync, value)
        assert await job == value
        assert type((await job)[1]) is tuple
        assert (await job.record()).lane == ("a", (1, None))
    assert ran == [value]


@pytest.mark.parametrize("bug", ["raises", "tells what PostgreSQL does not take"])
async def test_a_task_that_no_worker_can_run(
    dsn: str, bug: str, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    """An error of the worker's own, not of the task: the task fails after as many runs as if it had ended its
    worker, each with a traceback in the log, and its lane goes on."""
    runs: list[str] = []
    plain = Tasks.run

    async def broken(self: Tasks, one: Any, task: Any, running: Any) -> Any:
        if task.name != "gated":
            return await plain(self, one, task, running)
        runs.append(task.id)
        if bug == "raises":
            raise KeyError("a bug")
        return {"id": task.id, "state": "succeeded", "result": "\0"}

    monkeypatch.setattr(Tasks, "run", broken)
    app = stored_app(engine_of(dsn), handler((work.gated, 1), (work.quick, 2)))
    async with started(app):
        executor = executor_of(app)
        await get(app, "/handle")
        assert await (await executor.submit(work.quick, 3)) == 3
        (gated,) = await executor.jobs(states=[JobState.FAILED])
        (skipped,) = await executor.jobs(states=[JobState.SKIPPED])
        assert runs == [gated.id] * 5
        assert skipped.name == "quick"
        kind = "KeyError" if bug == "raises" else "UntranslatableCharacter"
        assert gated.error == (kind, "a worker could not run it, 5 times")
    told = [record for record in log.records if record.getMessage().startswith("a worker could not run")]
    assert len(told) == 5
    assert all(record.exc_info is not None for record in told)
