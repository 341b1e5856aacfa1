"""The status API shows and operates tasks in PostgreSQL as it does those in memory, from any process."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import anyio.to_thread
import psycopg
import pytest

from fifo_background import JobState, executor_of, report
from fifo_background.engines.postgres import PostgresEngine, Retry
from tests.engines import work
from tests.engines.stored import engine_of, rows, stored_app
from tests.engines.work import fresh  # noqa: F401
from tests.support.asgi import started
from tests.support.postgres import migrated
from tests.support.status import Answer, Site, events_of

PATIENCE = 20.0


class Place:
    """A site, and where its tasks are."""

    def __init__(self, dsn: str, kind: str) -> None:
        self.dsn = dsn
        self.kind = kind
        self.queue = uuid4().hex
        self.engines: list[PostgresEngine] = []

    def engine(self, **settings: Any) -> PostgresEngine:
        engine = PostgresEngine(self.dsn, packages=["tests"], queue=self.queue, **settings)
        self.engines.append(engine)
        return engine

    def site(self, middleware: dict[str, Any] | None = None, **settings: Any) -> Site:
        given = middleware or {}
        if self.kind == "postgres":
            given = {
                name: value for name, value in given.items() if not name.startswith(("history", "results"))
            }
            given["engine"] = self.engine()
        return Site("app", given, **{"stream_seconds": 60, **settings})


@pytest.fixture
def place(request: pytest.FixtureRequest, dsn: str) -> Place:
    return Place(dsn, getattr(request, "param", "postgres"))


BOTH = pytest.mark.parametrize("place", ["memory", "postgres"], indirect=True)


@contextlib.asynccontextmanager
async def running(
    place: Place, middleware: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Site]:
    """A site whose app has started."""
    site = place.site(middleware, **settings)
    async with started(site.app):
        yield site


async def until(look: Callable[[], Awaitable[Any]]) -> Any:
    """What it gives as soon as that is true."""
    with anyio.fail_after(PATIENCE):
        while not (found := await look()):
            await anyio.sleep(0.01)
    return found


async def state(site: Site, job: Any, *states: str) -> dict[str, Any]:
    """The job as JSON, once it is in one of these states."""

    async def look() -> Any:
        found = (await site.get(f"/jobs/{job.id}")).json()
        return found if found["state"] in states else None

    found: dict[str, Any] = await until(look)
    return found


async def held(site: Site, key: Any = None, n: Any = 1) -> Any:
    """A job that runs until its gate is set."""
    job = await site.executor.lane(key).submit(work.gated, n)
    await state(site, job, "running")
    return job


async def lane_of(site: Site, job: Any) -> str:
    return str((await site.get(f"/jobs/{job.id}")).json()["lane"]["id"])


async def numbers(site: Site, query: str) -> list[int]:
    return [job["number"] for job in (await site.get(f"/jobs?{query}")).json()["items"]]


async def number(site: Site, job: Any) -> int:
    return int((await site.get(f"/jobs/{job.id}")).json()["number"])


def head(job: Any) -> bytes:
    return json.dumps({"head": job.id}).encode()


async def slow_steps() -> None:
    report(2, 5, "steps")
    await work.gate("steps").wait()


# -- jobs ----------------------------------------------------------------------------------------------------


@BOTH
async def test_job(place: Place) -> None:
    """A job is shown as it is, in the same words."""
    async with running(place, {"results": True}, show_results=True) as site:
        job = await held(site)
        answer = await site.get(f"/jobs/{job.id}")
        found = answer.json()
        assert (answer.status, answer.headers["retry-after"]) == (200, "1")
        assert (found["id"], found["function"], found["lane"]["name"]) == (job.id, "gated", "default")
        assert (found["state"], found["done"], found["attempts"], found["ahead"]) == (
            "running",
            False,
            1,
            None,
        )
        assert found["started_at"].endswith("Z")
        work.gate(1).set()
        found = await state(site, job, "succeeded")
        assert (found["done"], found["result"], found["error"]) == (True, 1, None)
        assert found["waited"] >= 0 <= found["ran"]


@BOTH
async def test_result_is_hidden(place: Place) -> None:
    """Results are shown with `show_results` only."""
    async with running(place, {"results": True}) as site:
        job = await site.executor.submit(work.quick, 1)
        assert (await state(site, job, "succeeded"))["result"] is None


@BOTH
async def test_error(place: Place) -> None:
    """An error is its type and its message."""
    async with running(place) as site:
        job = await site.executor.submit(work.fails, 1)
        assert (await state(site, job, "failed"))["error"] == {"type": "ValueError", "message": "no 1"}


@BOTH
async def test_nobody(place: Place) -> None:
    """An id that was never given out is a 404, whatever it is."""
    async with running(place) as site:
        assert (await site.get("/jobs/nobody")).problem()[0] == 404
        assert (await site.post("/jobs/nobody/cancel")).problem()[0] == 404
        for lane in ("nobody", "InMi\U0001f4a5", "bm9ib2R5", "eyIkZW51bSI6WyJvczpzeXN0ZW0iLCJ4Il19"):
            for operation in ("pause", "resume", "skip", "retry", "clear"):
                assert (await site.post(f"/lanes/{lane}/{operation}")).problem()[0] == 404
            assert await numbers(site, f"lane={lane}") == []


@BOTH
async def test_lists(place: Place) -> None:
    """Jobs come newest first, page by page, narrowed by state, lane, function and text."""
    async with running(place, {"max_lanes_running": 8} if place.kind == "memory" else None) as site:
        executor = site.executor
        done = await executor.lane("a").submit(work.quick, 1)
        failed = await executor.lane("b").submit(work.fails, 1)
        await state(site, done, "succeeded")
        await state(site, failed, "failed")
        runs = await held(site, "c")
        waits, cancelled = [await executor.lane("c").submit(work.quick, n) for n in (1, 2)]
        await site.post(f"/jobs/{cancelled.id}/cancel")
        jobs = {
            name: await number(site, job)
            for name, job in zip("dfrwc", (done, failed, runs, waits, cancelled), strict=True)
        }

        def those(names: str) -> list[int]:
            return [jobs[name] for name in names]

        assert await numbers(site, "") == those("cwrfd")
        assert await numbers(site, "state=waiting") == those("w")
        assert await numbers(site, "state=not_run") == those("c")
        assert await numbers(site, "state=ended") == those("cfd")
        assert await numbers(site, "state=running,failed") == those("rf")
        assert await numbers(site, "state=skipped") == []
        assert await numbers(site, f"lane={await lane_of(site, runs)}") == those("cwr")
        assert await numbers(site, f"lane={await lane_of(site, runs)}&state=running") == those("r")
        assert await numbers(site, "function=fails") == those("f")
        assert await numbers(site, "q=QUICK") == those("cwd")
        assert await numbers(site, f"q={failed.id[:20]}") == those("f")
        seen, query = [], "?limit=2"
        while query:
            answer = await site.get(f"/jobs{query}")
            seen += [job["number"] for job in answer.json()["items"]]
            query = answer.headers.get("link", "").removeprefix("<").removesuffix('>; rel="next"')
        assert seen == those("cwrfd")
        work.gate(1).set()


async def test_no_worker_is_in_the_way(dsn: str) -> None:
    """What is first in its lane waits for a slot of a worker or, where none is alive, for a worker."""
    engine = engine_of(dsn, worker=False)
    app = stored_app(engine)
    async with started(app):
        executor = executor_of(app)
        await executor.submit(work.quick, 1)

        async def blocked_by() -> list[str]:
            (job,) = await executor.jobs(states=[JobState.QUEUED])
            (lane,) = (await executor.lanes()).items
            return [one.blocked_by.kind for one in (job, lane.head)]

        assert await blocked_by() == ["worker", "worker"]
        database = engine.session().database
        lost = await database.register(60.0, "host", 1, 1)
        assert await blocked_by() == ["slot", "slot"]
        query = "UPDATE procrastinate_workers SET last_heartbeat = now() - interval '61 s' WHERE id = %s"
        await rows(dsn, query, lost)
        assert await blocked_by() == ["worker", "worker"]


@BOTH
async def test_what_is_in_the_way(place: Place) -> None:
    """A waiting job says how many are ahead, and what blocks it."""
    async with running(place) as site:
        first = await held(site, "a")
        rest = [await site.executor.lane("a").submit(work.quick, n) for n in range(3)]
        found = [(await site.get(f"/jobs/{job.id}")).json() for job in rest]
        assert [job["ahead"] for job in found] == [1, 2, 3]
        for job in found:
            assert (job["blocked_by"]["kind"], job["blocked_by"]["id"]) == ("job", first.id)
        await site.post(f"/lanes/{found[0]['lane']['id']}/pause")
        work.gate(1).set()
        await state(site, first, "succeeded")
        found = [(await site.get(f"/jobs/{job.id}")).json() for job in rest]
        assert [(job["ahead"], job["blocked_by"]["kind"]) for job in found] == [
            (n, "paused") for n in range(3)
        ]
        await site.post(f"/lanes/{found[0]['lane']['id']}/clear")
        await site.post(f"/lanes/{found[0]['lane']['id']}/resume")


@BOTH
async def test_text_that_postgresql_does_not_take(place: Place) -> None:
    """Nothing is found by it."""
    async with running(place) as site:
        await state(site, await site.executor.submit(work.quick, 1), "succeeded")
        for query in ("function=%00", "lane=%00"):
            assert await numbers(site, query) == []
        if place.kind == "postgres":
            assert await site.executor.jobs(search="\0") == []
            assert await site.executor.job("\0") is None
            assert await site.executor.handle("\0").cancel() is False
            assert await site.executor.lane(1).skip_head("\0") is None


@BOTH
async def test_progress(place: Place) -> None:
    """What a task reports is shown."""
    async with running(place) as site:
        job = await site.executor.submit(slow_steps)

        async def look() -> Any:
            return (await site.get(f"/jobs/{job.id}")).json()["progress"]

        assert await until(look) == {"done": 2, "total": 5, "note": "steps"}
        work.gate("steps").set()


# -- waiting for a job ---------------------------------------------------------------------------------------


@BOTH
async def test_wait(place: Place) -> None:
    """The answer comes when the job has ended."""
    async with running(place) as site:
        job = await held(site)
        exchange = site.exchange(f"/jobs/{job.id}?wait=20")
        async with anyio.create_task_group() as group:
            group.start_soon(exchange.run)
            await anyio.sleep(0.05)
            assert not exchange.messages
            work.gate(1).set()
        assert Answer(exchange).json()["state"] == "succeeded"


@BOTH
async def test_wait_ends(place: Place) -> None:
    """A wait ends with its time, and with its client."""
    async with running(place) as site:
        job = await held(site)
        for wait in ("0", "0.01"):
            assert (await site.get(f"/jobs/{job.id}?wait={wait}")).json()["done"] is False
        exchange = site.exchange(f"/jobs/{job.id}?wait=30")
        async with anyio.create_task_group() as group:
            group.start_soon(exchange.run)
            await anyio.sleep(0.05)
            exchange.disconnected.set()
            await exchange.ended.wait()
        work.gate(1).set()


@BOTH
async def test_shutdown_ends_waits_and_streams(place: Place) -> None:
    """An app that shuts down ends what is open at once, before it has run what is left."""
    async with anyio.create_task_group() as group, running(place) as site:
        job = await held(site)
        exchanges = [site.exchange(path) for path in (f"/jobs/{job.id}?wait=30", "/events")]
        for exchange in exchanges:
            group.start_soon(exchange.run)
        await until_events(exchanges[1])

        async def end() -> None:
            with anyio.fail_after(PATIENCE):
                for exchange in exchanges:
                    await exchange.ended.wait()
            work.gate(1).set()

        group.start_soon(end)
    assert Answer(exchanges[0]).json()["done"] is False


# -- operating -----------------------------------------------------------------------------------------------


@BOTH
async def test_cancel(place: Place) -> None:
    """A waiting job is cancelled at once, a running one soon; one that has ended is a conflict."""
    async with running(place) as site:
        runs = await held(site)
        waits = await site.executor.submit(work.quick, 2)
        answer = await site.post(f"/jobs/{waits.id}/cancel")
        assert (answer.status, answer.json()["state"]) == (202, "cancelled")
        assert (await site.post(f"/jobs/{runs.id}/cancel")).status == 202
        await state(site, runs, "cancelled")
        status, detail = (await site.post(f"/jobs/{runs.id}/cancel")).problem()
        assert (status, detail) == (409, "The job has ended: its state is cancelled.")


@BOTH
async def test_cancel_in_a_thread(place: Place) -> None:
    """A job that runs in a thread cannot be cancelled."""
    async with running(place) as site:
        job = await site.executor.submit(work.thread_gated, 1)
        await state(site, job, "running")
        status, detail = (await site.post(f"/jobs/{job.id}/cancel")).problem()
        assert (status, "thread" in detail) == (409, True)

        async def opened() -> Any:
            return work.thread_gates.get(1)

        (await until(opened)).set()
        await state(site, job, "succeeded")


@BOTH
@pytest.mark.parametrize("key", ["a/b", ("a", 1), 1, "1", None, "../../x", "<script>alert(1)</script>", "é"])
async def test_pause_and_resume(place: Place, key: Any) -> None:
    """A lane is paused and resumed by its id, whatever its key is; twice is fine."""
    async with running(place) as site:
        first = await held(site, key)
        second = await site.executor.lane(key).submit(work.quick, 2)
        lane = await lane_of(site, first)
        for _ in range(2):
            answer = await site.post(f"/lanes/{lane}/pause")
            assert (answer.status, answer.json()["id"], answer.json()["state"]) == (200, lane, "paused")
        work.gate(1).set()
        await state(site, first, "succeeded")
        assert (await site.get(f"/jobs/{second.id}")).json()["state"] == "queued"
        for _ in range(2):
            answer = await site.post(f"/lanes/{lane}/resume")
            assert (answer.status, answer.json()["id"]) == (200, lane)
        await state(site, second, "succeeded")


@BOTH
async def test_skip(place: Place) -> None:
    """The head is skipped if the client knows it, or names none; there must be one."""
    async with running(place) as site:
        first = await held(site)
        lane = await lane_of(site, first)
        second, third = [await site.executor.submit(work.quick, n) for n in (2, 3)]
        stale = await site.post(f"/lanes/{lane}/skip", body=head(third))
        assert (stale.problem()[0], stale.json()["head"]) == (409, second.id)
        answer = await site.post(f"/lanes/{lane}/skip", body=head(second))
        assert (answer.status, answer.json()["head"]["id"]) == (200, third.id)
        assert (await site.post(f"/lanes/{lane}/skip")).status == 200
        assert (await site.post(f"/lanes/{lane}/skip", body=b"{}")).problem()[0] == 409
        stale = await site.post(f"/lanes/{lane}/skip", body=b'{"head": "x"}')
        assert (stale.problem()[0], stale.json()["head"]) == (409, None)
        for job in (second, third):
            assert (await site.get(f"/jobs/{job.id}")).json()["state"] == "skipped"
        work.gate(1).set()


@BOTH
async def test_stopped_lane(place: Place) -> None:
    """A stopped lane comes first, with its failed head, which is retried or skipped if that is meant."""
    async with running(place) as site:
        lane_a = site.executor.lane("a", after_failure="stop")
        failed = await lane_a.submit(work.fails_until, "x", 2)
        behind = await lane_a.submit(work.quick, 2)
        await state(site, failed, "failed")
        other = await held(site, "b")
        lanes = (await site.get("/lanes")).json()
        assert lanes["total"] == 2
        lane = lanes["items"][0]
        assert (lane["name"], lane["state"], lane["head"]["id"]) == ("a", "stopped", failed.id)
        assert (lane["waiting"], lane["more"]) == (1, 0)
        assert lane["next"] == [{"from": 1, "to": 1, "function": "quick"}]
        assert lane["head"]["error"] == {"type": "ValueError", "message": "not yet x"}
        found = (await site.get(f"/jobs/{behind.id}")).json()
        assert (found["ahead"], found["blocked_by"]["kind"]) == (1, "failed")
        assert found["blocked_by"]["id"] == failed.id
        id_ = lane["id"]
        assert (await site.post(f"/lanes/{id_}/retry", body=b'{"head": "x"}')).problem()[0] == 409
        assert (await site.post(f"/lanes/{id_}/retry", body=head(failed))).status == 200
        await state(site, behind, "succeeded")
        status, detail = (await site.post(f"/lanes/{id_}/retry")).problem()
        assert (status, detail) == (409, "The lane has not stopped, so there is nothing to retry.")
        assert work.ran == ["x", "start 1", "x", 2]
        work.gate(1).set()
        await state(site, other, "succeeded")
        again = await site.executor.lane("a", after_failure="stop").submit(work.fails, 1)
        await state(site, again, "failed")
        assert (await site.post(f"/lanes/{id_}/skip", body=head(again))).json()["state"] == "idle"


@BOTH
async def test_clear(place: Place) -> None:
    """All that waits in the lane is cancelled; a lane without any is cleared, too."""
    async with running(place) as site:
        first = await held(site)
        waits = [await site.executor.submit(work.quick, n) for n in (2, 3)]
        lane = await lane_of(site, first)
        for _ in range(2):
            answer = await site.post(f"/lanes/{lane}/clear")
            assert (answer.status, answer.json()["waiting"], answer.json()["state"]) == (200, 0, "busy")
        for job in waits:
            assert (await site.get(f"/jobs/{job.id}")).json()["state"] == "cancelled"
        work.gate(1).set()


# -- lanes, figures ------------------------------------------------------------------------------------------


@BOTH
async def test_lanes(place: Place) -> None:
    """Lanes: paused ones, busy ones by the age of their heads, idle ones; with what has run in them."""
    async with running(place) as site:
        executor = site.executor
        for n in range(3):
            await (await executor.lane("idle").submit(work.quick, n)).wait()
        await held(site, "old", 1)
        await held(site, "new", 1)
        for func in (work.quick, work.quick, work.sync, work.quick, work.sync):
            await executor.lane("new").submit(func, 1)
        paused = await executor.lane("paused").submit(work.gated, 1)
        await state(site, paused, "running")
        await site.post(f"/lanes/{await lane_of(site, paused)}/pause")

        async def look() -> Any:
            found = (await site.get("/lanes")).json()
            return found if [lane["name"] for lane in found["items"]][3:] == ["idle"] else None

        found = await until(look)
        assert [lane["name"] for lane in found["items"]] == ["paused", "old", "new", "idle"]
        assert found["total"] == 4
        _, old, new, idle = found["items"]
        assert (old["running"]["function"], old["head"], old["waiting"]) == ("gated", None, 0)
        assert (new["waiting"], new["more"], new["head"]["function"]) == (5, 1, "quick")
        assert new["next"] == [
            {"from": 1, "to": 2, "function": "quick"},
            {"from": 3, "to": 3, "function": "sync"},
            {"from": 4, "to": 4, "function": "quick"},
        ]
        assert (idle["state"], idle["ended"], idle["failed"]) == ("idle", 3, 0)
        assert [one["state"] for one in idle["recent"]] == ["succeeded"] * 3
        assert idle["ran"]["p50"] <= idle["ran"]["p95"]
        assert [lane["name"] for lane in (await site.get("/lanes?limit=1")).json()["items"]] == ["paused"]
        figures = (await site.get("/summary")).json()
        assert (figures["running"], figures["waiting"], figures["succeeded"]) == (3, 5, 3)
        assert figures["oldest"]["lane"]["name"] == "new"
        assert figures["oldest"]["id"] == new["head"]["id"]
        assert (figures["state"], figures["operate"]) == ("open", True)
        await site.post(f"/lanes/{found['items'][0]['id']}/resume")
        work.gate(1).set()


# -- events --------------------------------------------------------------------------------------------------


def ticks_of(exchange: Any) -> list[tuple[str, str, Any]]:
    return [event for event in events_of(exchange) if event[0] == "tick"]


async def until_events(exchange: Any, least: int = 1) -> list[tuple[str, str, Any]]:
    async def look() -> Any:
        found = events_of(exchange)
        return found if len(found) >= least else None

    found: list[tuple[str, str, Any]] = await until(look)
    return found


class Stream:
    """An open event stream."""

    def __init__(self, site: Site, group: Any, after: str | None = None) -> None:
        self.exchange = site.exchange("/events", headers={} if after is None else {"last-event-id": after})
        group.start_soon(self.exchange.run)

    async def until_ended(self, count: int) -> list[str]:
        """The ids of so many jobs that have ended."""

        async def look() -> Any:
            found = self.ended()
            return found if len(found) >= count else None

        found: list[str] = await until(look)
        return found

    def ended(self) -> list[str]:
        return [job["id"] for _, _, data in events_of(self.exchange) for job in data.get("ended", [])]

    async def close(self) -> str:
        """The id of the last event."""
        self.exchange.disconnected.set()
        await self.exchange.ended.wait()
        return ticks_of(self.exchange)[-1][1]


@BOTH
async def test_events(place: Place) -> None:
    """Who comes back with `Last-Event-ID` hears of each job that has ended, once, without its result."""
    async with (
        running(place, {"results": True}, show_results=True) as site,
        anyio.create_task_group() as group,
    ):
        before = await site.executor.submit(work.quick, 0)
        await state(site, before, "succeeded")
        seen: list[str] = []
        added: list[str] = []
        last = None
        for n in range(3):
            stream = Stream(site, group, last)
            ((name, _, data),) = (await until_events(stream.exchange))[:1]
            assert name == "tick"
            assert data.keys() == {"time", "summary", "lanes", "ended"}
            jobs = [await site.executor.lane(n % 2).submit(work.quick, n) for _ in range(3)]
            added += [job.id for job in jobs]
            missing = len(added) - len(seen)
            seen += await stream.until_ended(missing)
            last = await stream.close()
            if n < 2:
                job = await site.executor.submit(work.quick, n)  # while nobody looks
                added.append(job.id)
                await state(site, job, "succeeded")
        assert sorted(seen) == sorted(added)
        assert last.partition("-")[2] == str(len(added) + 1)


@BOTH
async def test_events_tell_of_changes(place: Place) -> None:
    """A tick comes when something has changed: a job that starts, a lane that is paused, progress."""
    async with running(place) as site, anyio.create_task_group() as group:
        stream = Stream(site, group)
        await until_events(stream.exchange)

        def last() -> Any:
            return ticks_of(stream.exchange)[-1][2]

        async def runs() -> Any:
            return last()["summary"]["running"] == 1

        async def is_paused() -> Any:
            return last()["lanes"]["items"][0]["state"] == "paused"

        async def reports() -> Any:
            return last()["lanes"]["items"][0]["running"]["progress"]

        job = await site.executor.submit(slow_steps)
        await until(runs)
        await until(reports)
        await site.post(f"/lanes/{await lane_of(site, job)}/pause")
        await until(is_paused)
        await site.post(f"/lanes/{await lane_of(site, job)}/resume")
        work.gate("steps").set()
        await stream.until_ended(1)
        await stream.close()


@BOTH
async def test_unknown_event(place: Place) -> None:
    """An id of another epoch, or of the future, begins anew with a reset."""
    async with running(place) as site, anyio.create_task_group() as group:
        stream = Stream(site, group)
        await until_events(stream.exchange)
        epoch = (await stream.close()).partition("-")[0]
        for last in ("other-0", f"{epoch}-9"):
            stream = Stream(site, group, last)
            assert [name for name, _, _ in await until_events(stream.exchange, 2)] == ["reset", "tick"]
            await stream.close()


async def test_pruned_event(place: Place) -> None:
    """Who has missed what was pruned gets a reset."""
    async with running(place) as site, anyio.create_task_group() as group:
        for n in range(2):
            await (await site.executor.submit(work.quick, n)).wait()
        epoch, count = await site.executor.last_end()
        database = place.engines[0].session().database

        async def ended() -> Any:
            return await database.prune(0.0) == 0

        await until(ended)
        for after, expected in ((count, ["tick"]), (count - 1, ["reset", "tick"])):
            stream = Stream(site, group, f"{epoch}-{after}")
            assert [name for name, _, _ in await until_events(stream.exchange, len(expected))] == expected
            await stream.close()
        assert (await site.get("/jobs")).json()["items"] == []
        assert (await site.get("/summary")).json()["succeeded"] == 2


# -- PostgreSQL alone ----------------------------------------------------------------------------------------


async def test_order_of_ends(place: Place) -> None:
    """An end that is committed late gets a late number: who has seen a number misses no smaller one."""
    async with running(place) as site:
        jobs = [await held(site, n, n) for n in range(2)]
        executor = site.executor
        query = (
            "UPDATE fifo_background_tasks SET state = 'succeeded', ended_at = clock_timestamp() WHERE id = %s"
        )
        late = await psycopg.AsyncConnection.connect(place.dsn)
        async with late:
            await late.execute(query, (jobs[0].id,))
            async with await psycopg.AsyncConnection.connect(place.dsn) as early:
                await early.execute(query, (jobs[1].id,))
            assert (await executor.last_end())[1] == 1
            records, last = await executor.ended(0)
            assert ([record.id for record in records], last) == ([jobs[1].id], 1)
        records, last = await executor.ended(last)
        assert (records, last) == ([], 1)
        assert (await executor.last_end())[1] == 2
        records, last = await executor.ended(last)
        assert ([record.id for record in records], last) == ([jobs[0].id], 2)
        for n in range(2):
            work.gate(n).set()


async def test_retries(place: Place) -> None:
    """A task that waits to be run again shows its attempts and its last error, and blocks its lane."""
    async with running(place) as site:
        retry = Retry(attempts=2, wait=60.0)
        job = await site.executor.lane("a").options(retry=retry).submit(work.fails, 1)
        behind = await site.executor.lane("a").submit(work.quick, 2)

        async def look() -> Any:
            found = (await site.get(f"/jobs/{job.id}")).json()
            return found if found["error"] else None

        found = await until(look)
        assert (found["state"], found["attempts"], found["started_at"], found["ran"]) == (
            "queued",
            1,
            None,
            None,
        )
        assert found["error"] == {"type": "ValueError", "message": "no 1"}
        found = (await site.get(f"/jobs/{behind.id}")).json()
        assert (found["ahead"], found["blocked_by"]["kind"], found["blocked_by"]["id"]) == (
            1,
            "retry",
            job.id,
        )
        assert (await site.get("/lanes")).json()["items"][0]["state"] == "busy"
        assert (await site.post(f"/jobs/{job.id}/cancel")).json()["state"] == "cancelled"
        await state(site, behind, "succeeded")


async def test_large_results(place: Place) -> None:
    """A list leaves out a large result, which the job alone has."""
    async with running(place, show_results=True) as site:
        job = await site.executor.submit(work.quick, "x" * 20_000)
        assert (await state(site, job, "succeeded"))["result"] == "x" * 20_000
        (found,) = (await site.get("/jobs")).json()["items"]
        assert (found["result"], found["result_omitted"]) == (None, "it is large: ask for this job alone")


async def test_key_of_another_app(place: Place) -> None:
    """A lane whose key this app cannot read is shown by what is stored, and all others are shown, too."""
    async with running(place) as site:
        job = await site.executor.lane(work.Color.RED).submit(work.quick, 1)
        await state(site, job, "succeeded")
        place.engines[0].functions.packages = frozenset({"other"})
        (found,) = (await site.get("/jobs")).json()["items"]
        assert found["lane"]["name"] == '{"$enum":["tests.engines.work:Color","RED"]}'
        assert (await site.get("/lanes")).json()["items"][0]["name"] == found["lane"]["name"]
        assert (await site.post(f"/lanes/{found['lane']['id']}/pause")).problem()[0] == 404


async def test_other_process(place: Place) -> None:
    """A process without a worker shows, operates and follows what another one runs."""
    elsewhere = place.engine()
    site = Site("app", {"engine": place.engine(worker=False)}, stream_seconds=60)
    async with started(site.app), anyio.create_task_group() as group:
        await elsewhere.open()
        stream = Stream(site, group)
        await until_events(stream.exchange)
        runs = await held(site, "a")
        waits = await site.executor.lane("a").submit(work.quick, 2)
        figures = (await site.get("/summary")).json()
        assert (figures["running"], figures["waiting"], figures["max_running"]) == (1, 1, 8)
        assert (await site.post(f"/jobs/{runs.id}/cancel")).status == 202
        assert set(await stream.until_ended(2)) == {runs.id, waits.id}
        assert (await state(site, waits, "succeeded"))["ahead"] is None
        await stream.close()
        await elsewhere.close()


async def test_real_process(place: Place, tmp_path: Path) -> None:
    """The same with a process of its own, whose end does not end what it was told."""
    site = Site("app", {"engine": place.engine(worker=False)}, show_results=True, stream_seconds=60)
    script = tmp_path / "elsewhere.py"
    script.write_text(ELSEWHERE)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [sys.executable, str(script), place.dsn, place.queue]
    with subprocess.Popen(arguments, env=env, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert await anyio.to_thread.run_sync(process.stdout.readline) == b"works\n"
            await shows_the_other_process(site)
        finally:
            process.kill()


async def shows_the_other_process(site: Site) -> None:
    async with started(site.app), anyio.create_task_group() as group:
        stream = Stream(site, group)
        await until_events(stream.exchange)
        slow = await site.executor.lane("a").submit(work.gated, 1)  # its gate is never set there
        quick = await site.executor.lane("b").submit(work.quick, 2)
        answer = await site.get(f"/jobs/{quick.id}?wait=30")
        assert (answer.json()["state"], answer.json()["result"]) == ("succeeded", 2)
        await state(site, slow, "running")
        assert await stream.until_ended(1) == [quick.id]
        assert (await site.post(f"/jobs/{slow.id}/cancel")).status == 202
        await state(site, slow, "cancelled")
        await stream.until_ended(2)
        await stream.close()


ELSEWHERE = """
import asyncio, sys
from fifo_background.engines.postgres import PostgresEngine

async def main():
    await PostgresEngine(sys.argv[1], packages=["tests"], queue=sys.argv[2]).open()
    print("works", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_unreachable(place: Place) -> None:
    """Without PostgreSQL the API answers 503 and says when to come back, and a stream ends."""
    engine = PostgresEngine("postgresql://nobody@127.0.0.1:9/none", packages=["tests"], worker=False)
    database = engine.session().database
    patient = database._value

    async def impatient(query: str, *values: Any, **more: Any) -> Any:
        return await patient(query, *values, **{**more, "seconds": 0.05})

    database._value = impatient  # type: ignore[method-assign]
    site = Site("app", {"engine": engine})
    for path in ("/summary", "/jobs", "/jobs/x", "/lanes"):
        answer = await site.get(path)
        assert answer.problem()[0] == 503
        assert answer.headers["retry-after"] == "1"
    exchange = await site.exchange("/events").run()
    assert exchange.error is None
    assert exchange.messages[-1]["more_body"] is False
    await engine.open()
    await engine.close()


def blocks(connection: psycopg.Connection[Any], statement: str, *values: Any) -> int:
    """How many pages of the database a statement looks at."""
    query = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}"
    for _ in range(2):  # the first one reads catalogs
        ((plan,),) = connection.execute(query.encode(), values or None).fetchall()
    root = plan[0]["Plan"]
    return int(root["Shared Hit Blocks"] + root["Shared Read Blocks"])


def test_bounded_work(postgres: Any) -> None:
    """What the page asks for looks at about as much, whatever waits; also without statistics."""
    dsn = postgres.database()
    anyio.run(migrated, dsn)
    statements = {
        "lanes": "SELECT fifo_background_lanes('q', 10)",
        "lane": """SELECT fifo_background_lane('q', '"0"')""",
        "ended": "SELECT fifo_background_ended('q', 100, 50)",
        "last_end": "SELECT fifo_background_number_ends('q', true)",
        "list": "SELECT fifo_background_list('q', NULL, NULL, NULL, NULL, 50, NULL)",
        "failed": "SELECT fifo_background_list('q', '{failed}', NULL, NULL, NULL, 50, NULL)",
        "page": "SELECT fifo_background_list('q', NULL, NULL, NULL, NULL, 50, 1000)",
        "task": "SELECT fifo_background_task('q', 'new 2500')",
        "peek": """SELECT fifo_background_peek('q', 'q/"0"')""",
    }
    with psycopg.connect(dsn, autocommit=True) as connection:
        for table in ("fifo_background_tasks", "procrastinate_jobs"):
            connection.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)".encode())
        fill(connection, "old", 1000, ended=True)
        fill(connection, "new", 3000)  # as many in each lane as are looked at
        few = {name: blocks(connection, statement) for name, statement in statements.items()}
        fill(connection, "more", 9000)
        fill(connection, "other", 3000, "other ", ended=True)
        many = {name: blocks(connection, statement) for name, statement in statements.items()}
        connection.execute("ANALYZE")
        known = {name: blocks(connection, statement) for name, statement in statements.items()}
    for name, least in few.items():
        assert many[name] < 3 * least + 100, (name, few, many)
        assert known[name] < 3 * least + 100, (name, few, known)


def fill(
    connection: psycopg.Connection[Any], name: str, count: int, lanes: str = "", *, ended: bool = False
) -> None:
    """Tasks in 10 lanes."""
    jobs = """INSERT INTO procrastinate_jobs (queue_name, task_name, lock)
        SELECT 'q', %s, 'q/"' || %s || n %% 10 || '"' FROM generate_series(1, %s) AS n"""
    tasks = """INSERT INTO fifo_background_tasks
        (id, job_id, place, queue, lane, function, arguments, options)
        SELECT task_name || ' ' || id, id, 0, 'q', substr(lock, 3), 'a:b', '[]', '{}'
        FROM procrastinate_jobs WHERE task_name = %s ORDER BY id"""
    connection.execute(jobs, (name, lanes, count))
    connection.execute(tasks, (name,))
    if ended:
        connection.execute(
            "UPDATE fifo_background_tasks SET started_at = added_at, ended_at = added_at, "
            "state = CASE number %% 20 WHEN 0 THEN 'failed' ELSE 'succeeded' END WHERE id LIKE %s",
            (f"{name}%",),
        )
        connection.execute("UPDATE procrastinate_jobs SET status = 'succeeded' WHERE task_name = %s", (name,))
        connection.execute("SELECT fifo_background_number_ends('q', true)")
    connection.execute("VACUUM fifo_background_tasks, procrastinate_jobs")


# -- metrics -------------------------------------------------------------------------------------------------


async def test_metrics(place: Place) -> None:
    """Metrics report what this process's worker runs, and the backlog of all processes."""
    pytest.importorskip("opentelemetry.sdk")
    from fifo_background.status.metrics import instrument
    from tests.test_status_metrics import Meters

    meters = Meters()
    async with running(place) as site:
        instrument(site.app, meters.provider, durations=True)
        assert (await meters())["jobs.running", "{job}"] == {(): 0}
        await (await site.executor.lane("x").submit(work.quick, 0)).wait()
        await (await site.executor.lane("x").submit(work.fails, 0)).wait()
        again = (
            await site.executor.lane("x")
            .options(retry=Retry(attempts=2, wait=0.0))
            .submit(work.fails_until, "again", 2)
        )
        await again.wait()
        await held(site, "a")
        behind = await site.executor.lane("a").submit(work.quick, 1)

        async def look() -> Any:
            found = await meters()
            return found if found["jobs.waiting", "{job}"] == {(): 1} else None

        found = await until(look)
        assert found["jobs.running", "{job}"] == {(): 1}
        assert found["head.age", "s"][()] > 0
        ended = found["jobs.ended", "{job}"]
        assert (ended["succeeded",], ended["failed",], ended["cancelled",]) == (2, 1, 0)
        ran = found["job.ran", "s"]
        assert {name: point.count for name, point in ran.items()} == {
            ("quick", "succeeded"): 1,
            ("fails", "failed"): 1,
            ("fails_until", "succeeded"): 1,
        }
        assert all(point.count == ran[name].count for name, point in found["job.waited", "s"].items())
        assert found["jobs.unmeasured", "{job}"] == {(): 0}
        work.gate(1).set()
        await behind.wait()
