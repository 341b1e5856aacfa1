"""Time: a task past its timeout is cancelled if that is possible, and named if it is not."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from starlette.background import BackgroundTask as StarletteTask
from starlette.requests import Request
from starlette.responses import Response

from fifo_background import BackgroundTasks, Job, JobState, SerialExecutor
from tests.support.apps import Work, make_app
from tests.support.asgi import get
from tests.support.log import Log


@pytest.mark.virtual_clock
async def test_async_task(events: list[Any], log: Log) -> None:
    """An async task past its timeout is cancelled and fails with TimeoutError; the next one runs."""
    async with SerialExecutor(timeout=5) as executor:
        late = executor.submit_nowait(anyio.sleep, 6)
        in_time = executor.submit_nowait(anyio.sleep, 4)
        longer = executor.options(timeout=20).submit_nowait(anyio.sleep, 10)
        shorter = executor.lane("a").options(timeout=1).submit_nowait(anyio.sleep, 2)
        begin = anyio.current_time()
        with pytest.raises(TimeoutError):
            await shorter
        assert anyio.current_time() - begin == pytest.approx(1)
        with pytest.raises(TimeoutError):
            await late
        assert anyio.current_time() - begin == pytest.approx(5)
        await in_time
        await longer
        assert anyio.current_time() - begin == pytest.approx(19)
        unwatched = executor.submit_nowait(anyio.sleep, 6)
    assert [job.state for job in (late, unwatched)] == [JobState.FAILED] * 2
    assert isinstance(unwatched.exception(), TimeoutError)
    assert log == ["ERROR sleep failed"]


@pytest.mark.virtual_clock
async def test_of_a_request(events: list[Any], log: Log) -> None:
    """A task that timed out is a failed one: it skips the rest of its request and is raised."""
    jobs: list[Job[Any]] = []

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        jobs.append(tasks.options(timeout=1).add_task(anyio.sleep, 2))
        jobs.append(tasks.add_task(events.append, 1))
        return Response(background=tasks)

    exchange = await get(make_app(handler), "/handler")
    assert isinstance(exchange.error, TimeoutError)
    assert [job.state for job in jobs] == [JobState.FAILED, JobState.SKIPPED]
    assert log == [
        "WARNING sleep failed (GET /handler); skipped after it: 1 task: list.append 2-… in the default lane"
    ]


async def test_sync_task(events: list[Any], log: Log) -> None:
    """A sync task cannot be stopped: its lane waits, and a warning names it and how many wait behind it."""
    work = Work(events)
    said = threading.Event()

    def slow() -> None:
        assert said.wait(10)
        events.append("slow")

    async with SerialExecutor(timeout=0.01) as executor:
        slow_job = executor.submit_nowait(slow)
        for n in range(2):
            executor.submit_nowait(work.sync, n)
        while not log:
            await anyio.sleep(0.001)
        said.set()
        assert await slow_job is None
        await executor.join()
    assert events == ["slow", 0, 1]
    (record,) = log
    assert record.startswith("WARNING test_sync_task.<locals>.slow has been running for 0.0")
    assert record.endswith(
        " s, longer than its timeout of 0.01 s. "
        "It runs in a thread, and cannot be stopped: 2 tasks wait behind it"
    )


async def test_in_time(events: list[Any], log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sync tasks that end in time leave no timer behind and say nothing."""
    work = Work(events)
    async with SerialExecutor() as executor:
        first = executor.options(timeout=0.02).submit_nowait(work.thread_gated, 100)
        second = executor.submit_nowait(work.thread_gated, 101)
        third = executor.options(timeout=60).submit_nowait(work.thread_gated, 102)
        await anyio.sleep(0)
        work.thread_gate(100).set()
        await first
        await anyio.sleep(0.03)  # the first one's time is over while the second one runs
        work.thread_gate(101).set()
        await second
        await anyio.sleep(0.01)  # the loop watches the third one
        work.thread_gate(102).set()
        await third
    del events[:]
    timers: list[Any] = []
    async with SerialExecutor(timeout=60) as executor:
        backend = executor._runner.backend
        with monkeypatch.context() as patch:
            patch.setattr(backend, "later", lambda *args: timers.append(_Timer(later(*args))) or timers[-1])
            later = type(backend).later.__get__(backend)
            for n in range(20):
                executor.submit_nowait(work.thread_gated, n)
            for n in range(20):
                while len(timers) < n + 1:  # the loop watches each
                    await anyio.lowlevel.checkpoint()
                work.thread_gate(n).set()
            await executor.join()
            await wait_all_tasks_blocked()
    assert [timer.cancelled for timer in timers] == [True] * 20
    assert log == []


class _Timer:
    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True
        self.handle.cancel()


@pytest.mark.parametrize("patched", [True, False])
async def test_with_a_call_of_its_own(
    patched: bool, events: list[Any], log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timeout counts for tasks with a `__call__` of their own; a sync function is not cut off there."""
    work = Work(events)

    class Own(StarletteTask):
        async def __call__(self) -> None:
            await anyio.sleep_forever()

    if patched:
        original = StarletteTask.__call__

        async def call(self: StarletteTask) -> None:
            await original(self)

        monkeypatch.setattr(StarletteTask, "__call__", call)

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks([Own(print)])
        tasks.add_task(events.append, 1)
        return Response(background=tasks)

    exchange = await get(make_app(handler, timeout=0.01), "/handler")
    assert isinstance(exchange.error, TimeoutError)
    async with SerialExecutor(timeout=0.01) as executor:
        job = executor.submit_nowait(work.thread_gated, 0)
        with anyio.move_on_after(3):
            while len(log) < 2:
                await anyio.sleep(0.001)
        work.thread_gate(0).set()
        assert await job == 0
        assert job.state is JobState.SUCCEEDED
    skipped = "1 task: list.append 1-… in the default lane"
    assert log[0] == f"WARNING print failed (GET /handler); skipped after it: {skipped}"
    assert [line.split(" s, ")[-1] for line in log[1:]] == [
        "longer than its timeout of 0.01 s. "
        "It runs in a thread, and cannot be stopped: 0 tasks wait behind it"
    ]


async def test_timeout_of_a_nested_task() -> None:
    """A task that runs inside another one has its own timeout."""

    async def outer() -> None:
        inner = BackgroundTasks()
        inner.options(timeout=0.001).add_task(anyio.sleep_forever)
        await inner()

    async with SerialExecutor() as executor:
        with pytest.raises(TimeoutError):
            await executor.submit_nowait(outer)


async def test_no_time_at_all() -> None:
    """A timeout of 0 would let no task run: it is refused where it is given, and None is named instead."""
    for give in (
        lambda: SerialExecutor(timeout=0),
        lambda: SerialExecutor().options(timeout=0),
        lambda: BackgroundTasks().options(timeout=0),
    ):
        with pytest.raises(ValueError, match=r"timeout=0: .* None for no limit"):
            give()


async def test_timer_of_a_task_that_has_ended(events: list[Any], log: Log) -> None:
    """A timer that rings just after its sync task has ended says nothing, and is not set again."""
    async with SerialExecutor() as executor:
        backend: Any = executor._runner.backend
        later, calls = backend.later, []

        def remember(delay: float, call: Any) -> Any:
            calls.append(call)
            return later(delay, call)

        backend.later = remember
        await executor.options(timeout=1000).submit_nowait(events.append, 1)
        del backend.later
        calls[0]()
    assert (events, log, len(calls)) == ([1], [], 1)


async def test_sync_part(events: list[Any], log: Log) -> None:
    """A sync task inside a task has its own timeout: the warning counts what waits behind the outer one."""
    said = threading.Event()

    def slow() -> None:
        assert said.wait(10)
        events.append("slow")

    async def outer() -> None:
        tasks = BackgroundTasks()
        parts.append(tasks.options(timeout=0.01).add_task(slow))
        await tasks()

    parts: list[Job[Any]] = []
    async with SerialExecutor() as executor:
        job = executor.submit_nowait(outer)
        behind = executor.submit_nowait(events.append, "behind")
        while not log:
            await anyio.sleep(0.001)
        said.set()
        assert await job is None
        await behind
    assert parts[0].state is JobState.SUCCEEDED
    assert events == ["slow", "behind"]
    (record,) = log
    assert record.startswith("WARNING test_sync_part.<locals>.slow has been running for 0.0")
    assert record.endswith("cannot be stopped: 1 task waits behind it")


async def test_cancelled_before_its_thread(events: list[Any], log: Log) -> None:
    """A sync task with a timeout is cancelled when its lane has begun to run it, and its thread has not."""
    async with SerialExecutor(timeout=60) as executor:
        job = executor.submit_nowait(events.append, 1)
        executor._runner.pump()
        job.cancel()
        executor._runner.pump()
        await executor.submit_nowait(events.append, 2)
        assert job.state in (JobState.CANCELLED, JobState.SUCCEEDED)  # where tasks start at once, it ran
    assert events[-1] == 2
    assert log == []


async def test_starts_as_its_time_is_looked_at(
    events: list[Any], log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread starts a task in the middle of the look whether its time is over: it has all of its time."""
    work = Work(events)
    delays: list[float] = []
    async with SerialExecutor() as executor:
        runner = executor._runner
        job = executor.submit_nowait(work.thread_gated, 1)
        while job.state is not JobState.RUNNING:
            await anyio.sleep(0.001)
        started, job._started, job._own_state = job._started, None, None  # as before its start

        def done(self: Any) -> bool:
            job._started, job._own_state = started, JobState.RUNNING
            return False

        later = lambda delay, ring: delays.append(delay) or rings.append(ring)  # noqa: E731
        monkeypatch.setattr(runner.backend, "later", later)
        rings: list[Any] = []
        runner.thread_runs.watch(job, 5)
        with monkeypatch.context() as patch:
            patch.setattr(Job, "done", done)
            rings.pop()()
        monkeypatch.undo()
        work.thread_gate(1).set()
        await job
        rings.pop()()
    assert delays == [5, 5]
    assert log == []
