"""Edges of objects: keys, mocks, lists that change, subclasses, and what an ended job keeps."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import AsyncMock, MagicMock, Mock, patch

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from starlette.background import BackgroundTask as StarletteTask
from starlette.background import BackgroundTasks as StarletteTasks

from fifo_background import (
    BackgroundTask,
    BackgroundTasks,
    ExecutorClosed,
    Job,
    JobState,
    SerialExecutor,
)
from fifo_background._adder import asked_for
from fifo_background._core.lane import Lane, plain_key
from fifo_background._run.current import current
from tests.support.apps import Work, app_of, check_idle
from tests.support.asgi import Exchange, get
from tests.support.log import Log

S = JobState
Respond = Callable[[], Awaitable[None]]


# -- keys ----------------------------------------------------------------------------------------------------


class Key:
    """Keys with one hash, which refuse to be compared for a while."""

    refuses = False

    def __init__(self, n: int) -> None:
        self.n = n

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        if Key.refuses:
            raise ZeroDivisionError
        return isinstance(other, Key) and self.n == other.n


@pytest.mark.parametrize("limit", ["executor", "lane"])
async def test_keys_that_refuse_to_be_compared(
    limit: str, events: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was accepted runs, with keep="latest" and `max_waiting`, also while keys cannot be compared."""
    more: Any = {} if limit == "executor" else {"max_waiting": 50}
    work = Work(events)
    async with SerialExecutor(max_waiting=50 if limit == "executor" else None, drain_timeout=0.1) as executor:
        lanes = [executor.lane(Key(n), keep="latest", **more) for n in range(4)]
        jobs = [lane.submit_nowait(work.quick, n) for n, lane in enumerate(lanes) for _ in range(2)]
        monkeypatch.setattr(Key, "refuses", True)
        with anyio.fail_after(5):
            assert [await job.wait() for job in jobs] == [S.SUPERSEDED, S.SUCCEEDED] * 4
        monkeypatch.setattr(Key, "refuses", False)
        with anyio.fail_after(5):
            assert [await lane.submit_nowait(work.quick, 5) for lane in lanes] == [5] * 4
        await executor.join()
        check_idle(executor)
    assert sorted(events) == [0, 1, 2, 3, 5, 5, 5, 5]


@pytest.mark.virtual_clock
async def test_lane_without_a_task_at_the_end(events: list[Any], log: Log) -> None:
    """A lane that is occupied by nothing that could be cancelled does not keep an executor from closing."""
    executor = SerialExecutor(drain_timeout=0)
    await executor.submit_nowait(anyio.sleep, 0)
    scheduler = executor._runner.scheduler
    job = executor.lane("a").submit_nowait(Work(events).quick, 1)
    scheduler.drain()
    lane = scheduler.turns.start_next()
    assert lane is not None
    assert (lane.job, lane.handle) == (job, None)
    await executor.aclose()
    assert (executor.is_open, events) == (False, [])
    with pytest.raises(ExecutorClosed):
        executor.submit_nowait(events.append, 2)


# -- objects that were made outside of the request -----------------------------------------------------------


@pytest.mark.parametrize("how", ["closed", "lane_key", "Ctrl-C"])
async def test_object_that_cannot_be_taken_over(how: str, events: list[Any], log: Log) -> None:
    """A task of an object made outside of the request which cannot be taken over ends, and is named."""
    tasks = BackgroundTasks()
    job = tasks.add_task(Work(events).sync, 0)

    class Accepts(set[Any]):
        def add(self, job: Any) -> None:
            super().add(job)
            raise KeyboardInterrupt

    async def handle(path: str, respond: Respond) -> None:
        await respond()
        scheduler = app.executor._runner.scheduler
        if how == "Ctrl-C":
            scheduler.waiting = Accepts()
        with pytest.raises(
            {"closed": ExecutorClosed, "lane_key": LookupError, "Ctrl-C": KeyboardInterrupt}[how]
        ):
            await tasks()
        scheduler.waiting = set()

    def lane_key(scope: Any) -> Any:
        raise LookupError("no tenant")

    app = app_of(handle, lane_key=lane_key if how == "lane_key" else None)
    if how == "closed":
        await app.executor.aclose()
    assert (await get(app)).error is None
    with anyio.fail_after(5):
        assert await job.wait() is S.DROPPED
    assert (job.cancel(), events) == (False, [])
    (said,) = log
    assert re.match(
        r"WARNING GET / ended without running 1 task: Work.sync( 1-…)?( in .*)?: it raised ", said
    )
    check_idle(app.executor)


async def test_entry_that_cannot_be_taken_over(events: list[Any], log: Log) -> None:
    """An entry made by hand which cannot be taken over has no handle: the error alone tells of it."""

    async def handle(path: str, respond: Respond) -> None:
        await respond()
        await BackgroundTasks([BackgroundTask(events.append, "never")])()

    app = app_of(handle)
    await app.executor.aclose()
    assert type((await get(app)).error) is ExecutorClosed
    assert (events, log) == ([], [])


# -- lists that change ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("adds", [False, True])
async def test_task_inserts_another(adds: bool, at: int, events: list[Any]) -> None:
    """What a task inserts into the list by hand runs once, wherever, and each other task once."""
    tasks = BackgroundTasks()

    async def inserts() -> None:
        tasks.tasks.insert(at, BackgroundTask(events.append, "inserted"))
        if adds:
            tasks.add_task(events.append, "added")

    tasks.add_task(inserts)
    tasks.add_task(events.append, "last")
    await tasks()
    assert events == ["last", *(["added"] if adds else []), "inserted"]


async def test_inserted_task_inserts_another(events: list[Any]) -> None:
    """What an inserted task inserts runs, too, and nothing twice."""
    tasks = BackgroundTasks()

    async def inserts(n: int) -> None:
        events.append(n)
        if n and len(events) < 9:  # else each one that ran twice would insert others, for ever
            tasks.tasks.insert(0, BackgroundTask(inserts, n - 1))

    tasks.add_task(inserts, 3)
    await tasks()
    assert events == [3, 2, 1, 0]


# -- mocks ---------------------------------------------------------------------------------------------------


async def test_mocks_as_entries() -> None:
    """Mocks as entries of the list, which answer any name, are awaited as often as by Starlette."""
    for kind in (StarletteTasks, BackgroundTasks):
        mocks = [AsyncMock(), AsyncMock(spec=StarletteTask), AsyncMock(spec=BackgroundTask)]
        tasks = kind(mocks)
        for _ in range(2):
            await tasks()
        assert [mock.await_count for mock in mocks] == [2, 2, 2]


async def test_mock_of_an_object_as_a_task() -> None:
    """A mock of one of our objects that is given to `add_task` is called, as by Starlette."""
    for kind in (StarletteTasks, BackgroundTasks):
        mocks = [MagicMock(spec=StarletteTasks), MagicMock(spec=BackgroundTasks)]
        tasks = kind()
        for mock in mocks:
            tasks.add_task(mock)
        await tasks()
        assert [mock.call_count for mock in mocks] == [1, 1]


async def test_mocks_inside_a_task() -> None:
    """Mocks in a list that a running task awaits, and in one inside another, are awaited once."""
    mocks = [AsyncMock(), AsyncMock(spec=BackgroundTask)]
    inner, outer = BackgroundTasks(mocks), BackgroundTasks()
    outer.add_task(inner)
    await outer()
    async with SerialExecutor() as executor:
        await executor.submit_nowait(inner.__call__)
    assert [mock.await_count for mock in mocks] == [2, 2]


# -- `add_task` that others replace --------------------------------------------------------------------------


class Audited(BackgroundTasks):
    """Notes each task, and adds another one for each that is named so."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def add_task(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen.append((func, args, kwargs))
        return super().add_task(func, *args, **kwargs)


async def test_overridden_add_task(events: list[Any]) -> None:
    """A subclass's `add_task` sees what is added by lane and with options, which hold for what it adds."""

    async def handle(path: str, respond: Respond) -> None:
        tasks = Audited()
        added = [
            tasks.add_task(events.append, 0),
            tasks.lane("k").add_task(events.append, 1),
            tasks.options(timeout=3.0, wait=False).add_task(events.append, 2),
            tasks.lane("k").options(timeout=4.0).add_task(events.append, 3),
            tasks.add_task(events.append, 4),
        ]
        assert [job._position.lane.key for job in added] == [None, "k", None, "k", None]  # type: ignore[union-attr]
        assert [job._options.timeout for job in added] == [None, None, 3.0, 4.0, None]
        assert [job._options.wait for job in added] == [True, True, False, True, True]
        assert tasks.seen == [(events.append, (n,), {}) for n in range(5)]
        await respond()
        await tasks()

    app = app_of(handle)
    assert (await get(app)).error is None
    await app.executor.join()
    assert [n for n in events if n in (0, 2, 4)] == [0, 2, 4]
    assert [n for n in events if n in (1, 3)] == [1, 3]


async def test_lane_is_that_of_one_task(events: list[Any]) -> None:
    """The lane for which an overridden `add_task` is called is that of one task, and of no other."""

    class Copies(Audited):
        def add_task(self, func: Any, *args: Any, **kwargs: Any) -> Any:
            other.add_task(events.append, "other")
            return super().add_task(func, *args, **kwargs)

    other = Audited()

    async def adds(tasks: BackgroundTasks) -> None:
        tasks.lane("k").add_task(adds_more, tasks)

    async def adds_more(tasks: BackgroundTasks) -> None:
        tasks.add_task(events.append, "in the default lane")

    async def handle(path: str, respond: Respond) -> None:
        tasks = Copies()
        objects.append(tasks)
        tasks.add_task(adds, tasks)
        await respond()
        await tasks()

    objects: list[Any] = [other]
    app = app_of(handle)
    assert (await get(app)).error is None
    assert events == ["in the default lane"]
    lanes = [[entry._fifo_entry and entry._fifo_entry.key for entry in one.tasks] for one in objects]
    assert lanes == [[None] * 3, [None, "k", None]]


def asked_of(tasks: Any) -> list[Any]:
    """What was asked for each entry of an object."""
    return [entry._fifo_entry and tuple(entry._fifo_entry) for entry in tasks.tasks]


def test_options_in_an_overridden_add_task() -> None:
    """What an overriding `add_task` asks for by `options` and `lane` is added to what was asked of it."""

    class Timed(BackgroundTasks):
        def add_task(self, func: Any, *args: Any, **kwargs: Any) -> Any:
            return self.options(timeout=5.0).add_task(func, *args, **kwargs)

    class Mails(BackgroundTasks):
        def add_task(self, func: Any, *args: Any, **kwargs: Any) -> Any:
            return self.lane("mails").add_task(func, *args, **kwargs)

    timed, mails = Timed(), Mails()
    timed.add_task(print)
    timed.lane("k", after_failure="stop").options(wait=False).add_task(print)
    timed.options(timeout=3.0).add_task(print)
    assert asked_of(timed) == [
        (..., {"timeout": 5.0}),
        ("k", {"after_failure": "stop", "wait": False, "timeout": 5.0}),
        (..., {"timeout": 5.0}),
    ]
    mails.options(timeout=3.0).add_task(print)
    mails.lane("k").add_task(print)
    assert asked_of(mails) == [("mails", {"timeout": 3.0}), ("mails", {})]


def test_overridden_add_task_adds_one_more() -> None:
    """What was asked of an overriding `add_task` does not hold for what it adds after the task."""

    class Audits(BackgroundTasks):
        def add_task(self, func: Any, *args: Any, **kwargs: Any) -> Any:
            job = super().add_task(func, *args, **kwargs)
            super().add_task(print, func)
            self.options(wait=False).add_task(print, func)
            return job

    tasks = Audits()
    tasks.lane("k", max_waiting=1).add_task(repr, 1)
    assert [entry.func for entry in tasks.tasks] == [repr, print, print]
    assert asked_of(tasks) == [("k", {"max_waiting": 1}), None, (..., {"wait": False})]


class Audits:
    """A mixin: adds a task before each one, in a lane of its own, and gives each a timeout."""

    def add_task(self: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(func)
        self.lane("audit").add_task(print, func)
        return self.options(timeout=5.0).add_task(func, *args, **kwargs)


class OfMixin(Audits, BackgroundTasks):
    """Its `add_task` is the mixin's."""


class OfOwn(BackgroundTasks):
    """Its `add_task` is its own."""

    add_task = Audits.add_task


class OfBoth(OfOwn):
    """Its `add_task` calls one that overrides, too."""

    def add_task(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        return super().add_task(func, *args, **kwargs)


seen: list[Any] = []


@pytest.mark.parametrize("kind", [OfMixin, OfOwn, OfBoth])
def test_overridden_add_task_runs_once(kind: type[BackgroundTasks]) -> None:
    """An overriding `add_task` that uses `self.lane` and `self.options` runs once for each task."""
    seen.clear()
    tasks = kind()
    tasks.add_task(repr, 1)
    tasks.lane("k").add_task(repr, 2)
    kind.add_task(tasks, func=repr, obj=3)  # type: ignore[call-arg]
    assert seen == [repr] * 3
    assert [entry.func for entry in tasks.tasks] == [print, repr] * 3
    asked = asked_of(tasks)
    assert asked[0] == asked[2] == asked[4] == ("audit", {})
    assert asked[1] == asked[5] == (..., {"timeout": 5.0})
    assert asked[3] == ("k", {"timeout": 5.0})
    assert asked_for.tasks is None, "nothing is left behind"


def test_replaced_add_task_of_a_mixin() -> None:
    """Who replaces the `add_task` of a mixin, or has a mock in its place, sees each call."""
    with patch.object(Audits, "add_task", autospec=True) as mock:
        tasks = OfMixin()
        tasks.add_task(repr, 1)
        tasks.lane("k").add_task(repr, 2)
    assert [call.args for call in mock.call_args_list] == [(tasks, repr, n) for n in (1, 2)]

    class OfMock(BackgroundTasks):
        add_task = Mock()

    OfMock().add_task(repr, 3)
    assert OfMock.add_task.call_args.args == (repr, 3)


async def test_replaced_add_task_of_one_object(events: list[Any]) -> None:
    """Who puts a function around one object's `add_task` sees every call, and lanes and options hold."""
    tasks: Any = BackgroundTasks()
    original = tasks.add_task
    with patch.object(tasks, "add_task", wraps=original) as mock:
        tasks.add_task(events.append, 0)
        tasks.lane("k").add_task(events.append, 1)
        tasks.options(timeout=3.0).add_task(events.append, 2)
    assert [call.args for call in mock.call_args_list] == [(events.append, n) for n in range(3)]
    assert [entry._fifo_entry and entry._fifo_entry[:2] for entry in tasks.tasks] == [
        None,
        ("k", {}),
        (..., {"timeout": 3.0}),
    ]
    await tasks()
    assert sorted(events) == [0, 1, 2]


def test_mock_of_add_task(events: list[Any]) -> None:
    """A mock of our `add_task` sees what is added by lane and with options, and nothing is added."""
    with patch.object(BackgroundTasks, "add_task", autospec=True) as mock:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, 1)
        tasks.lane("k").add_task(events.append, 2)
        tasks.options(timeout=3.0).add_task(events.append, 3)
    assert [call.args for call in mock.call_args_list] == [(tasks, events.append, n) for n in (1, 2, 3)]
    assert tasks.tasks == []


# -- what an ended job keeps ---------------------------------------------------------------------------------


class Big:
    """Something that is to be freed."""


@pytest.mark.parametrize("how", ["awaited by a task", "given to add_task"])
async def test_ended_part_keeps_no_other_job(how: str, events: list[Any]) -> None:
    """The handle of a task that ran inside another one keeps neither that one nor its result."""
    inner = BackgroundTasks()
    part = inner.add_task(Work(events).quick, 1)  # a thread of old anyio keeps its last context
    kept: list[weakref.ref[Any]] = []

    async def outer(inner: BackgroundTasks) -> Big:
        await inner()
        big = Big()
        kept.append(weakref.ref(big))
        return big

    if how == "given to add_task":
        tasks = BackgroundTasks()
        job: Job[Any] = tasks.add_task(inner)
        kept.append(weakref.ref(job))
        await tasks()
        del tasks
    else:
        async with SerialExecutor() as executor:
            job = executor.submit_nowait(outer, inner)
            kept.append(weakref.ref(job))
            await job.wait()
        del executor
    assert (part.state, events) == (S.SUCCEEDED, [1])
    del job, inner, outer
    for _ in range(3):
        await wait_all_tasks_blocked()
    gc.collect()
    assert [one() for one in kept] == [None] * len(kept)


def test_cancelled_job_of_nobody_keeps_no_other() -> None:
    """The handle of a task that was cancelled keeps no other task of its object alive."""
    tasks = BackgroundTasks()
    job = tasks.add_task(print)
    big = Big()
    kept = weakref.ref(big)
    tasks.add_task(print, big)
    assert job.cancel()
    del tasks, big
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize("waits", [False, True])
async def test_ended_job_keeps_no_lane(waits: bool, events: list[Any]) -> None:
    """Without a history, the handle of a task that was counted in its lane keeps the key, and no lane."""
    key = Key(1)
    async with SerialExecutor(history=0) as executor:
        job = executor.lane(key, max_waiting=3).submit_nowait(Work(events).quick, 1)
        if waits:
            await job
        else:
            await executor.join()
        await executor.submit_nowait(Work(events).quick, 2)
        await wait_all_tasks_blocked()
        gc.collect()
        lanes = [one for one in gc.get_objects() if type(one) is Lane]
        assert [one for one in lanes if plain_key(one.key) is key] == []
    assert (job.state, job.lane) == (S.SUCCEEDED, key)


# -- the context of a refusal --------------------------------------------------------------------------------


class Sees(Exchange):
    """Notes the request or task that is current where each message is sent."""

    async def send(self, message: Any) -> None:
        seen.append((message["type"], current.get()))
        await super().send(message)


seen: list[Any] = []


async def test_context_of_the_refusal(events: list[Any]) -> None:
    """The 503 for a `QueueFull` is sent outside of the request's context, which a server may keep."""
    seen.clear()

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, 1)
        tasks.add_task(events.append, 2)

    exchange = await Sees(app_of(handle, max_waiting=1)).run()
    assert (exchange.status, exchange.error) == (503, None)
    assert seen == [("http.response.start", None), ("http.response.body", None)]
    assert events == []
