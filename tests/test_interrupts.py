"""Signal handlers, finalizers and Ctrl-C that come in the middle of a move of the executor."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fifo_background import BackgroundTasks, ExecutorClosed, Job, JobState, SerialExecutor
from fifo_background._core.scheduler import CLOSED
from tests.apps import Work, app_of, check_idle
from tests.asgi import get


@contextmanager
def signal_in_the_next_move(executor: SerialExecutor, handler: Callable[[], Any]) -> Iterator[None]:
    """The next time that the executor asks for the time, as it does when it starts a task, a signal comes."""
    scheduler = executor._runner.scheduler
    clock = scheduler.clock
    came: list[bool] = []

    def handle(*args: Any) -> None:
        came.append(scheduler.moving)
        handler()

    def interrupted() -> float:
        if scheduler.moving and not came:
            signal.raise_signal(signal.SIGINT)
        return clock()

    before = signal.signal(signal.SIGINT, handle)
    scheduler.clock = interrupted
    try:
        yield
        assert came == [True]
    finally:
        scheduler.clock = clock
        signal.signal(signal.SIGINT, before)


async def test_signal_handler_in_a_move(events: list[Any]) -> None:
    """A signal handler in a move sees the last picture, may submit, and is told how to call the rest."""
    work = Work(events)
    pictures: list[Any] = []
    jobs: list[Job[Any]] = []

    def handler() -> None:
        pictures.append(executor.statistics())
        for operation in (lane.pause, lane.clear):
            name = operation.__name__
            with pytest.raises(
                RuntimeError, match=rf"interrupted the executor.*call_soon_threadsafe\(.*{name}"
            ):
                operation()
        jobs.append(executor.submit_nowait(work.quick, 2))

    async with SerialExecutor() as executor:
        lane = executor.lane("a")
        pictures.append(executor.statistics())
        with signal_in_the_next_move(executor, handler):
            first = executor.submit_nowait(work.quick, 1)
            await first
            assert await jobs[0] == 2
        assert pictures[1] is pictures[0], "the last complete picture"
        assert executor.statistics() is not pictures[0]
        lane.pause()
        lane.resume()
        check_idle(executor)
    assert events == [1, 2]


async def test_object_awaited_in_a_move(events: list[Any]) -> None:
    """An object that a finalizer or signal handler drives in the middle of a move runs in its position."""
    ended: list[bool] = []

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        jobs = [tasks.add_task(events.append, n) for n in range(2)]
        await respond()

        def handler() -> None:
            with pytest.raises(StopIteration):
                tasks().send(None)
            ended.extend(job.done() for job in jobs)

        with signal_in_the_next_move(app.executor, handler):
            other = app.executor.lane("other").submit_nowait(Work(events).quick, "other")
            await other
        for job in jobs:
            await job.wait()

    app = app_of(handle, wait=False)
    assert (await get(app)).error is None
    assert ended == [False, False]
    assert sorted(events, key=str) == [0, 1, "other"]
    assert events.index(0) < events.index(1)
    check_idle(app.executor)


@pytest.mark.parametrize("claimed", [False, True])
async def test_ctrl_c_as_the_loop_is_asked(claimed: bool, events: list[Any]) -> None:
    """A job whose `submit_nowait` a KeyboardInterrupt leaves never runs: nobody has its handle."""
    async with SerialExecutor(drain_timeout=2) as executor:
        backend: Any = executor._runner.backend
        jobs: list[Job[Any]] = []

        def work_soon(call: Any) -> bool:
            del backend.work_soon
            jobs.extend(executor._runner.scheduler.waiting)
            if claimed:  # somebody else decides its fate just before
                assert jobs[0].cancel()
            raise KeyboardInterrupt

        backend.work_soon = work_soon
        with pytest.raises(KeyboardInterrupt):
            executor.submit_nowait(events.append, 1)
        await executor.submit_nowait(events.append, 2)
    assert events == [2]
    assert [job.state for job in jobs] == [JobState.CANCELLED]
    assert executor.statistics().unfinished == 0


async def test_submitted_as_the_executor_closes(events: list[Any]) -> None:
    """A task that a thread submits in the moment in which the executor closes is refused, and never runs."""
    async with SerialExecutor() as executor:
        runner: Any = executor._runner
        post = runner.post

        def post_and_close(entry: Any) -> None:
            post(entry)
            runner.scheduler.status = CLOSED

        runner.post = post_and_close
        with pytest.raises(ExecutorClosed):
            executor.submit_nowait(events.append, 1)
        del runner.post
    assert events == []


async def test_cancelled_as_its_thread_comes_to_it(events: list[Any]) -> None:
    """A sync task that is cancelled in the moment in which its thread would start it never runs."""
    async with SerialExecutor() as executor:
        scheduler = executor._runner.scheduler
        clock = scheduler.clock
        cancelled: list[bool] = []

        def cancels() -> float:
            if scheduler.occupied and not cancelled:  # the thread looks at the time before it claims the job
                cancelled.append(jobs[1].cancel())
            return clock()

        jobs: list[Any] = [executor.submit_nowait(events.append, n) for n in range(3)]
        scheduler.clock = cancels
        await jobs[2]
        scheduler.clock = clock
        check_idle(executor)
    assert (cancelled, events) == ([True], [0, 2])
    assert jobs[1].state is JobState.CANCELLED


@pytest.mark.parametrize("later", [False, True])
async def test_ctrl_c_as_a_job_is_started(later: bool, events: list[Any]) -> None:
    """A KeyboardInterrupt while a lane is being started: its task waits again, and runs."""
    async with SerialExecutor(max_waiting=5) as executor:
        runner: Any = executor._runner
        executor.lane("other").pause()
        job = executor.submit_nowait(Work(events).quick, 1)
        runner.scheduler.drain()
        owner, name = (runner.scheduler.capacity, "discount") if later else (runner.scheduler, "clock")
        original = getattr(owner, name)

        def interrupted(*args: Any) -> float:
            setattr(owner, name, original)
            raise KeyboardInterrupt

        setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            runner.pump()
        assert job.state is not JobState.RUNNING
        assert await job == 1
        runner.scheduler.check()


@pytest.mark.parametrize("when", ["before", "ended", "left"])
async def test_ctrl_c_in_the_first_step(when: str, events: list[Any]) -> None:
    """A KeyboardInterrupt in the first step of the loop's task leaves the lane free for others."""
    async with SerialExecutor() as executor:
        runner: Any = executor._runner
        job = executor.submit_nowait(Work(events).quick, 1)
        start = runner.backend.start

        def interrupted(run: Any, context: Any) -> Any:
            runner.backend.start = start
            lane = runner.scheduler.default
            if when == "ended":
                lane.job.end(JobState.CANCELLED)
                lane.job.position = None
            elif when == "left":
                runner.scheduler.end(lane, lane.job, JobState.CANCELLED, None, False)
            raise KeyboardInterrupt

        runner.backend.start = interrupted
        with pytest.raises(KeyboardInterrupt):
            runner.pump()
        del runner.backend.start
        assert job.state is (JobState.FAILED if when == "before" else JobState.CANCELLED)
        assert await executor.submit_nowait(Work(events).quick, 2) == 2
        runner.scheduler.check()


async def test_no_task_can_wait_for_the_end(events: list[Any]) -> None:
    """Where the loop takes no more tasks just now, a paused lane stays as it is."""
    async with SerialExecutor(drain_timeout=1) as executor:
        runner: Any = executor._runner

        def refuses(run: Any, context: Any) -> Any:
            raise RuntimeError("closed")

        runner.backend.start = refuses
        executor.lane("a").pause()
        executor.lane("a").submit_nowait(events.append, 1)
        runner.pump()
        del runner.backend.start
        assert runner._parked is None
        executor.lane("a").resume()
        await executor.join()
    assert events == [1]
