"""Every endpoint of the status API, in both faces."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked

from fifo_background import JobState
from fifo_background.status.query import GROUPS
from tests.support.apps import Work
from tests.support.status import FACES, Answer, Site

JOB_KEYS = {
    *("id", "number", "function", "lane", "state", "done", "added_at", "started_at", "ended_at", "waited"),
    *("ran", "attempts", "ahead", "ahead_more", "blocked_by", "progress", "request", "retry_of", "result"),
    *("result_omitted", "error"),
}


async def fail(message: str = "card declined") -> None:
    raise ValueError(message)


async def numbers(site: Site, query: str) -> list[int]:
    return [job["number"] for job in (await site.get(f"/jobs?{query}")).json()["items"]]


# -- jobs ----------------------------------------------------------------------------------------------------


async def test_job(site: Site, work: Work) -> None:
    """A job that has not ended is asked for again after a second; one that has ended is not."""
    job = site.executor.submit_nowait(work.gated, 1)
    answer = await site.get(f"/jobs/{job.id}")
    assert (answer.status, answer.headers["retry-after"]) == (200, "1")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == JOB_KEYS
    assert (answer.json()["id"], answer.json()["done"]) == (job.id, False)
    work.gate(1).set()
    await job
    answer = await site.get(f"/jobs/{job.id}")
    assert answer.json()["state"] == "succeeded"
    assert "retry-after" not in answer.headers


async def test_no_such_job(site: Site) -> None:
    """An id that was never given out is a 404."""
    assert (await site.get("/jobs/nobody")).problem()[0] == 404
    assert (await site.post("/jobs/nobody/cancel")).problem()[0] == 404


async def test_jobs_pages(site: Site, work: Work) -> None:
    """Jobs come newest first, page by page, each once, by the link that the page before gives."""
    jobs = [site.executor.submit_nowait(work.quick, n) for n in range(5)]
    await site.executor.join()
    seen: list[int] = []
    query = "?limit=2&q=Work"
    while True:
        answer = await site.get(f"/jobs{query}")
        seen += [job["number"] for job in answer.json()["items"]]
        link = answer.headers.get("link")
        if link is None:
            assert answer.json()["next"] is None
            break
        query = link.removeprefix("<").removesuffix('>; rel="next"')
        assert query == f"?limit=2&q=Work&cursor={answer.json()['next']}"
    assert seen == [job.number for job in reversed(jobs)]


async def test_jobs_states(site: Site, work: Work) -> None:
    """`state` takes states and groups of states, with commas or one parameter for each."""
    executor = site.executor
    done = executor.submit_nowait(work.quick, 1)
    failed = executor.submit_nowait(fail)
    running = executor.submit_nowait(work.gated, 2)
    waiting = executor.submit_nowait(work.quick, 3)
    cancelled = executor.submit_nowait(work.quick, 4)
    cancelled.cancel()
    await wait_all_tasks_blocked()
    ones = {"done": done, "failed": failed, "running": running, "waiting": waiting, "cancelled": cancelled}
    number = {name: job.number for name, job in ones.items()}
    assert await numbers(site, "state=waiting") == [number["waiting"]]
    assert await numbers(site, "state=not_run") == [number["cancelled"]]
    assert await numbers(site, "state=ended") == [number["cancelled"], number["failed"], number["done"]]
    assert await numbers(site, "state=running,failed") == [number["running"], number["failed"]]
    assert await numbers(site, "state=running&state=failed") == [number["running"], number["failed"]]
    assert await numbers(site, "state=skipped") == []
    work.gate(2).set()
    await executor.join()


def test_groups() -> None:
    """Every state but RUNNING is in one of the groups."""
    assert GROUPS["waiting"] | GROUPS["ended"] == set(JobState) - {JobState.RUNNING}
    assert GROUPS["not_run"] == GROUPS["ended"] - {JobState.SUCCEEDED, JobState.FAILED}


async def test_jobs_filters(site: Site, work: Work) -> None:
    """`lane`, `function` and `q` narrow the list."""
    first = site.executor.lane("a").submit_nowait(work.quick, 1)
    second = site.executor.lane("b").submit_nowait(fail)
    await site.executor.join()
    everything = (await site.get("/jobs")).json()["items"]
    lane = everything[1]["lane"]["id"]
    assert await numbers(site, f"lane={lane}") == [first.number]
    assert await numbers(site, "lane=none") == []
    assert await numbers(site, "function=fail") == [second.number]
    assert await numbers(site, "q=QUICK") == [first.number]


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(("show_results", "result"), [(False, None), (True, 7)])
async def test_results(face: str, show_results: bool, result: object) -> None:
    """Results are shown with `show_results` only."""
    site = Site(face, {"results": True}, show_results=show_results)

    async def seven() -> int:
        return 7

    job = site.executor.submit_nowait(seven)
    await job
    assert (await site.get(f"/jobs/{job.id}")).json()["result"] == result


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(
    ("show_errors", "client", "message"),
    [
        (None, "127.0.0.1", "card declined"),
        (None, "10.0.0.1", None),
        (True, "10.0.0.1", "card declined"),
        (False, "127.0.0.1", None),
    ],
)
async def test_errors(face: str, show_errors: bool | None, client: str, message: str | None) -> None:
    """An error's message is shown to clients on this machine, or as `show_errors` says; its type to all."""
    site = Site(face, show_errors=show_errors, authorize=lambda request: True)
    job = site.executor.submit_nowait(fail)
    await job.wait()
    error = {"type": "ValueError", "message": message}
    for answer in (await site.get(f"/jobs/{job.id}", client=client), await site.get("/jobs", client=client)):
        found = answer.json()
        assert found.get("items", [found])[0]["error"] == error


# -- waiting for a job ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "headers", "applied"),
    [
        ("?wait=20", {}, None),
        ("", {"prefer": "respond-async, wait=20"}, "wait=20"),
        ("", {"prefer": "wait=99"}, "wait=30"),
    ],
)
async def test_wait(site: Site, work: Work, query: str, headers: dict[str, str], applied: str | None) -> None:
    """The answer comes when the job has ended."""
    job = site.executor.submit_nowait(work.gated, 1)
    exchange = site.exchange(f"/jobs/{job.id}{query}", headers=headers)
    async with anyio.create_task_group() as group:
        group.start_soon(exchange.run)
        await wait_all_tasks_blocked()
        assert not exchange.messages
        work.gate(1).set()
    answer = Answer(exchange)
    assert answer.json()["state"] == "succeeded"
    assert answer.headers.get("preference-applied") == applied


@pytest.mark.parametrize(
    "headers", [{"prefer": "wait=-1"}, {"prefer": "wait=x, handling=lenient"}, {"prefer": ""}]
)
async def test_other_preferences(site: Site, work: Work, headers: dict[str, str]) -> None:
    """A preference that is not understood is left out."""
    job = site.executor.submit_nowait(work.gated, 1)
    answer = await site.get(f"/jobs/{job.id}", headers=headers)
    assert (answer.status, "preference-applied" in answer.headers) == (200, False)
    work.gate(1).set()
    await job


@pytest.mark.virtual_clock
async def test_wait_ends_by_time(site: Site, work: Work) -> None:
    """After `wait` seconds the client gets the job as it is."""
    job = site.executor.submit_nowait(work.gated, 1)
    began = anyio.current_time()
    answer = await site.get(f"/jobs/{job.id}?wait=20")
    assert (anyio.current_time() - began, answer.json()["done"]) == (pytest.approx(20, abs=0.3), False)
    work.gate(1).set()
    await job


async def test_wait_of_none(site: Site, work: Work) -> None:
    """`wait=0`, and a job that has ended, do not wait; the query is stronger than the preference."""
    job = site.executor.submit_nowait(work.gated, 1)
    answer = await site.get(f"/jobs/{job.id}?wait=0", headers={"prefer": "wait=30"})
    assert answer.json()["done"] is False
    work.gate(1).set()
    await job
    assert (await site.get(f"/jobs/{job.id}?wait=30")).json()["done"] is True


async def test_wait_ends_by_disconnect(site: Site, work: Work) -> None:
    """A client that leaves is not waited for."""
    job = site.executor.submit_nowait(work.gated, 1)
    exchange = site.exchange(f"/jobs/{job.id}?wait=30")
    async with anyio.create_task_group() as group:
        group.start_soon(exchange.run)
        await wait_all_tasks_blocked()
        exchange.disconnected.set()
        await exchange.ended.wait()
    work.gate(1).set()
    await job


@pytest.mark.virtual_clock
async def test_wait_ends_by_close(site: Site, work: Work) -> None:
    """An executor that closes ends the wait, before it has run what is left."""
    job = site.executor.submit_nowait(work.gated, 1)
    exchange = site.exchange(f"/jobs/{job.id}?wait=30")
    async with anyio.create_task_group() as group:
        group.start_soon(exchange.run)
        await wait_all_tasks_blocked()
        group.start_soon(site.executor.aclose)
        await exchange.ended.wait()
        assert Answer(exchange).json()["done"] is False
        work.gate(1).set()


@pytest.mark.virtual_clock
async def test_wait_inside_the_job(site: Site) -> None:
    """A task that asks for its own job by HTTP waits in vain, but not for ever."""
    answers: list[Any] = []

    async def ask() -> None:
        answers.append((await site.get(f"/jobs/{job.id}?wait=30")).json()["state"])

    job = site.executor.submit_nowait(ask)
    await job
    assert answers == ["running"]


# -- cancel --------------------------------------------------------------------------------------------------


async def test_cancel(site: Site, work: Work) -> None:
    """A job that waits is cancelled at once, a running one soon; one that has ended is a conflict."""
    running = site.executor.submit_nowait(work.gated, 1)
    waiting = site.executor.submit_nowait(work.quick, 2)
    await wait_all_tasks_blocked()
    answer = await site.post(f"/jobs/{waiting.id}/cancel")
    assert (answer.status, answer.json()["state"]) == (202, "cancelled")
    assert "retry-after" not in answer.headers
    answer = await site.post(f"/jobs/{running.id}/cancel")
    assert (answer.status, answer.headers["retry-after"]) == (202, "1")
    assert await running.wait() is JobState.CANCELLED
    status, detail = (await site.post(f"/jobs/{running.id}/cancel")).problem()
    assert (status, detail) == (409, "The job has ended: its state is cancelled.")


async def test_cancel_in_a_thread(site: Site, work: Work) -> None:
    """A job that runs in a thread cannot be cancelled."""
    job = site.executor.submit_nowait(work.thread_gated, 1)
    while not work.events:
        await anyio.sleep(0.001)
    status, detail = (await site.post(f"/jobs/{job.id}/cancel")).problem()
    assert (status, "thread" in detail) == (409, True)
    work.thread_gate(1).set()
    await job


# -- summary, lanes ------------------------------------------------------------------------------------------


async def test_summary(site: Site, work: Work) -> None:
    """The summary counts, and says whether the client may operate."""
    site.executor.submit_nowait(work.quick, 1)
    await site.executor.join()
    figures = (await site.get("/summary")).json()
    assert (figures["succeeded"], figures["running"], figures["state"]) == (1, 0, "open")
    assert figures["operate"] is True


async def test_a_list_of_large_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a long answer is written as JSON, the event loop gets its turn."""
    monkeypatch.setattr("fifo_background.status.responses.STEP", 1000)
    site = Site(middleware={"results": True}, show_results=True)
    turns = 0

    async def large() -> str:
        return "x" * 1000

    async def count() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    for _ in range(19):
        await site.executor.submit_nowait(large)
    async with anyio.create_task_group() as group:
        group.start_soon(count)
        found = (await site.get("/jobs?limit=18")).json()
        group.cancel_scope.cancel()
    assert [job["result"] for job in found["items"]] == ["x" * 1000] * 18
    assert found["next"]
    assert turns > 10  # trio takes tasks in a random order: one turn more or less


@pytest.mark.parametrize("face", FACES)
async def test_summary_of_a_reader(face: str) -> None:
    """A client that may only read is told so."""
    site = Site(face, authorize=lambda request: "read")
    assert (await site.get("/summary")).json()["operate"] is False


async def lane_id(site: Site, job: Any) -> str:
    return str((await site.get(f"/jobs/{job.id}")).json()["lane"]["id"])


async def test_lanes(site: Site, work: Work) -> None:
    """The worst lanes come first, and how many there are."""
    jobs = [site.executor.lane(key).submit_nowait(work.gated, 1) for key in ("a", "b", "c")]
    await wait_all_tasks_blocked()
    found = (await site.get("/lanes?limit=2")).json()
    assert (len(found["items"]), found["total"]) == (2, 3)
    work.gate(1).set()
    for job in jobs:
        await job


@pytest.mark.parametrize("key", ["a/b", ("a", 1), 1, "1", None, "../../x", "<script>alert(1)</script>"])
async def test_pause_and_resume(site: Site, work: Work, key: Any) -> None:
    """A lane is paused and resumed by its id, whatever its key is; twice is fine."""
    first = site.executor.lane(key).submit_nowait(work.gated, 1)
    second = site.executor.lane(key).submit_nowait(work.quick, 2)
    await wait_all_tasks_blocked()
    lane = await lane_id(site, first)
    for _ in range(2):
        answer = await site.post(f"/lanes/{lane}/pause")
        assert (answer.status, answer.json()["id"], answer.json()["state"]) == (200, lane, "paused")
    work.gate(1).set()
    await wait_all_tasks_blocked()
    assert second.state is JobState.QUEUED
    for _ in range(2):
        answer = await site.post(f"/lanes/{lane}/resume")
        assert (answer.status, answer.json()["id"]) == (200, lane)
    assert await second == 2


async def test_skip(site: Site, work: Work) -> None:
    """The head is skipped if the client knows it, or names none; there must be one."""
    job = site.executor.submit_nowait(work.gated, 1)
    await wait_all_tasks_blocked()
    lane = await lane_id(site, job)
    second, third = (site.executor.submit_nowait(work.quick, n) for n in (2, 3))
    answer = await site.post(f"/lanes/{lane}/retry", body=b'{"head": "%b"}' % second.id.encode())
    assert answer.problem()[0] == 409  # it is the head, and has not failed
    stale = await site.post(f"/lanes/{lane}/skip", body=b'{"head": "%b"}' % third.id.encode())
    assert (stale.problem()[0], stale.json()["head"]) == (409, second.id)
    assert second.state is JobState.QUEUED
    answer = await site.post(f"/lanes/{lane}/skip", body=b'{"head": "%b"}' % second.id.encode())
    assert (answer.status, second.state) == (200, JobState.SKIPPED)
    answer = await site.post(f"/lanes/{lane}/skip")
    assert (answer.status, third.state) == (200, JobState.SKIPPED)
    assert (await site.post(f"/lanes/{lane}/skip", body=b"{}")).problem()[0] == 409
    stale = await site.post(f"/lanes/{lane}/skip", body=b'{"head": "x"}')
    assert (stale.problem()[0], stale.json()["head"]) == (409, None)
    work.gate(1).set()
    await job


@pytest.mark.parametrize("face", FACES)
async def test_retry(face: str, work: Work) -> None:
    """The failed head of a stopped lane runs again, if it is the one that the client was shown."""
    site = Site(face, {"lane_after_failure": "stop"})
    attempts: list[int] = []

    async def second_time() -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise ValueError

    job = site.executor.lane("a").submit_nowait(second_time)
    await job.wait()
    lane = await lane_id(site, job)
    assert (await site.get("/lanes")).json()["items"][0]["state"] == "stopped"
    assert (await site.post(f"/lanes/{lane}/retry", body=b'{"head": "x"}')).problem()[0] == 409
    answer = await site.post(f"/lanes/{lane}/retry", body=b'{"head": "%b"}' % job.id.encode())
    assert answer.status == 200
    await site.executor.join()
    assert attempts == [1, 1]


async def test_retry_without_a_failure(site: Site, work: Work) -> None:
    """A lane that has not stopped has nothing to retry."""
    job = site.executor.submit_nowait(work.gated, 1)
    lane = await lane_id(site, job)
    assert (await site.post(f"/lanes/{lane}/retry")).problem()[0] == 409
    work.gate(1).set()
    await job


async def test_clear(site: Site, work: Work) -> None:
    """All that waits in the lane is cancelled; a lane without any is cleared, too."""
    job = site.executor.submit_nowait(work.gated, 1)
    waiting = [site.executor.submit_nowait(work.quick, n) for n in (2, 3)]
    await wait_all_tasks_blocked()
    lane = await lane_id(site, job)
    for _ in range(2):
        answer = await site.post(f"/lanes/{lane}/clear")
        assert (answer.status, answer.json()["waiting"]) == (200, 0)
    assert [one.state for one in waiting] == [JobState.CANCELLED] * 2
    work.gate(1).set()
    await job


@pytest.mark.parametrize("operation", ["pause", "resume", "skip", "retry", "clear"])
async def test_no_such_lane(site: Site, operation: str) -> None:
    """An id of no lane is a 404."""
    assert (await site.post(f"/lanes/nobody/{operation}")).problem()[0] == 404
