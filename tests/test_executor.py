from __future__ import annotations

import contextvars
import threading
from functools import partial
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from anyio import wait_all_tasks_blocked

from fifo_background import ExecutorClosed, Job, JobDropped, JobState, SerialExecutor
from tests.apps import Work
from tests.conftest import Log

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


async def test_one_after_the_other(events: list[Any]) -> None:
    """One line per lane: a task starts only after the task before it has ended, sync and async alike."""
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
        assert [await job.wait() for job in (first, second, third)] == [0, 1, 2]
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
        assert list(executor.line.lanes) == [None]


async def test_submit_does_not_start(events: list[Any]) -> None:
    """`submit_nowait` returns before its task starts."""
    work = Work(events)
    async with SerialExecutor() as executor:
        job = executor.submit_nowait(work.quick, 0)
        assert (events, job.state) == ([], JobState.QUEUED)
        assert await (await executor.submit(work.quick, 1)).wait() == 1
    assert events == [0, 1]


async def test_submit_lets_others_run(events: list[Any], event_loop_name: str) -> None:
    """`submit` lets others run before it returns: a loop of submits starves nobody."""

    async def other() -> None:
        events.append("other")

    async with SerialExecutor() as executor, anyio.create_task_group() as group:
        executor.lane("a").pause()
        group.start_soon(other)
        if event_loop_name == "trio":  # which runs tasks in any order
            import trio.testing

            with trio.testing.assert_checkpoints():
                await executor.lane("a").submit(print)
        else:
            await executor.lane("a").submit(print)
            assert events == ["other"]
        executor.lane("a").clear()


async def test_failures_stay(events: list[Any], log: Log) -> None:
    """A failed task is logged once, with its error, and the next one runs."""

    def fail() -> None:
        raise ValueError("mine")

    async with SerialExecutor() as executor:
        jobs = [executor.submit_nowait(f) for f in (fail, partial(Work(events).sync, 1))]
        with pytest.raises(ValueError, match="mine") as caught:
            await jobs[0].wait()
        assert await jobs[1].wait() == 1
        assert jobs[0].exception() is caught.value
    assert log == ["ERROR test_failures_stay.<locals>.fail failed"]
    info = log.records[0].exc_info
    assert info is not None
    assert info[1] is caught.value


async def test_outcome_at_once(events: list[Any]) -> None:
    """The outcome of a finished sync task reaches its waiter while the next one runs."""
    work = Work(events)
    async with SerialExecutor() as executor:
        gated = executor.submit_nowait(work.thread_gated, 0)
        first = executor.submit_nowait(work.sync, 1)
        second = executor.submit_nowait(work.thread_gated, 2)
        work.thread_gate(0).set()
        assert await first.wait() == 1
        assert second.state is not JobState.SUCCEEDED
        work.thread_gate(2).set()
        assert [await gated.wait(), await second.wait()] == [0, 2]


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
            assert await job.wait() == 1
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

        assert await executor.submit_nowait(task).wait() == 0
        assert await later[0].wait() == 1
    assert events == [0, 1]


async def test_worker_thread_may_submit(events: list[Any]) -> None:
    """A worker thread of the loop may submit, the first caller of all included."""
    work = Work(events)
    executor = SerialExecutor()
    job = await anyio.to_thread.run_sync(executor.submit_nowait, work.sync, 7)
    again = await anyio.to_thread.run_sync(executor.submit_nowait, work.quick, 8)
    assert (await job.wait(), await again.wait()) == (7, 8)


async def test_other_thread_may_not() -> None:
    """Any other thread gets a clear error, and nothing is in line."""
    errors: list[BaseException] = []

    def call(executor: SerialExecutor) -> None:
        try:
            executor.submit_nowait(print)
        except RuntimeError as error:
            errors.append(error)

    async with SerialExecutor() as executor:
        thread = threading.Thread(target=call, args=(executor,))
        thread.start()
        await anyio.to_thread.run_sync(thread.join)
        assert repr(executor) == "<SerialExecutor open, 0 unfinished, 0 running>"
    assert "call_soon_threadsafe(executor.submit_nowait, func)" in str(errors[0])


def test_no_loop_at_all() -> None:
    """Outside an event loop `submit_nowait` says where it can be called."""
    with pytest.raises(RuntimeError, match="from the event loop and from anyio worker threads"):
        SerialExecutor().submit_nowait(print)


def test_other_loop() -> None:
    """An executor belongs to the loop that used it first."""
    from tests.loops import run

    executor = SerialExecutor()

    async def use() -> None:
        await executor.submit_nowait(str).wait()

    run("asyncio", use)
    with pytest.raises(RuntimeError, match="belongs to another event loop"):
        run("asyncio", use)


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
    """The end of the block runs what is in line, and refuses tasks that those tasks add."""
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
    with pytest.raises(JobDropped):
        await waiting[0].wait()
    with pytest.raises(JobDropped, match="was cancelled"):
        await running.wait()
    assert (events, running.state) == (["start 0"], JobState.CANCELLED)
    assert sorted(log) == [
        "WARNING Work.gated was cancelled",
        "WARNING the executor was closed and did not run 2 tasks: Work.quick x2",
    ]


async def test_cancelled_wait_leaves_the_job(events: list[Any]) -> None:
    """Who stops waiting for a job does not stop it."""
    work = Work(events)
    async with SerialExecutor() as executor:
        job = executor.submit_nowait(work.gated, 0)
        async with anyio.create_task_group() as group:
            group.start_soon(job.wait)
            await wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        assert (job.state, job.watchers) == (JobState.RUNNING, ())
        work.gate(0).set()
        assert await job.wait() == 0


async def test_base_exception_is_a_failure(log: Log) -> None:
    """A task that raises SystemExit fails like any other; the executor goes on."""

    async def leave() -> None:
        raise SystemExit(3)

    def leave_sync() -> None:
        raise SystemExit(4)

    async with SerialExecutor() as executor:
        for task in (leave, leave_sync):
            with pytest.raises(SystemExit):
                await executor.submit_nowait(task).wait()
        assert await executor.submit_nowait(str, 1).wait() == "1"
    assert len(log) == 2


async def test_burst(events: list[Any]) -> None:
    """A long line of tasks that never wait gives the loop its turn."""
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
        await jobs[-1].wait()
        done = True
    assert turns > 10
    assert events == list(range(1000))


async def test_no_thread(events: list[Any], log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """If no thread can be started, the task fails of it, and the line moves."""

    async def refuse(*args: Any, **kwargs: Any) -> None:
        if stop:
            executor.stop("stopped")
        raise RuntimeError("can't start new thread")

    stop = False
    work = Work(events)
    async with SerialExecutor() as executor:
        with monkeypatch.context() as patch:
            patch.setattr(anyio.to_thread, "run_sync", refuse)
            job = executor.submit_nowait(work.sync, 0)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                await job.wait()
        assert await executor.submit_nowait(work.sync, 1).wait() == 1
        assert events == [1]
        with monkeypatch.context() as patch:
            patch.setattr(anyio.to_thread, "run_sync", refuse)
            stop = True
            jobs = [executor.submit_nowait(work.sync, n) for n in (2, 3)]
            with pytest.raises(RuntimeError, match="can't start new thread"):
                await jobs[0].wait()
            with pytest.raises(JobDropped):
                await jobs[1].wait()
    assert log == [
        "ERROR Work.sync failed",
        "WARNING stopped and did not run 1 task: Work.sync",
        "WARNING stopped while Work.sync runs in its thread, which cannot be stopped",
        "ERROR Work.sync failed",
    ]


async def test_wait_for_what_has_ended() -> None:
    """Waiting for a job that ends meanwhile returns at once."""
    async with SerialExecutor() as executor:
        job = executor.submit_nowait(str)
        await job.wait()
        await executor.wait_for(job)


async def test_cancelled_inside_a_thread(log: Log) -> None:
    """A sync task whose call into the loop was cancelled ends as cancelled."""

    def task() -> None:
        raise GeneratorExit

    async with SerialExecutor() as executor:
        job = executor.submit_nowait(task)
        with pytest.raises(JobDropped, match="was cancelled"):
            await job.wait()
    assert len(log) == 1


async def test_thread_outlives_the_drain(events: list[Any], log: Log) -> None:
    """A thread that runs on after `drain_timeout` is named; what is behind it does not run."""
    work = Work(events)
    async with SerialExecutor(drain_timeout=0) as executor:
        running = executor.submit_nowait(work.thread_gated, 0)
        waiting = executor.submit_nowait(work.sync, 1)
        while not events:
            await anyio.sleep(0)
    assert log == [
        "WARNING the executor was closed and did not run 1 task: Work.sync",
        "WARNING the executor was closed while Work.thread_gated runs in its thread, which cannot be stopped",
    ]
    work.thread_gate(0).set()
    assert await running.wait() == 0
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
    assert [line.split(".")[-1] for line in log] == ["task was cancelled", "task x2"]
    assert log[1].startswith("WARNING the event loop ended and did not run 2 tasks")


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
    assert len(log) == 1
    assert log[0].startswith("WARNING the event loop ended and did not run 1 task: Work.")


async def test_one_timer(events: list[Any]) -> None:
    """A lane that runs, or has a timer already, gets no timer."""
    work = Work(events)
    async with SerialExecutor() as executor:
        executor.submit_nowait(work.gated, 0)
        await wait_all_tasks_blocked()
        lane = executor.line.lanes[None]
        executor._look_again(lane, 1.0)
        assert lane.timer is None
        work.gate(0).set()


async def test_cancelled_before_its_first_step(events: list[Any], log: Log) -> None:
    """A runner whose task is cancelled natively at once takes its job along; the line moves."""
    work = Work(events)
    async with SerialExecutor(drain_timeout=2) as executor:
        job = executor.submit_nowait(work.gated, 0)
        executor.settle()
        runner = executor.line.lanes[None].runner
        assert runner is not None
        assert runner.handle is not None
        runner.handle.cancel()
        assert await executor.submit_nowait(work.quick, 1).wait() == 1
    assert job.state is JobState.CANCELLED
    assert log == ["WARNING Work.gated was cancelled"]


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
    assert log[0] == f"WARNING {task.__qualname__} was cancelled"
    assert log[1:] == [
        "WARNING the executor was closed and left behind, cancelled but not over, 1 task: "
        "test_what_is_cancelled_cleans_up.<locals>.task"
    ]
    await anyio.sleep(5)
    assert events == [0.5, "closed", 3]
