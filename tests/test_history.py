"""Ids, times, progress, the history, and the pictures of jobs and lanes."""

from __future__ import annotations

import collections
import dataclasses
import gc
import itertools
import json
import pickle
import threading
import time
import weakref
from collections.abc import Callable
from datetime import date, datetime, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from starlette.requests import Request
from starlette.responses import Response

from fifo_background import (
    BackgroundTasks,
    ExecutorClosed,
    Job,
    JobRecord,
    JobState,
    SerialExecutor,
    executor_of,
    report,
)
from fifo_background._core import picture
from fifo_background._core.lane import Itself, Lane
from fifo_background._core.lane import look_up as plain_look_up
from fifo_background._core.plain import as_plain, text_of
from fifo_background._core.position import Position
from tests.support.apps import Work, make_app, start, until
from tests.support.asgi import Client


async def fails() -> None:
    raise ValueError("card declined")


class Payload:
    pass


def gives(value: Any) -> Any:
    return value


async def test_a_job_that_has_ended_just_now() -> None:
    """A task that has ended in its thread has an end, also before the event loop has heard of it."""
    starts, ends = threading.Event(), threading.Event()

    def work() -> None:
        starts.set()
        ends.wait(30)

    async with SerialExecutor() as executor:
        job = executor.submit_nowait(work)
        await until(starts.is_set)
        ends.set()
        collections.deque(iter(job.done, True), maxlen=0)  # the loop does nothing meanwhile
        assert job.ended_at is not None


# -- one job -------------------------------------------------------------------------------------------------


async def test_a_job_through_its_life(events: list[Any]) -> None:
    """Number, times, lane, what is ahead and in the way: of a job that waits, runs, and has ended."""
    work = Work(events)
    async with SerialExecutor() as executor:
        first = executor.lane("a").submit_nowait(work.gated, 1)
        second = executor.lane("a").submit_nowait(work.gated, 2)
        await wait_all_tasks_blocked()
        assert (first.number, second.number) == (1, 2)
        assert (first.lane, first.ahead, first.blocked_by) == ("a", None, None)
        assert second.ahead == 1
        blocker = second.blocked_by
        assert blocker is not None
        assert (blocker.kind, blocker.id, blocker.name) == ("job", first.id, first.name)
        assert second.started_at is None
        assert second.ended_at is None
        assert first.ended_at is None
        picture = second.to_dict()
        assert json.loads(json.dumps(picture)) == picture
        assert picture["state"] == "queued"
        assert picture["lane"]["name"] == "a"
        for n in (1, 2):
            work.gate(n).set()
        await second
        assert first.started_at is not None
        assert first.ended_at is not None
        assert first.added_at <= first.started_at <= first.ended_at
        assert abs((first.added_at - datetime.now(timezone.utc)).total_seconds()) < 3600
        assert first.lane == "a"
        assert second.to_dict()["ahead"] is None
        assert second.to_dict()["done"]


async def test_a_job_in_no_queue() -> None:
    """A job of an object that was made outside of a request has no id yet, and says so."""
    job = BackgroundTasks().add_task(print)
    assert job.number == 0
    for name in ("id", "lane", "added_at"):
        with pytest.raises(RuntimeError, match="in no queue yet"):
            getattr(job, name)


async def test_thread_jobs_have_their_own_times(events: list[Any]) -> None:
    """Of sync tasks that one thread runs in one batch each has its own start and end."""
    async with SerialExecutor() as executor:
        jobs: list[Any] = [executor.submit_nowait(events.append, n) for n in range(3)]
        await executor.join()
        for before, after in itertools.pairwise(jobs):
            assert before.ended_at <= after.started_at


async def test_ids_cannot_be_guessed() -> None:
    """An id is found by its executor alone, and only as it was given."""
    async with SerialExecutor() as executor, SerialExecutor() as other:
        job = executor.submit_nowait(print)
        id = job.id
        assert executor.job(id) is job
        assert other.job(id) is None
        for wrong in (id[:-1], id + "0", "", "1", "1-", "-1", "x-1", "²-1", f"0{id}", f"2{id[1:]}", "1-é"):
            assert executor.job(wrong) is None, wrong
        await job
        assert executor.job(id) is job  # as long as somebody has it
        del job
        await executor.submit_nowait(print)
        await wait_all_tasks_blocked()
        gc.collect()
        record = executor.job(id)
        assert isinstance(record, JobRecord)
        assert (record.id, record.state, record.done()) == (id, JobState.SUCCEEDED, True)


async def test_the_request_is_named(events: list[Any]) -> None:
    """Of a job that a request has added, its method and path: while it waits and after its end."""
    work = Work(events)
    jobs: list[Job[Any]] = []

    async def add(request: Request) -> Response:
        tasks = BackgroundTasks()
        jobs.append(tasks.add_task(work.gated, 1))
        assert jobs[0].to_dict()["request"] == "GET /add"
        assert jobs[0].to_dict()["state"] == "pending"
        return Response(background=tasks)

    async with anyio.create_task_group() as group:
        await start(Client(make_app(add, wait=False), group), "/add", 1)
        work.gate(1).set()
        await jobs[0]
    assert jobs[0].to_dict()["request"] == "GET /add"


async def test_what_is_in_the_way(events: list[Any]) -> None:
    """A pause, a failed head, a slot, and a request that holds its position are named."""
    work = Work(events)
    async with SerialExecutor(max_lanes_running=1) as executor:
        paused = executor.lane("paused")
        paused.pause()
        waits = [paused.submit_nowait(work.quick, 1)]
        stopped = executor.lane("stopped", after_failure="stop")
        failed = stopped.submit_nowait(fails)
        waits.append(stopped.submit_nowait(work.quick, 2))
        await failed.wait()
        executor.submit_nowait(work.gated, 3)
        await wait_all_tasks_blocked()
        waits.append(executor.lane("other").submit_nowait(work.quick, 4))
        await wait_all_tasks_blocked()
        blockers = [job.blocked_by for job in waits]
        assert [blocker and blocker.kind for blocker in blockers] == ["paused", "failed", "slot"]
        assert blockers[1] is not None
        assert blockers[1].id == failed.id
        assert waits[1].ahead == 1
        states = {lane.key: lane.state for lane in (await executor.lanes()).items}
        assert states == {"paused": "paused", "stopped": "stopped", None: "busy", "other": "busy"}
        work.gate(3).set()
        stopped.clear()
        paused.clear()


async def test_a_request_that_holds_the_head(events: list[Any]) -> None:
    """A ready job behind a request that has not responded: the lane is held, and both say by whom."""
    work = Work(events)
    respond = anyio.Event()
    pictures: list[Any] = []

    async def holds(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(work.quick, 1)
        await respond.wait()
        return Response(background=tasks)

    async def look(request: Request) -> Response:
        executor = executor_of(request)
        job = executor.submit_nowait(work.quick, 2)
        await anyio.lowlevel.checkpoint()
        pictures.extend([job.blocked_by, job.ahead, (await executor.lanes()).items[0]])
        return Response()

    async with anyio.create_task_group() as group:
        client = Client(make_app(holds, look, wait=False), group)
        await start(client, "/holds", 1)
        await start(client, "/look", 1)
        respond.set()
    blocker, ahead, lane = pictures
    assert (blocker.kind, blocker.name, ahead) == ("request", "GET /holds", 1)
    assert (lane.state, lane.held_by, lane.waiting) == ("held", "GET /holds", 2)


async def test_far_from_the_head() -> None:
    """How many are ahead is counted up to 1,000."""
    async with SerialExecutor() as executor:
        lane = executor.lane("a")
        lane.pause()
        jobs = [lane.submit_nowait(print) for _ in range(1200)]
        await wait_all_tasks_blocked()
        assert [jobs[n].to_dict()["ahead"] for n in (0, 999, 1000, 1199)] == [0, 999, 1000, 1000]
        assert [jobs[n].to_dict()["ahead_more"] for n in (999, 1000, 1199)] == [False, False, True]
        lane.clear()


async def test_a_list_looks_through_each_lane_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job of a list tells what is ahead of it, though a lane is looked through once for several."""
    walked: list[Any] = []
    waiting_in = picture.waiting_in

    def counted(lane: Any) -> Any:
        walked.append(lane)
        return waiting_in(lane)

    monkeypatch.setattr(picture, "waiting_in", counted)
    async with SerialExecutor() as executor:
        await executor.submit_nowait(int)
        lanes = [executor.lane(key) for key in "abc"]
        for lane in lanes:
            lane.pause()
        for _ in range(20):
            for lane in lanes:
                lane.submit_nowait(int)
        listed = await executor.jobs(limit=200)
        assert len(walked) < 12  # pictures are made ten in a turn; by themselves these 60 would take 60 walks
        assert [one.number for one in listed] == list(range(61, 0, -1))
        assert [one.ahead for one in listed] == [n for n in range(19, -1, -1) for _ in lanes] + [None]
        for lane in lanes:
            lane.clear()


def spin_until(happened: Callable[[], bool]) -> None:
    """Let threads go on while the event loop stands."""
    collections.deque(iter(lambda: bool(time.sleep(0.001)) or happened(), True), maxlen=0)


async def test_a_list_has_what_ends_in_a_thread_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that ends in its thread, and one that starts behind it, are in a list that is made just then."""
    starts, ends = threading.Event(), threading.Event()

    def work() -> None:
        starts.set()
        ends.wait(10)

    async with SerialExecutor() as executor:
        await executor.submit_nowait(int)
        executor.submit_nowait(work)
        last = executor.submit_nowait(int)
        await anyio.to_thread.run_sync(starts.wait)
        history = executor._runner.scheduler.history
        forget_old = history.forget_old

        def while_they_end(now: float) -> None:
            forget_old(now)
            ends.set()
            spin_until(last.done)

        monkeypatch.setattr(history, "forget_old", while_they_end)
        assert [one.number for one in await executor.jobs()] == [3, 2, 1]


async def test_a_picture_shows_one_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that ends in its thread while its picture is made still runs in it."""
    starts, ends = threading.Event(), threading.Event()

    def work() -> None:
        starts.set()
        ends.wait(10)

    async with SerialExecutor() as executor:
        await executor.submit_nowait(int)
        job = executor.submit_nowait(work)
        await anyio.to_thread.run_sync(starts.wait)

        def ends_now(self: Job[Any]) -> str:
            ends.set()
            spin_until(self.done)
            return "work"

        monkeypatch.setattr(Job, "name", property(ends_now))
        shown = job.to_dict()
        assert (shown["state"], shown["done"], shown["ended_at"]) == ("running", False, None)


async def test_the_head_of_many_that_a_request_has_added() -> None:
    """The head is found by a look at the first of them, not at all."""
    looked = 0

    class Looked(Position):
        __slots__ = ()

        def _is_pending(self, job: Any) -> bool:
            nonlocal looked
            looked += 1
            return True

    lane = Lane("a")
    added: list[Any] = [object() for _ in range(1000)]
    lane.take(Looked(lane, None, added))
    assert lane.peek() is added[0]
    assert looked < 10


async def test_a_retried_job_names_the_failed_one() -> None:
    """The new job of `retry_head` has the id of the failed one, which keeps its own picture."""
    async with SerialExecutor() as executor:
        lane = executor.lane("a", after_failure="stop")
        failed = lane.submit_nowait(fails)
        await failed.wait()
        retried = lane.retry_head()
        await retried.wait()
        assert retried.to_dict()["retry_of"] == failed.id
        assert failed.to_dict()["retry_of"] is None
        lane.clear()


# -- progress ------------------------------------------------------------------------------------------------


async def test_progress() -> None:
    """`report` in an async and a sync task, and in a task inside a task, is the job's progress."""

    async def inner() -> None:
        report(3, 4, "inner")

    async def works() -> None:
        report(1)
        tasks = BackgroundTasks()
        tasks.add_task(inner)
        await tasks()

    def works_in_thread() -> None:
        report(1, 2.5, "x" * 900)

    async def notes_oddly() -> None:
        report(1, 2, OddNote("note"))

    async with SerialExecutor() as executor:
        outer, in_thread = executor.submit_nowait(works), executor.submit_nowait(works_in_thread)
        odd = executor.submit_nowait(notes_oddly)
        await executor.join()
        assert odd.progress == (1, 2, "note")
        assert outer.progress == (3, 4, "inner")
        assert in_thread.progress == (1, 2.5, "x" * 500)
        assert in_thread.to_dict()["progress"] == {"done": 1, "total": 2.5, "note": "x" * 500}


def test_progress_outside_of_a_task() -> None:
    """There it does nothing, but looks at what it is given."""
    report(1, 2, "rows")
    for wrong in ("1", True, None):
        with pytest.raises(TypeError, match="done="):
            report(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="total="):
        report(1, -1)
    for wrong in (float("nan"), 10**400):
        with pytest.raises(ValueError, match="done="):
            report(wrong)
    with pytest.raises(TypeError, match="note="):
        report(1, 2, b"rows")  # type: ignore[arg-type]


# -- the history ---------------------------------------------------------------------------------------------


async def test_history_is_bounded() -> None:
    """It keeps the last jobs, in the order of their ends, and says where it has forgotten some."""
    async with SerialExecutor(history=3) as executor:
        for _ in range(5):
            executor.submit_nowait(print)
        await executor.join()
        assert [job.number for job in await executor.jobs()] == [5, 4, 3]
        assert executor.ended_count == 5
        assert executor.ended(0) is None
        assert executor.ended(6) is None
        found = executor.ended(3, 1)
        assert found is not None
        assert ([job.number for job in found[0]], found[1]) == ([4], 4)
        assert executor.ended(5) == ([], 5)


@pytest.mark.virtual_clock
async def test_history_is_bounded_by_age() -> None:
    """What is older than `history_seconds` is forgotten."""
    async with SerialExecutor(history_seconds=10) as executor:
        await executor.submit_nowait(anyio.sleep, 0)
        await anyio.sleep(6)
        await executor.submit_nowait(anyio.sleep, 0)
        assert len(await executor.jobs()) == 2
        await anyio.sleep(6)
        assert len(await executor.jobs()) == 1


async def test_no_history(events: list[Any]) -> None:
    """With `history=0` live jobs are still found, and ended ones are forgotten at once."""
    work = Work(events)
    async with SerialExecutor(history=0) as executor:
        job = executor.lane("a").submit_nowait(work.gated, 1)
        id = job.id
        await wait_all_tasks_blocked()
        assert [one.number for one in await executor.jobs()] == [1]
        work.gate(1).set()
        await job
        assert job.to_dict()["done"]
        assert await executor.jobs() == []
        assert executor.ended(0) == ([], 0)
        assert executor.ended_count == 0
        assert executor.counts()["succeeded"] == 1
        assert (await executor.lanes()).total == 0
        del job
        await executor.submit_nowait(print)
        await wait_all_tasks_blocked()
        gc.collect()
        assert executor.job(id) is None


@pytest.mark.virtual_clock
@pytest.mark.parametrize("history", [0, 10])
async def test_what_an_ended_job_knows(history: int) -> None:
    """With and without a history: its lane and its error; with one also when it ended."""
    async with SerialExecutor(history=history) as executor:
        lane = executor.lane("a")
        lane.submit_nowait(anyio.sleep, 2)
        job, cancelled = lane.submit_nowait(fails), lane.submit_nowait(anyio.sleep, 1)
        await anyio.sleep(1)
        cancelled.cancel()
        await executor.join()
        await anyio.sleep(5)
        assert (job.lane, cancelled.lane) == ("a", "a")
        shown = job.to_dict(errors=True)
        assert shown["error"] == {"type": "ValueError", "message": "card declined"}
        assert (shown["waited"], shown["ran"]) == (2, 0 if history else None)
        assert cancelled.to_dict()["waited"] == (1 if history else None)
        assert cancelled.to_dict()["error"] is None
        for one, seconds in ((job, 2), (cancelled, 1)):
            assert (one.ended_at is not None) == bool(history)
            if one.ended_at is not None:
                assert round((one.ended_at - one.added_at).total_seconds(), 3) == seconds


async def test_times_after_the_clock_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is set, or a machine that sleeps, does not make the times of later jobs wrong."""
    async with SerialExecutor() as executor:
        before = executor.submit_nowait(print)
        await before
        monkeypatch.setattr("fifo_background._core.history.time", lambda: time.time() + 3600)
        assert len(await executor.jobs()) == 1  # who looks finds it out, as does an end a second later
        after = executor.submit_nowait(print)
        await after
        pairs: list[Any] = [(before, after), reversed(await executor.jobs())]
        for earlier, later in pairs:
            assert 3600 <= (later.added_at - earlier.added_at).total_seconds() < 7200
            assert later.ended_at >= later.started_at >= later.added_at


async def test_counts_hear_of_threads(events: list[Any]) -> None:
    """What a thread has added or cancelled is counted at once, before the loop has had its turn."""
    async with SerialExecutor() as executor:
        executor.lane("a").pause()
        job = executor.lane("a").submit_nowait(print)
        await wait_all_tasks_blocked()

        def adds_and_cancels() -> None:
            executor.lane("a").submit_nowait(print)
            job.cancel()
            events.append(executor.counts()["waiting"])

        thread = threading.Thread(target=adds_and_cancels)
        thread.start()
        thread.join()
        counts = executor.counts()
        assert [counts[name] for name in ("waiting", "cancelled", "added")] == [1, 1, 2]
        assert events == [1]
        executor.lane("a").clear()


async def test_history_keeps_no_arguments() -> None:
    """Neither a job nor its arguments nor its result are kept by the history."""
    kept: list[weakref.ref[Any]] = []

    def takes(payload: Payload) -> Payload:
        return payload

    async with SerialExecutor() as executor:
        payload = Payload()
        kept.append(weakref.ref(payload))
        kept.append(weakref.ref(executor.submit_nowait(takes, payload)))
        del payload
        await executor.join()
        await executor.submit_nowait(print)
        await wait_all_tasks_blocked()
        gc.collect()
        assert len(await executor.jobs()) == 2
        gc.collect()
        assert [one() for one in kept] == [None] * 2


async def test_every_end_is_in_the_history(events: list[Any]) -> None:
    """Jobs that were cancelled, skipped, superseded, cleared or dropped have records and are counted."""
    work = Work(events)
    async with SerialExecutor() as executor:
        gate = executor.submit_nowait(work.gated, 1)
        await wait_all_tasks_blocked()
        cancelled = executor.submit_nowait(work.quick, 2)
        cancels = threading.Thread(target=cancelled.cancel)
        cancels.start()
        latest = executor.lane("latest", keep="latest")
        latest.pause()
        superseded, left = latest.submit_nowait(work.quick, 3), latest.submit_nowait(work.quick, 3)
        skipped = executor.lane("skip")
        skipped.pause()
        head = skipped.submit_nowait(work.quick, 4)
        await wait_all_tasks_blocked()
        skipped.skip_head()
        cancels.join()
        work.gate(1).set()
        await gate
    states = {job.number: job.state for job in await executor.jobs()}
    assert states == {one.number: one.state for one in (gate, cancelled, superseded, left, head)}
    counts = executor.counts()
    assert counts["state"] == "closed"
    assert [counts[name] for name in ("succeeded", "cancelled", "superseded", "skipped", "dropped")] == [
        1
    ] * 5
    assert counts["added"] == 5


async def test_errors() -> None:
    """The type of an error, and its message where it is asked for; whatever `__str__` does."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    async def mute() -> None:
        raise Mute

    async with SerialExecutor() as executor:
        one, other = executor.submit_nowait(fails), executor.submit_nowait(mute)
        await executor.join()
        assert one.to_dict()["error"] == {"type": "ValueError", "message": None}
        assert one.to_dict(errors=True)["error"] == {"type": "ValueError", "message": "card declined"}
        assert other.to_dict(errors=True)["error"]["message"] == "<test_errors.<locals>.Mute>"


# -- results -------------------------------------------------------------------------------------------------


async def test_results(events: list[Any]) -> None:
    """They are kept only with `results=True`, as copies in terms of JSON, and shown only where asked for."""
    value = {"a": [1, (2.5, None)]}
    async with SerialExecutor(results=True) as executor, SerialExecutor() as other:
        job, in_thread = executor.submit_nowait(gives, value), executor.submit_nowait(gives, Payload())
        elsewhere = other.submit_nowait(gives, value)
        await executor.join()
        await elsewhere
        value["a"] = []
        assert job.to_dict()["result"] is None
        assert job.to_dict(results=True)["result"] == {"a": [1, [2.5, None]]}
        assert in_thread.to_dict(results=True)["result"] is None
        assert "Payload is not JSON" in in_thread.to_dict(results=True)["result_omitted"]
        assert elsewhere.to_dict(results=True)["result"] is None


async def test_results_are_bounded() -> None:
    """The newest results are kept, as far as they fit; a single large one is not."""
    async with SerialExecutor(results=True, results_bytes=10_000, history=100) as executor:
        large = executor.submit_nowait(gives, "x" * 1100)
        jobs = [executor.submit_nowait(gives, "x" * 900) for _ in range(30)]
        await executor.join()
        omitted = large.to_dict(results=True)["result_omitted"]
        assert omitted == f"it is too large: 1,100 characters, which begin with '{'x' * 100}'"
        kept = [job.to_dict(results=True)["result"] is not None for job in jobs]
        assert kept == [False] * 20 + [True] * 10
        assert jobs[0].to_dict(results=True)["result_omitted"] == "newer results took its place"
        history: Any = executor._runner.scheduler.history
        assert history._bytes == 10 * 964
        for _ in range(200):
            executor.submit_nowait(anyio.lowlevel.checkpoint)
        await executor.join()
        assert history._bytes == 100 * 64


class Colour(Enum):
    RED = "red"


class Odd(dict):  # type: ignore[type-arg]
    items = keys = __iter__ = lambda self: 1 / 0  # type: ignore[assignment]


class Raises(Enum):
    ONE = 1

    @property
    def value(self) -> Any:
        raise ZeroDivisionError


class Large(Enum):
    ONE = ("x" * 2000,)


class OddInt(int):
    __int__ = bit_length = lambda self: 10**5000


class OddFloat(float):
    __float__ = lambda self: float("nan")  # noqa: E731


class OddText(str):
    __str__ = __len__ = lambda self: "x" * 5000  # type: ignore[assignment]


class OddUUID(UUID):
    def __str__(self) -> str:
        raise ZeroDivisionError


class OddNote(str):
    __str__ = lambda self: self  # noqa: E731
    __getitem__ = lambda self, place: 5  # type: ignore[assignment]  # noqa: E731


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (None, None),
        (True, True),
        (7, 7),
        ("ü\ud800", "ü\ud800"),
        ({1: Colour.RED, Colour.RED: {2}}, {"1": "red", "red": [2]}),
        (UUID(int=1), str(UUID(int=1))),
        (Decimal("1.10"), "1.10"),
        (date(2026, 11, 26), "2026-11-26"),
        (Odd(a=1), {"a": 1}),
        ({"x" * 400 + "1": 1, "x" * 400 + "2": 2}, {"x" * 400 + "1": 1, "x" * 400 + "2": 2}),
        ([OddInt(7), OddFloat(0.5), OddText("text")], [7, 0.5, "text"]),
        ({10**600: Decimal("1" * 600)}, {str(10**600): "1" * 600}),
    ],
    ids=str,
)
def test_plain_values(value: object, plain: object) -> None:
    """A value in terms of JSON; others become text where that says all."""
    copy, _, omitted = as_plain(value, 2000)
    assert (copy, omitted) == (plain, None)
    json.dumps(copy, allow_nan=False)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (float("inf"), "nan"),
        (1 << 5000, "a number that is too large"),
        (OddText("ab" * 900), "it is too large: 1,800 characters, which begin with 'abab"),
        ([None] * 2000, "it is too large: a list of 2,000"),
        (dict.fromkeys(range(2000)), "it is too large: a dict of 2,000"),
        (Large.ONE, "it is too large"),
        ({1: "int", "1": "str"}, "two of its keys are the same text"),
        ({(1, 2): 3}, "key of type tuple"),
        ({1 << 5000: 1}, "a number that is too large"),
        ({1: [OddUUID(int=1)]}, "raised ZeroDivisionError"),
        (Decimal("1" * 1000), "it is too large"),
        (Raises.ONE, "raised ZeroDivisionError"),
        (b"bytes", "bytes is not JSON"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_that_are_not_kept(value: object, why: str) -> None:
    """What is no JSON, or too large, is left out, with the reason."""
    copy, size, omitted = as_plain(value, 1000)
    assert (copy, size) == (None, 0)
    assert omitted is not None
    assert why in omitted


def test_the_work_of_a_copy_is_bounded() -> None:
    """However much may be kept, a copy has so many bytes and values at most."""
    for value in ("x" * 1_000_001, [[n] for n in range(3000)], {"rows": [{"n": n} for n in range(3000)]}):
        omitted = as_plain(value, 10**9)[2]
        assert omitted is not None
        assert omitted.startswith("it is too large: ")
    assert as_plain(["x" * 900_000, [None] * 700], 10**9)[2] is None


def test_deep_values() -> None:
    """A value that contains itself is left out."""
    loop: list[Any] = []
    loop.append(loop)
    assert as_plain(loop, 10_000)[2] == "it is nested too deeply"
    assert text_of(Odd(a=1)) == "{'a': 1}"


def test_settings() -> None:
    """Wrong ones are refused where they are given."""
    with pytest.raises(ValueError, match="history=-1: give 0 or more"):
        SerialExecutor(history=-1)
    with pytest.raises(ValueError, match="results=True needs a history"):
        SerialExecutor(history=0, results=True)
    with pytest.raises(TypeError, match="results=1"):
        SerialExecutor(results=1)  # type: ignore[arg-type]


# -- many ----------------------------------------------------------------------------------------------------


async def test_jobs_are_found(events: list[Any]) -> None:
    """By state, lane, function, a part of a name, and page by page, newest first."""
    work = Work(events)
    async with SerialExecutor() as executor:
        for n in range(4):
            executor.lane(n % 2).submit_nowait(work.quick, n)
        await executor.join()
        lane = executor.lane(1)
        lane.pause()
        waiting = lane.submit_nowait(work.sync, 5)
        await wait_all_tasks_blocked()
        everything = await executor.jobs()
        assert [job.number for job in everything] == [5, 4, 3, 2, 1]
        assert await executor.jobs(limit=2, before=4) == everything[2:4]
        assert [job.number for job in await executor.jobs(states={JobState.QUEUED})] == [5]
        in_lane = await executor.jobs(lane=everything[0].lane_name.id)
        assert [job.number for job in in_lane] == [5, 4, 2]
        assert await executor.jobs(lane="unknown") == []
        assert [job.number for job in await executor.jobs(function="Work.sync")] == [5]
        for search in ("WORK.SY", "5", waiting.id[:9]):
            assert [job.number for job in await executor.jobs(search=search)] == [5], search
        assert await executor.jobs(search="nothing") == []
        assert [job.number for job in await executor.jobs(search="1")] == [5, 4, 2, 1]  # a lane, a number
        lane.clear()


async def test_many_jobs_take_many_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """While thousands of jobs and lanes are looked at, the event loop gets its turn."""
    monkeypatch.setattr("fifo_background._run.overview._STEP", 10)
    monkeypatch.setattr("fifo_background._run.overview._PICTURES", 5)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async with SerialExecutor() as executor, anyio.create_task_group() as group:
        for n in range(30):
            executor.lane(("ended", n)).submit_nowait(anyio.lowlevel.checkpoint)
        await executor.join()
        for n in range(100):
            executor.lane(n).pause()
            executor.lane(n).submit_nowait(print)
        group.start_soon(count)
        assert len(await executor.jobs(limit=100)) == 100
        assert turns > 15
        turns = 0
        lanes = await executor.lanes(limit=110)
        assert turns > 15
        assert (len(lanes.items), lanes.total) == (110, 130)
        assert lanes.oldest is not None
        assert [lane.state for lane in lanes.items] == ["paused"] * 100 + ["idle"] * 10
        group.cancel_scope.cancel()
        for n in range(100):
            executor.lane(n).clear()


async def test_a_lane_is_drawn_as_its_queue(events: list[Any]) -> None:
    """Past, now and next: the recent ends, the running job, and runs of what waits."""
    work = Work(events)
    async with SerialExecutor() as executor:
        lane = executor.lane("a")
        lane.submit_nowait(work.quick, 1)
        failed = lane.submit_nowait(fails)
        running = lane.submit_nowait(work.gated, 2)
        for function in (work.quick, work.quick, work.sync, work.quick, work.sync, work.sync):
            lane.submit_nowait(function, 3)
        await wait_all_tasks_blocked()
        picture = lane.picture
        assert picture.running is not None
        assert (picture.running.number, picture.waiting, picture.more) == (running.number, 6, 2)
        names = [(run.first, run.last, run.name) for run in picture.next]
        assert names == [(1, 2, "Work.quick"), (3, 3, "Work.sync"), (4, 4, "Work.quick")]
        assert (picture.ended, picture.failed) == (2, 1)
        shown = picture.to_dict()
        assert json.loads(json.dumps(shown)) == shown
        assert [one["state"] for one in shown["recent"]] == ["succeeded", "failed"]
        assert shown["ran"].keys() == {"p50", "p95"}
        found = executor.find_lane(shown["id"])
        assert found is not None
        assert found.key == "a"
        assert executor.find_lane("unknown") is None
        work.gate(2).set()
        await executor.join()
        assert failed.done()
        assert lane.picture.state == "idle"
        assert [one.lane_name.name for one in (await executor.lanes()).items] == ["a"]


class Refuses:
    """A key that cannot be compared once it is in use."""

    compares = True

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        if not Refuses.compares:
            raise ZeroDivisionError
        return self is other

    def __str__(self) -> str:
        raise ZeroDivisionError


async def test_odd_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that are no text, and that raise, are shown; nothing else is lost for them."""
    async with SerialExecutor() as executor:
        for key in (1, "1", (1, "a"), Refuses(), Refuses()):
            executor.lane(key).submit_nowait(print)
        await executor.join()
        refuses = Refuses()
        executor.lane(refuses).pause()
        executor.lane(Refuses()).submit_nowait(print)
        await executor.join()
        monkeypatch.setattr(Refuses, "compares", False)
        jobs = await executor.jobs(search="a")
        assert len(await executor.jobs()) == 6
        assert [job.lane_name.name for job in jobs if type(job.lane) is tuple] == ["(1, 'a')"]
        lanes = await executor.lanes()
        assert len({lane.lane_name.id for lane in lanes.items}) == lanes.total == 7
        assert sorted((lane.state, lane.ended) for lane in lanes.items) == [("idle", 1)] * 6 + [("paused", 0)]
        assert [name for name in executor._runner.scheduler.names._lanes if type(name) is Itself]
        paused = executor.lane("paused")
        paused.pause()
        lanes = await executor.lanes()
        (listed,) = [lane for lane in lanes.items if lane.lane_name.name == "paused"]
        assert listed.state == "paused"
        assert await executor.jobs(lane=listed.lane_name.id) == []
        paused.resume()
        monkeypatch.setattr(Refuses, "compares", True)


async def test_lane_ids_hold(monkeypatch: pytest.MonkeyPatch, events: list[Any]) -> None:
    """A lane keeps its id while something is in it, or in its history, however many others are looked at."""
    monkeypatch.setattr("fifo_background._core.names._MOST_LANES", 2)
    work = Work(events)
    async with SerialExecutor(history=4) as executor:
        paused = executor.lane("paused")
        paused.pause()
        paused.submit_nowait(work.quick, 0)
        jobs = [executor.lane(("ended", n)).submit_nowait(work.quick, n) for n in range(4)]
        await jobs[-1]
        looked_at = {lane.lane_name: (lane.key, lane.ended) for lane in (await executor.lanes()).items}
        gone = [executor.lane(n).picture.lane_name.id for n in range(20)]
        again = {lane.lane_name: (lane.key, lane.ended) for lane in (await executor.lanes()).items}
        assert looked_at == again
        assert sorted(ended for _, ended in again.values()) == [0, 1, 1, 1, 1]
        assert {job.to_dict()["lane"]["id"] for job in jobs} < {name.id for name in again}
        assert [found.key for name in again if (found := executor.find_lane(name.id))] == [
            key for key, _ in again.values()
        ]
        assert executor.find_lane(gone[0]) is None  # nothing was ever in it
        assert executor.find_lane(gone[-1]) is not None
        paused.clear()
    async with SerialExecutor(history=0) as executor:
        ids = [executor.lane(n).picture.lane_name.id for n in (*range(3), None)]
        assert [executor.find_lane(id) is None for id in ids] == [True, True, False, False]


async def test_lanes_that_threads_name(monkeypatch: pytest.MonkeyPatch, events: list[Any]) -> None:
    """Two threads name a lane, and forget those that are gone, at the same moment."""
    monkeypatch.setattr("fifo_background._core.names._MOST_LANES", 2)
    async with SerialExecutor(history=4) as executor:
        names = executor._runner.scheduler.names
        last = executor.submit_nowait(events.append, 1)
        await last
        for n in range(2):
            assert executor.lane(n).picture.lane_name.name == str(n)

        def look_up(known: Any, key: Any) -> Any:
            monkeypatch.undo()  # once, and another thread does all of it in between
            names._forget_lanes()
            executor._runner.scheduler.history.records.append(last._record)
            return plain_look_up(known, key)

        monkeypatch.setattr("fifo_background._core.names.look_up", look_up)
        names._forget_lanes()
        assert executor.lane(0).picture.lane_name.name == "0"

        def text_of_key(key: Any) -> str:
            monkeypatch.undo()
            ids.append(names.of_lane(key)[0])
            return str(key)

        ids: list[str] = []
        monkeypatch.setattr("fifo_background._core.names.text_of_key", text_of_key)
        ids.append(names.of_lane("both")[0])
        assert ids[0] == ids[1]
        assert len(names._keys) == len(names._lanes)


@pytest.mark.parametrize("limit", [0, -1])
async def test_limits(limit: int) -> None:
    """How many are asked for is checked where it is given."""
    async with SerialExecutor() as executor:
        await executor.submit_nowait(anyio.sleep, 0)
        with pytest.raises(ValueError, match=rf"limit={limit}: give 1 or more"):
            await executor.jobs(limit=limit)
        with pytest.raises(ValueError, match=rf"limit={limit}: give 1 or more"):
            await executor.lanes(limit)
        with pytest.raises(ValueError, match=rf"limit={limit}: give 1 or more"):
            executor.ended(limit=limit)


async def test_changes(events: list[Any]) -> None:
    """Who follows an executor hears of an add, a start, an end, a report, a pause, and the closing."""
    work = Work(events)
    heard: list[int] = []

    async def follow() -> None:
        version = 0
        try:
            while True:
                version = await executor.changed(version)
                heard.append(version)
        except ExecutorClosed:
            heard.append(-1)

    async def reports(go: anyio.Event) -> None:
        await go.wait()
        report(1)
        await work.gate(9).wait()

    async def heard_something() -> bool:
        await wait_all_tasks_blocked()
        found, heard[:] = bool(heard), []
        return found

    async with anyio.create_task_group() as group:
        executor = SerialExecutor()
        group.start_soon(follow)
        await heard_something()
        job = executor.submit_nowait(work.gated, 1)
        assert await heard_something()
        assert not await heard_something()
        work.gate(1).set()
        assert await heard_something()
        assert job.done()
        executor.lane("a").pause()
        assert await heard_something()
        go = anyio.Event()
        executor.submit_nowait(reports, go)
        assert await heard_something()
        go.set()
        assert await heard_something()
        work.gate(9).set()
        await executor.join()
        await executor.aclose()
        await wait_all_tasks_blocked()
        assert heard[-1] == -1


async def test_a_report_between_two_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower does not miss what a thread reports in the moment before it waits."""
    reports, has_reported, goes_on = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        reports.wait(5)
        report(1)
        has_reported.set()
        goes_on.wait(5)

    async with SerialExecutor() as executor:
        executor.submit_nowait(work)
        await wait_all_tasks_blocked()
        version = await executor.changed()
        waiter = executor._runner.backend.waiter

        def slow_waiter() -> Any:
            made = waiter()
            reports.set()
            has_reported.wait(5)
            return made

        with monkeypatch.context() as patch:
            patch.setattr(executor._runner.backend, "waiter", slow_waiter)
            with anyio.fail_after(5):
                await executor.changed(version)
        goes_on.set()


async def test_a_cancelled_follower_is_forgotten() -> None:
    """A wait for changes that is cancelled leaves nothing behind."""
    async with SerialExecutor() as executor:
        await executor.submit_nowait(print)
        version = await executor.changed()
        with anyio.move_on_after(0.01):
            await executor.changed(version)
        assert executor._runner.changes.waiters == []


async def test_statistics_are_json(events: list[Any]) -> None:
    """`statistics().to_dict()` is JSON as it is; the snapshot can be copied and pickled."""
    work = Work(events)
    async with SerialExecutor() as executor:
        executor.lane(("a", 1)).submit_nowait(work.gated, 1)
        executor.submit_nowait(work.quick, 1)
        await wait_all_tasks_blocked()
        statistics = executor.statistics()
        shown = statistics.to_dict()
        assert json.loads(json.dumps(shown)) == shown
        assert shown["lanes"][0]["key"] == "('a', 1)"
        assert shown["lanes"][0]["blocked_by"] == "running"
        assert pickle.loads(pickle.dumps(statistics)) == statistics
        assert dataclasses.asdict(statistics)["running"] == 1
        work.gate(1).set()


async def test_an_ended_job_that_nobody_recorded(events: list[Any]) -> None:
    """A job whose end the loop has not heard of yet, or that ran inside another one, still has a picture."""
    work = Work(events)

    async def outer() -> None:
        tasks = BackgroundTasks()
        parts.append(tasks.add_task(work.quick, 1))
        await tasks()

    parts: list[Job[Any]] = []
    async with SerialExecutor() as executor:
        executor.lane("a").pause()
        job = executor.lane("a").submit_nowait(work.quick, 2)
        assert job.cancel()
        assert job.to_dict()["state"] == "cancelled"
        assert job.to_dict()["ended_at"] is not None
        await executor.submit_nowait(outer)
        with pytest.raises(RuntimeError, match="runs inside another task"):
            _ = parts[0].id
        assert [one.number for one in await executor.jobs(search="work.q")] == [1]
        executor.lane("a").resume()


async def test_a_record_of_an_arriving_request(events: list[Any]) -> None:
    """A request that has arrived and may add tasks holds its lane, and is named."""
    respond = anyio.Event()
    seen: list[Any] = []

    async def arrives(request: Request) -> Response:
        executor = executor_of(request)
        executor.submit_nowait(Work(events).quick, 1)
        seen.extend((await executor.lanes()).items)
        await respond.wait()
        return Response()

    app = make_app(arrives, order="arrived", may_add_tasks=lambda scope: True)
    async with anyio.create_task_group() as group:
        await start(Client(app, group), "/arrives", 1)
        respond.set()
    assert [(lane.state, lane.held_by, lane.head) for lane in seen] == [("held", "GET /arrives", None)]


async def test_a_report_after_the_end(events: list[Any]) -> None:
    """A child task that outlives its job reports to nobody."""
    go = anyio.Event()

    async def outlives() -> None:
        await go.wait()
        report(9)

    async with anyio.create_task_group() as group, SerialExecutor() as executor:

        async def starts() -> None:
            group.start_soon(outlives)

        job = executor.submit_nowait(starts)
        await job
        go.set()
        await wait_all_tasks_blocked()
        assert job.progress is None


async def test_jobs_that_end_while_they_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that ends between two steps of the listing is shown as it is then, if there is a history."""
    monkeypatch.setattr("fifo_background._run.overview._STEP", 1)
    monkeypatch.setattr("fifo_background._run.overview._PICTURES", 1)
    for history in (0, 100):
        async with SerialExecutor(history=history) as executor:
            lane = executor.lane("a")
            lane.pause()
            for _ in range(20):
                lane.submit_nowait(print)
            await wait_all_tasks_blocked()
            found: list[JobRecord] = []

            async def look(executor: SerialExecutor, found: list[JobRecord]) -> None:
                found += await executor.jobs(search="print")

            async with anyio.create_task_group() as group:
                group.start_soon(look, executor, found)
                await anyio.lowlevel.checkpoint()
                await anyio.lowlevel.checkpoint()
                await anyio.lowlevel.checkpoint()
                lane.clear()
            assert len(found) <= 20
            assert (len(found) == 20) == bool(history)


async def test_what_a_thread_sees(events: list[Any]) -> None:
    """A thread sees the queue as it is before the loop has heard of a cancel; it waits for nothing."""
    async with SerialExecutor() as executor:
        lane = executor.lane("a")
        lane.pause()
        jobs = [lane.submit_nowait(print) for _ in range(3)]
        assert executor.submit_nowait(print).blocked_by is None  # it starts in the loop's next turn
        await wait_all_tasks_blocked()
        seen: list[Any] = []

        def look() -> None:
            seen.extend([jobs[0].cancel(), jobs[2].ahead, jobs[0].ended_at is not None])

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert seen == [True, 1, True]
        lane.clear()


async def test_a_pending_job(events: list[Any]) -> None:
    """A job whose request has no position yet waits for that request; what was cancelled is not ahead."""
    seen: list[Any] = []

    async def adds(request: Request) -> Response:
        tasks = BackgroundTasks()
        jobs = [tasks.add_task(print) for _ in range(3)]
        jobs[0].cancel()
        blocker = jobs[1].blocked_by
        seen.extend([jobs[1].ahead, blocker and (blocker.kind, blocker.name)])
        return Response(background=tasks)

    async def queues(request: Request) -> Response:
        tasks = BackgroundTasks()
        jobs = [tasks.add_task(print) for _ in range(3)]
        jobs[0].cancel()
        seen.append(jobs[2].ahead)
        return Response(background=tasks)

    async with anyio.create_task_group() as group:
        await start(Client(make_app(adds, order="responded"), group), "/adds", 1)
        await start(Client(make_app(queues), group), "/queues", 1)
    assert seen == [None, ("request", "GET /adds"), 1]


async def test_results_do_not_pile_up() -> None:
    """While a thread runs one batch, what its ended tasks have returned is let go."""
    alive: weakref.WeakSet[Payload] = weakref.WeakSet()
    most = 0

    def makes() -> Payload:
        nonlocal most
        time.sleep(0.001)  # the loop gets its turn
        most = max(most, len(alive))
        made = Payload()
        alive.add(made)
        return made

    async with SerialExecutor() as executor:
        for _ in range(400):
            executor.submit_nowait(makes)
        await executor.join()
    assert most < 200


class Meta(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__name__", "__qualname__"):
            raise ZeroDivisionError
        return super().__getattribute__(name)


class Hostile(Exception, metaclass=Meta):
    def __str__(self) -> str:
        raise GeneratorExit


async def test_hostile_errors() -> None:
    """An error whose class and text refuse to be looked at stops nothing, and is named by its type."""

    async def bad() -> None:
        raise Hostile

    def bad_in_thread() -> None:
        raise Hostile

    async with SerialExecutor() as executor:
        jobs = [executor.submit_nowait(function) for function in (bad, bad_in_thread)]
        await executor.join()
        for job in jobs:
            assert job.to_dict(errors=True)["error"] == {"type": "Hostile", "message": "<Hostile>"}
        assert executor.counts()["failed"] == 2
    async with SerialExecutor(history=0) as executor:
        assert await executor.submit_nowait(bad).wait() is JobState.FAILED


class Interrupts(Enum):
    ONE = 1

    @property
    def value(self) -> Any:
        raise KeyboardInterrupt

    def __str__(self) -> str:
        raise KeyboardInterrupt


def test_ctrl_c_while_a_value_is_read() -> None:
    """A KeyboardInterrupt is not taken for a fault of the value."""
    with pytest.raises(KeyboardInterrupt):
        text_of(Interrupts.ONE)
    with pytest.raises(KeyboardInterrupt):
        as_plain(Interrupts.ONE, 1000)


async def test_results_of_forgotten_jobs() -> None:
    """A result of a job that the history has forgotten in the same move counts nothing."""
    async with SerialExecutor(results=True, history=5, results_bytes=1_000_000) as executor:
        for _ in range(100):
            executor.submit_nowait(gives, "x" * 90_000)
        await executor.join()
        history: Any = executor._runner.scheduler.history
        kept = [record.more for record in history.records if record.more and record.more.result]
        assert history._bytes == sum(more.size for more in kept)
        assert len(kept) <= 5


async def test_a_running_sync_job_does_not_wait(events: list[Any]) -> None:
    """Of a lane whose job runs in a thread, what waits is what stands behind that job."""
    work = Work(events)
    async with SerialExecutor() as executor:
        lane = executor.lane("a")
        lane.submit_nowait(work.thread_gated, 1)
        for _ in range(2):
            lane.submit_nowait(work.sync, 2)
        await until(lambda: events)
        picture = lane.picture
        assert picture.running is not None
        assert (picture.waiting, picture.more, [run.last for run in picture.next]) == (2, 0, [2])
        work.thread_gate(1).set()


async def test_only_the_named_head_is_skipped(events: list[Any]) -> None:
    """`skip_head(job)` skips that job, or nothing."""
    async with SerialExecutor() as executor:
        lane = executor.lane("a", after_failure="stop")
        lane.pause()
        first, second = lane.submit_nowait(fails), lane.submit_nowait(print)
        assert lane.skip_head(second) is None
        lane.resume()
        await first.wait()
        assert lane.skip_head(second) is None
        assert lane.skip_head(first) is first
        await second
        assert lane.skip_head(second) is None
