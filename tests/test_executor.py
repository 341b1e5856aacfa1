from __future__ import annotations

import asyncio
import contextlib
import contextvars
import signal
import threading
from functools import partial
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from anyio import wait_all_tasks_blocked

from fifo_background import ExecutorClosed, Job, JobNoResult, JobState, SerialExecutor
from fifo_background._core.invariants import check
from fifo_background._core.lane import Lane
from fifo_background._core.turns import Turns
from tests.support.apps import Work
from tests.support.log import Log
from tests.support.loops import LOOPS

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def new_loop(name: str) -> asyncio.AbstractEventLoop:
    if name == "uvloop":
        import uvloop

        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        return loop
    return asyncio.new_event_loop()


async def test_one_after_the_other(events: list[Any]) -> None:
    """One task at a time: a task starts only after the task before it has ended, sync and async alike."""
    work = Work(events)
    async with SerialExecutor() as executor:
        first = executor.submit_nowait(work.gated, 0)
        second = executor.submit_nowait(work.sync, 1)
        third = executor.submit_nowait(work.quick, 2)
        await wait_all_tasks_blocked()
        assert events == ["start 0"]
        assert [job.state for job in (first, second, third)] == [
            JobState.RUNNING,
            JobState.QUEUED,
            JobState.QUEUED,
        ]
        work.gate(0).set()
        assert [await job for job in (first, second, third)] == [0, 1, 2]
    assert events == ["start 0", "end 0", 1, 2]


async def test_first_in_first_out(events: list[Any]) -> None:
    """First in, first out: 300 tasks of both kinds run in the order of their submission."""
    work = Work(events)
    async with SerialExecutor() as executor:
        for n in range(300):
            executor.submit_nowait((work.sync, work.quick, work.sync)[n % 3], n)
        await executor.join()
        await wait_all_tasks_blocked()
        assert events == list(range(300))
        assert repr(executor) == "<SerialExecutor open, 0 unfinished, 0 running>"
        assert executor._runner.scheduler.lanes.by_key == {}
        check(executor._runner.scheduler)


async def test_submit_does_not_start(events: list[Any]) -> None:
    """`submit_nowait` returns before its task starts."""
    work = Work(events)
    async with SerialExecutor() as executor:
        job = executor.submit_nowait(work.quick, 0)
        assert (events, job.state) == ([], JobState.QUEUED)
        assert await (await executor.submit(work.quick, 1)) == 1
    assert events == [0, 1]


async def test_submit_lets_others_run(events: list[Any], anyio_backend_name: str) -> None:
    """`submit` lets others run before it returns: a loop of submits starves nobody."""

    async def other() -> None:
        events.append("other")

    async with SerialExecutor() as executor, anyio.create_task_group() as group:
        executor.lane("a").pause()
        group.start_soon(other)
        if anyio_backend_name == "trio":  # which runs tasks in any order
            import trio.testing

            with trio.testing.assert_checkpoints():
                await executor.lane("a").submit(print)
        else:
            await executor.lane("a").submit(print)
            assert events == ["other"]
        executor.lane("a").clear()


async def test_failures_stay(events: list[Any], log: Log) -> None:
    """A failed task is reported once, to the wait that raises its error, and the next one runs."""

    def fail() -> None:
        raise ValueError("mine")

    async with SerialExecutor() as executor:
        jobs = [executor.submit_nowait(f) for f in (fail, partial(Work(events).sync, 1))]
        with pytest.raises(ValueError, match="mine") as caught:
            await jobs[0]
        assert await jobs[1] == 1
        assert jobs[0].exception() is caught.value
    assert log == []


@pytest.mark.parametrize("sync", [False, True])
async def test_failure_that_nobody_waits_for(sync: bool, events: list[Any], log: Log) -> None:
    """A failure that nobody waits for is logged once, with its traceback; `await job` later logs nothing."""
    error = ValueError("mine")

    async def fail() -> None:
        raise error

    def fail_sync() -> None:
        raise error

    async with SerialExecutor() as executor:
        failed = executor.submit_nowait(fail_sync if sync else fail)
        assert await executor.submit_nowait(Work(events).sync, 1) == 1
        for _ in range(2):
            with pytest.raises(ValueError, match="mine"):
                await failed
    name = "fail_sync" if sync else "fail"
    assert log == [f"ERROR test_failure_that_nobody_waits_for.<locals>.{name} failed"]
    info = log.records[0].exc_info
    assert info is not None
    assert info[1] is error
    assert info[2] is not None


async def test_outcome_at_once(events: list[Any]) -> None:
    """The outcome of a finished sync task reaches its waiter while the next one runs."""
    work = Work(events)
    async with SerialExecutor() as executor:
        gated = executor.submit_nowait(work.thread_gated, 0)
        first = executor.submit_nowait(work.sync, 1)
        second = executor.submit_nowait(work.thread_gated, 2)
        work.thread_gate(0).set()
        assert await first == 1
        assert second.state is not JobState.SUCCEEDED
        work.thread_gate(2).set()
        assert [await gated, await second] == [0, 2]


async def test_context_of_submit() -> None:
    """`submit_nowait` copies the context where it is called."""
    seen: list[str] = []

    async def look() -> None:
        seen.append(variable.get())
        variable.set("by a task")

    def look_sync() -> None:
        seen.append(variable.get())

    async with SerialExecutor() as executor:
        variable.set("first")
        executor.submit_nowait(look)
        variable.set("second")
        executor.submit_nowait(look_sync)
        executor.submit_nowait(look)
    assert seen == ["first", "second", "second"]
    assert variable.get() == "second"


async def test_own_threads(events: list[Any]) -> None:
    """Own threads: with no token of anyio's default limiter free, sync tasks run."""
    limiter = anyio.to_thread.current_default_thread_limiter()
    total, limiter.total_tokens = limiter.total_tokens, 1
    holder = threading.Event()
    held = threading.Event()

    def hold() -> None:
        held.set()
        assert holder.wait(10)

    try:
        async with anyio.create_task_group() as group, SerialExecutor() as executor:
            group.start_soon(anyio.to_thread.run_sync, hold)
            while not held.is_set():
                await anyio.sleep(0)
            job = executor.submit_nowait(Work(events).sync, 1)
            assert await job == 1
            holder.set()
    finally:
        limiter.total_tokens = total


async def test_from_thread(events: list[Any]) -> None:
    """`anyio.from_thread` works inside a sync task, and a task can submit from there."""
    work = Work(events)
    later: list[Job[int]] = []

    async with SerialExecutor() as executor:

        def task() -> int:
            later.append(executor.submit_nowait(work.sync, 1))
            return anyio.from_thread.run(work.quick, 0)

        assert await executor.submit_nowait(task) == 0
        assert await later[0] == 1
    assert events == [0, 1]


async def test_worker_thread_may_submit(events: list[Any]) -> None:
    """A worker thread of the loop may submit, once the executor has its loop."""
    work = Work(events)
    executor = SerialExecutor()
    with pytest.raises(RuntimeError, match="this executor has no event loop yet"):
        await anyio.to_thread.run_sync(executor.submit_nowait, work.sync, 6)
    first = executor.submit_nowait(work.sync, 6)
    job = await anyio.to_thread.run_sync(executor.submit_nowait, work.sync, 7)
    again = await anyio.to_thread.run_sync(executor.submit_nowait, work.quick, 8)
    assert (await first, await job, await again) == (6, 7, 8)
    assert events == [6, 7, 8]


async def test_other_thread_may_submit(events: list[Any]) -> None:
    """Any thread may submit and cancel, and waits for nothing: here the loop stands still meanwhile."""
    work = Work(events)
    jobs: list[Job[int]] = []
    cancelled: list[bool] = []

    def call() -> None:
        jobs.extend(executor.submit_nowait((work.sync, work.quick)[n % 2], n) for n in range(1, 7))
        cancelled.extend(jobs[n].cancel() for n in (1, 2, 2))

    async with SerialExecutor() as executor:
        first = executor.submit_nowait(work.quick, 0)
        thread = threading.Thread(target=call)
        thread.start()
        thread.join(10)  # in the loop, which so can do nothing
        assert not thread.is_alive()
        assert cancelled == [True, True, False]
        states = [JobState.QUEUED, JobState.CANCELLED, JobState.CANCELLED, *[JobState.QUEUED] * 3]
        assert [job.state for job in jobs] == states
        last = executor.submit_nowait(work.sync, 7)
        assert [await job for job in (first, jobs[0], *jobs[3:], last)] == [0, 1, 4, 5, 6, 7]
        check(executor._runner.scheduler)
    assert events == [0, 1, 4, 5, 6, 7]


async def test_cancel_in_a_thread_is_exact(events: list[Any]) -> None:
    """A task whose `cancel()` returned True in a thread before it started never runs; False means it did."""
    work = Work(events)
    answers: dict[int, bool] = {}

    def cancel() -> None:
        for n, job in enumerate(jobs):
            answers[n] = job.cancel()

    async with SerialExecutor() as executor:
        jobs = [executor.submit_nowait(work.sync, n) for n in range(300)]
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, cancel)
        await executor.join()
    assert events == [n for n in range(300) if not answers[n]]
    assert all(
        job.state is (JobState.CANCELLED if answers[n] else JobState.SUCCEEDED) for n, job in enumerate(jobs)
    )


def test_no_loop_at_all() -> None:
    """Before the executor has an event loop `submit_nowait` says what to write."""
    with pytest.raises(RuntimeError, match=r"this executor has no event loop yet.*async with SerialExecutor"):
        SerialExecutor().submit_nowait(print)


def test_other_loop() -> None:
    """An executor belongs to the loop that used it first, and can be waited for only there."""
    from tests.support.loops import run

    executor = SerialExecutor()
    jobs: list[Job[str]] = []

    async def use() -> None:
        jobs.append(executor.submit_nowait(str))
        await jobs[-1]

    async def join() -> None:
        await executor.join()

    run("asyncio", use)
    with pytest.raises(RuntimeError, match="belongs to another event loop"):
        run("asyncio", use)
    with pytest.raises(RuntimeError, match="belongs to another event loop"):
        run("asyncio", join)


async def test_bad_input() -> None:
    """Bad input gets a clear error at the call that made it."""
    with pytest.raises(ValueError, match=r"drain_timeout=-1: give a finite number of seconds"):
        SerialExecutor(drain_timeout=-1)
    with pytest.raises(ValueError, match=r"drain_timeout=inf"):
        SerialExecutor(drain_timeout=float("inf"))
    async with SerialExecutor() as executor:
        with pytest.raises(TypeError, match=r"write submit_nowait\(func, argument\)"):
            executor.submit_nowait(None)  # type: ignore[call-overload]
    with pytest.raises(ExecutorClosed, match="print was refused: the executor is closed"):
        executor.submit_nowait(print)
    await executor.aclose()


async def test_closing_drains(events: list[Any]) -> None:
    """The end of the block runs what is in the queue, and refuses tasks that those tasks add."""
    refused: list[str] = []

    async with SerialExecutor() as executor:

        async def add() -> None:
            try:
                executor.submit_nowait(print)
            except ExecutorClosed as error:
                refused.append(str(error))

        executor.submit_nowait(Work(events).sync, 1)
        executor.submit_nowait(add)
    assert events == [1]
    assert "its app is shutting down" in refused[0]
    assert repr(executor) == "<SerialExecutor closed, 0 unfinished, 0 running>"


@pytest.mark.virtual_clock
async def test_closing_has_a_limit(events: list[Any], log: Log) -> None:
    """After `drain_timeout` the running async task is cancelled, the rest is dropped, and both are named."""
    work = Work(events)
    async with SerialExecutor(drain_timeout=3) as executor:
        running = executor.submit_nowait(work.gated, 0)
        waiting = [executor.submit_nowait(work.quick, n) for n in (1, 2)]
        start = anyio.current_time()
    assert anyio.current_time() - start == pytest.approx(3)
    with pytest.raises(JobNoResult):
        await waiting[0]
    with pytest.raises(JobNoResult, match="was cancelled"):
        await running
    assert (events, running.state) == (["start 0"], JobState.CANCELLED)
    assert sorted(log) == [
        "WARNING Work.gated 1-… in the default lane was cancelled",
        "WARNING shutdown: dropped 2 tasks: Work.quick 2-…, Work.quick 3-… in the default lane",
    ]


async def test_cancelled_wait_leaves_the_job(events: list[Any]) -> None:
    """A wait that is cancelled does not stop the job."""
    work = Work(events)
    async with SerialExecutor() as executor:
        job = executor.submit_nowait(work.gated, 0)
        async with anyio.create_task_group() as group:
            group.start_soon(job.wait)
            await wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        assert (job.state, bool(job._waiters)) == (JobState.RUNNING, False)
        work.gate(0).set()
        assert await job == 0


async def test_base_exception_of_a_sync_task(log: Log) -> None:
    """A sync task that raises SystemExit fails like any other; the executor goes on."""

    def leave_sync() -> None:
        raise SystemExit(4)

    async with SerialExecutor() as executor:
        with pytest.raises(SystemExit):
            await executor.submit_nowait(leave_sync)
        job = executor.submit_nowait(leave_sync)
        assert await executor.submit_nowait(str, 1) == "1"
    assert job.state is JobState.FAILED
    assert log == ["ERROR test_base_exception_of_a_sync_task.<locals>.leave_sync failed"]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("name", [loop for loop in LOOPS if loop != "trio"])
def test_exit_of_an_async_task(name: str, kind: type[BaseException], events: list[Any], log: Log) -> None:
    """A SystemExit or KeyboardInterrupt of an async task is logged and leaves the loop; the lane goes on."""

    async def leave() -> None:
        raise kind(3)

    async def begin() -> None:
        jobs.append(executor.submit_nowait(leave))
        jobs.append(executor.submit_nowait(Work(events).quick, 1))
        await anyio.sleep(60)

    async def go_on() -> None:
        assert await jobs[1] == 1
        await executor.aclose()

    jobs: list[Job[Any]] = []
    executor = SerialExecutor()
    loop = new_loop(name)
    try:
        main = loop.create_task(begin())
        with pytest.raises(kind):
            loop.run_until_complete(main)
        loop.run_until_complete(go_on())
        main.cancel()
        with contextlib.suppress(asyncio.CancelledError, kind):
            loop.run_until_complete(main)
    finally:
        loop.close()
    assert jobs[0].state is JobState.FAILED
    assert isinstance(jobs[0].exception(), kind)
    assert log == ["ERROR test_exit_of_an_async_task.<locals>.leave failed"]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_exit_of_an_async_task_on_trio(kind: type[BaseException], log: Log) -> None:
    """On trio a SystemExit or KeyboardInterrupt of an async task is logged; the run ends as by Ctrl-C."""

    async def leave() -> None:
        raise kind(3)

    async def main() -> None:
        jobs.append(executor.submit_nowait(leave))
        await anyio.sleep(60)

    jobs: list[Job[Any]] = []
    executor = SerialExecutor()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background jobs
    try:
        with pytest.raises((kind, KeyboardInterrupt)):
            anyio.run(main, backend="trio")
    finally:
        signal.signal(signal.SIGINT, before)
    assert jobs[0].state is JobState.FAILED
    assert log == ["ERROR test_exit_of_an_async_task_on_trio.<locals>.leave failed"]


@pytest.mark.parametrize("where", ["in a thread", "SIGINT is ignored", "SIGINT raises at once"])
def test_exit_that_trio_cannot_raise(where: str, log: Log) -> None:
    """Where trio cannot raise the SystemExit of an async task, the log says so, and the executor goes on."""

    async def leave() -> None:
        raise SystemExit(3)

    async def main() -> None:
        if where != "in a thread":  # after trio has set its own handler
            signal.signal(signal.SIGINT, handler)
        async with SerialExecutor() as executor:
            jobs.append(executor.submit_nowait(leave))
            jobs.append(executor.submit_nowait(anyio.sleep, 0))

    jobs: list[Job[Any]] = []
    handler = signal.SIG_IGN if where == "SIGINT is ignored" else signal.default_int_handler
    before = signal.getsignal(signal.SIGINT)
    try:
        if where == "in a thread":
            thread = threading.Thread(target=anyio.run, args=[main], kwargs={"backend": "trio"})
            thread.start()
            thread.join(10)
        else:
            anyio.run(main, backend="trio")
    finally:
        signal.signal(signal.SIGINT, before)
    assert [job.state for job in jobs] == [JobState.FAILED, JobState.SUCCEEDED]
    name = "test_exit_that_trio_cannot_raise.<locals>.leave"
    said, failed = sorted(log, key=len, reverse=True)
    assert said.startswith(f"ERROR the SystemExit of {name} does not end the program: trio raises it only in")
    assert failed == f"ERROR {name} failed"


async def test_burst(events: list[Any]) -> None:
    """A long queue of tasks that never wait gives the loop its turn."""
    turns = 0
    done = False

    async def count() -> None:
        nonlocal turns
        while not done:
            turns += 1
            await anyio.sleep(0)

    async with anyio.create_task_group() as group, SerialExecutor() as executor:
        group.start_soon(count)
        jobs = [executor.submit_nowait(Work(events).quick, n) for n in range(1000)]
        await jobs[-1]
        done = True
    assert turns > 10
    assert events == list(range(1000))


async def test_no_thread(events: list[Any], log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """If no thread can be started, the task fails of it, and the queue moves."""

    async def refuse(*args: Any, **kwargs: Any) -> None:
        if stop:
            executor._runner.closing.stop("stopped, which dropped")
        raise RuntimeError("can't start new thread")

    stop = False
    work = Work(events)
    async with SerialExecutor() as executor:
        with monkeypatch.context() as patch:
            patch.setattr(anyio.to_thread, "run_sync", refuse)
            job = executor.submit_nowait(work.sync, 0)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                await job
        assert await executor.submit_nowait(work.sync, 1) == 1
        assert events == [1]
        with monkeypatch.context() as patch:
            patch.setattr(anyio.to_thread, "run_sync", refuse)
            stop = True
            jobs = [executor.submit_nowait(work.sync, n) for n in (2, 3)]
            for job in jobs:  # none of them has begun
                with pytest.raises(JobNoResult, match="it was dropped"):
                    await job
    assert events == [1]
    assert log == ["WARNING stopped, which dropped 2 tasks: Work.sync 3-…, Work.sync 4-… in the default lane"]


async def test_wait_for_what_has_ended() -> None:
    """Waiting for a job that has ended returns at once, in whatever way it ended."""
    async with SerialExecutor() as executor:
        job = executor.submit_nowait(str)
        await job
        await executor._runner.wait_for(job, True)
        with anyio.CancelScope() as scope:
            scope.cancel()
            assert (await job, await job.wait()) == ("", JobState.SUCCEEDED)


async def test_cancelled_inside_a_thread(log: Log) -> None:
    """A sync task that raises what nobody asked for fails of it, and is logged although somebody waits."""

    def task() -> None:
        raise GeneratorExit

    async with SerialExecutor() as executor:
        job = executor.submit_nowait(task)
        with pytest.raises(GeneratorExit):
            await job
    assert job.state is JobState.FAILED
    assert log == ["ERROR test_cancelled_inside_a_thread.<locals>.task failed"]


async def test_thread_outlives_the_drain(events: list[Any], log: Log) -> None:
    """A thread that runs on after `drain_timeout` is named; the task behind it does not run."""
    work = Work(events)
    async with SerialExecutor(drain_timeout=0) as executor:
        running = executor.submit_nowait(work.thread_gated, 0)
        waiting = executor.submit_nowait(work.sync, 1)
        while not events:
            await anyio.sleep(0)
    work.thread_gate(0).set()
    assert log == [
        "WARNING shutdown: dropped 1 task: Work.sync 2-… in the default lane",
        "WARNING the executor ends, and Work.thread_gated 1-… still runs in a thread, "
        "which cannot be stopped",
    ]
    assert await running == 0
    assert (waiting.state, events) == (JobState.DROPPED, ["start 0", "end 0"])


@pytest.mark.parametrize("name", ["asyncio", "trio"])
def test_loop_ends(name: str, events: list[Any], log: Log) -> None:
    """What a loop leaves when it ends is logged by name, and nothing new starts in it."""
    jobs: list[Job[Any]] = []

    async def task(n: int) -> None:
        events.append(n)
        await anyio.sleep(1000)

    async def main() -> None:
        executor = SerialExecutor()
        jobs[:] = [executor.submit_nowait(task, n) for n in range(3)]
        await wait_all_tasks_blocked()

    anyio.run(main, backend=name)
    assert events == [0]
    assert [job.state for job in jobs] == [JobState.CANCELLED, JobState.DROPPED, JobState.DROPPED]
    assert sorted(line.replace("test_loop_ends.<locals>.", "") for line in log) == [
        "WARNING task 1-… in the default lane was cancelled",
        "WARNING the event loop ended: dropped 2 tasks: task 2-…, task 3-… in the default lane",
    ]


@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize("name", ["asyncio", "trio"])
def test_loop_ends_while_a_thread_runs(name: str, kind: str, events: list[Any], log: Log) -> None:
    """A loop that ends waits for the running thread, and starts nothing after it."""
    work = Work(events)
    jobs: list[Job[Any]] = []

    async def main() -> None:
        executor = SerialExecutor()
        behind = work.quick if kind == "async" else work.sync
        jobs[:] = [executor.submit_nowait(work.thread_gated, 0), executor.submit_nowait(behind, 1)]
        while not events:
            await anyio.sleep(0)
        threading.Timer(0.1, work.thread_gate(0).set).start()  # after the loop has begun to end

    if name == "trio" and not hasattr(pytest.importorskip("trio").from_thread, "check_cancelled"):
        pytest.skip("trio < 0.23 does not tell its threads")
    anyio.run(main, backend=name)
    assert events == ["start 0", "end 0"]
    assert [job.state for job in jobs] == [JobState.SUCCEEDED, JobState.DROPPED]
    behind = "Work.quick" if kind == "async" else "Work.sync"
    assert log[0] == f"WARNING the event loop ended: dropped 1 task: {behind} 2-… in the default lane"
    runs_on = (
        "WARNING the executor ends, and Work.thread_gated 1-… still runs in a thread, which cannot be stopped"
    )
    assert log[1:] in ([], [runs_on])


async def test_one_timer(events: list[Any]) -> None:
    """A lane that runs gets no timer."""
    work = Work(events)
    async with SerialExecutor() as executor:
        executor.submit_nowait(work.gated, 0)
        await wait_all_tasks_blocked()
        lane = executor._runner.scheduler.lanes.default
        executor._runner.dispatch.look_again(lane, 1.0)
        assert lane.timer is None
        work.gate(0).set()


async def test_cancelled_before_its_first_step(events: list[Any], log: Log, anyio_backend_name: str) -> None:
    """A run that somebody cancels at once takes its job along: it failed if it had begun; the queue moves."""
    if anyio_backend_name == "trio":
        return  # nobody else can cancel a task of trio
    work = Work(events)
    async with SerialExecutor(drain_timeout=2) as executor:
        job = executor.submit_nowait(work.gated, 0)
        executor._runner.pump()
        handle = executor._runner.scheduler.lanes.default.handle
        assert handle is not None
        handle.cancel()
        assert await executor.submit_nowait(work.quick, 1) == 1
    begun = events == ["start 0", 1]
    assert begun or events == [1]
    assert job.state is (JobState.FAILED if begun else JobState.CANCELLED)
    assert log == [
        "ERROR Work.gated failed" if begun else "WARNING Work.gated 1-… in the default lane was cancelled"
    ]


@pytest.mark.virtual_clock
async def test_what_is_cancelled_cleans_up(events: list[Any], log: Log) -> None:
    """Closing waits for the tasks that it cancels, for a second; one that goes on is named."""

    async def task(seconds: float) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(seconds)
            events.append(seconds)

    executor = SerialExecutor(drain_timeout=2)
    for seconds in (0.5, 3):
        executor.lane(seconds).submit_nowait(task, seconds)
    begin = anyio.current_time()
    await executor.aclose()
    events.append("closed")
    assert anyio.current_time() - begin == pytest.approx(3)
    assert log[0] == f"WARNING {task.__qualname__} 1-… in lane 0.5 was cancelled"
    assert log[1:] == [
        "WARNING shutdown: cancelled, but did not end within 1 s: 1 task: "
        "test_what_is_cancelled_cleans_up.<locals>.task 2-… in lane 3"
    ]
    await anyio.sleep(5)
    assert events == [0.5, "closed", 3]


async def test_submitted_while_no_lane_can_start(events: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is submitted while the loop looks in vain for a lane to run is heard of in the next turn."""
    work = Work(events)
    late: list[Job[int]] = []
    start_next = Turns.start_next

    def submits(self: Turns) -> Lane | None:
        lane = start_next(self)
        if lane is None and not late:
            late.append(executor.submit_nowait(work.quick, 3))
        return lane

    monkeypatch.setattr(Turns, "start_next", submits)
    async with SerialExecutor(max_lanes_running=1) as executor:
        executor.lane("a").submit_nowait(work.gated, 1)
        executor.lane("b").submit_nowait(work.quick, 2)
        await wait_all_tasks_blocked()
        work.gate(1).set()
    assert late
    assert events[-2:] == [2, 3]
