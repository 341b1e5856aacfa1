"""Signal handlers, finalizers and Ctrl-C that come in the middle of a move of the executor."""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import selectors
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio import wait_all_tasks_blocked

from fifo_background import BackgroundTasks, ExecutorClosed, Job, JobState, SerialExecutor
from fifo_background._core.chain import Chain
from fifo_background._core.invariants import check
from fifo_background._core.lane import Lane
from fifo_background._core.state import CLOSED
from fifo_background._run import runner as runner_module
from tests.support.apps import Work, app_of, check_idle
from tests.support.asgi import get
from tests.support.loops import LOOPS


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
            in_thread = threading.current_thread() is not threading.main_thread()
            if in_thread and not cancelled:  # the thread looks at the time before it claims the job
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
        check(runner.scheduler)


@pytest.mark.parametrize("when", ["before", "ended", "left"])
async def test_ctrl_c_in_the_first_step(when: str, events: list[Any]) -> None:
    """A KeyboardInterrupt in the first step of the loop's task leaves the lane free for others."""
    async with SerialExecutor() as executor:
        runner: Any = executor._runner
        job = executor.submit_nowait(Work(events).quick, 1)
        start = runner.backend.start

        def interrupted(run: Any, context: Any, **how: Any) -> Any:
            runner.backend.start = start
            lane = runner.scheduler.lanes.default
            if when == "ended":
                lane.job._end(JobState.CANCELLED)
                lane.job._position = None
            elif when == "left":
                runner.scheduler.end(lane, lane.job, JobState.CANCELLED, None, None)
            raise KeyboardInterrupt

        runner.backend.start = interrupted
        with pytest.raises(KeyboardInterrupt):
            runner.pump()
        del runner.backend.start
        assert job.state is (JobState.FAILED if when == "before" else JobState.CANCELLED)
        assert await executor.submit_nowait(Work(events).quick, 2) == 2
        check(runner.scheduler)


async def test_no_task_can_wait_for_the_end(events: list[Any]) -> None:
    """Where the loop takes no more tasks just now, a paused lane stays as it is."""
    async with SerialExecutor(drain_timeout=1) as executor:
        runner: Any = executor._runner

        def refuses(run: Any, context: Any, **how: Any) -> Any:
            raise RuntimeError("closed")

        runner.backend.start = refuses
        executor.lane("a").pause()
        executor.lane("a").submit_nowait(events.append, 1)
        runner.pump()
        del runner.backend.start
        assert runner.parking.waiter is None
        executor.lane("a").resume()
        await executor.join()
    assert events == [1]


# -- a signal while the loop sleeps --------------------------------------------------------------------------


class _Interrupted(selectors.DefaultSelector):
    """A signal comes when the loop goes to sleep, once; something must wake it then."""

    comes = False

    def select(self, timeout: float | None = None) -> Any:
        if timeout == 0 or not self.comes:
            return super().select(timeout)
        self.comes = False
        signal.raise_signal(signal.SIGINT)
        events = super().select(0)
        assert events, "the loop sleeps on"
        return events


@pytest.mark.parametrize("what", ["submit", "cancel"])
def test_signal_as_the_loop_goes_to_sleep(what: str, events: list[Any]) -> None:
    """What a signal handler asks of the executor wakes a loop that sleeps: it is done at once."""
    work = Work(events)
    selector = _Interrupted()
    loop = asyncio.SelectorEventLoop(selector)

    async def main() -> None:
        async with SerialExecutor() as executor:
            running = executor.submit_nowait(work.gated, 0)
            await wait_all_tasks_blocked()

            def handle(*args: Any) -> None:
                if what == "submit":
                    jobs.append(executor.lane("other").submit_nowait(done.set))
                else:
                    assert running.cancel()

            jobs, done = [running], work.gate(1)
            before = signal.signal(signal.SIGINT, handle)
            try:
                selector.comes = True
                if what == "submit":
                    await done.wait()
                else:
                    await running.wait()
            finally:
                signal.signal(signal.SIGINT, before)
            work.gate(0).set()
            states = [await job.wait() for job in jobs]
            assert states == ([JobState.SUCCEEDED] * 2 if what == "submit" else [JobState.CANCELLED])

    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has no such signals")
async def test_signal_while_the_loop_sleeps(events: list[Any]) -> None:
    """A task that a signal handler submits runs, although nothing else wakes the loop."""
    ran = threading.Event()

    def send_and_wait() -> bool:
        sent = 0
        while not ran.is_set() and sent < 200:
            # Python may not hear of one that comes just before the loop's system call
            os.kill(os.getpid(), signal.SIGUSR1)
            sent += 1
            ran.wait(0.1)
        return ran.is_set()

    async with SerialExecutor() as executor:
        await executor.submit_nowait(Work(events).quick, 1)
        before = signal.signal(signal.SIGUSR1, lambda *_: executor.submit_nowait(ran.set))
        try:
            # the end of the thread, which waits for the task, is all that the loop waits for
            assert await anyio.to_thread.run_sync(send_and_wait)
        finally:
            signal.signal(signal.SIGUSR1, before)


# -- Ctrl-C at one place -------------------------------------------------------------------------------------


class Once:
    """Raises KeyboardInterrupt when it is called for the first time, `after` calling what it stands for."""

    def __init__(self, function: Callable[..., Any], after: bool = False) -> None:
        self.function = function
        self.after = after
        self.came = False

    def __call__(self, *args: Any) -> Any:
        came, self.came = self.came, True
        if not came and not self.after:
            raise KeyboardInterrupt
        result = self.function(*args)
        if not came:
            raise KeyboardInterrupt
        return result


class Turns(deque[Any]):
    """A deque one of whose methods is interrupted, once, when it has done its work."""

    def __init__(self, turns: Any, name: str) -> None:
        super().__init__(turns)
        setattr(self, name, Once(getattr(self, name), True))


def submit_both(executor: SerialExecutor, kind: str, events: list[Any]) -> list[Job[Any]]:
    work = Work(events)
    return [
        executor.lane("a").submit_nowait(work.sync if kind == "sync" else work.quick, 1),
        executor.lane("b").submit_nowait(work.quick, 2),
    ]


async def check_answers(executor: SerialExecutor, jobs: list[Job[Any]], events: list[Any]) -> None:
    """What was accepted runs, in its lane and once, and so does what comes after it."""
    scheduler = executor._runner.scheduler
    with anyio.fail_after(5):
        assert [await job for job in jobs] == [1, 2]
        assert [await executor.lane(key).submit_nowait(Work(events).sync, 3) for key in "ab"] == [3, 3]
        await executor.join()
        check(scheduler)
        await executor.aclose()
    assert sorted(events) == [1, 2, 3, 3]
    assert (scheduler.slots.free, scheduler.turns.occupied, scheduler.turns.due) == (1, set(), deque())
    check_idle(executor)


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        *itertools.product(["_count_ready", "append", "popleft", "_run_lane"], ["async", "sync"]),
        ("fill", "sync"),  # the jobs for a thread
    ],
)
async def test_ctrl_c_while_a_lane_gets_its_turn(place: str, kind: str, events: list[Any]) -> None:
    """A KeyboardInterrupt as a position is taken, or a lane is about to run, leaves no lane behind."""
    executor = SerialExecutor(max_lanes_running=1, drain_timeout=1)
    await executor.submit_nowait(Work([]).quick, 0)
    runner: Any = executor._runner
    scheduler = runner.scheduler
    jobs = submit_both(executor, kind, events)
    if place not in ("append", "_count_ready"):
        scheduler.drain()
    if place in ("popleft", "append"):
        scheduler.turns.due = Turns(scheduler.turns.due, place)
    elif place == "_count_ready":
        scheduler._count_ready = Once(scheduler._count_ready)
    else:
        owner = runner.thread_runs if place == "fill" else runner
        setattr(owner, place, Once(getattr(owner, place)))
    with pytest.raises(KeyboardInterrupt):
        runner.pump()
    await check_answers(executor, jobs, events)


async def test_ctrl_c_before_a_thread_has_its_jobs(events: list[Any]) -> None:
    """Of a trip to a thread that a KeyboardInterrupt has prevented nothing is left when the lane goes on."""
    executor = SerialExecutor(drain_timeout=1)
    await executor.submit_nowait(Work([]).quick, 0)
    work = Work(events)
    runner: Any = executor._runner
    job = executor.submit_nowait(work.sync, 0)
    runner.thread_runs.fill = Once(runner.thread_runs.fill)
    with pytest.raises(KeyboardInterrupt):
        runner.pump()
    assert job.cancel()
    running = executor.submit_nowait(work.gated, 1)
    await wait_all_tasks_blocked()
    assert executor.statistics().running == 1
    work.gate(1).set()
    await executor.aclose()
    assert (running.state, events) == (JobState.SUCCEEDED, ["start 1", "end 1"])


async def test_ctrl_c_as_a_position_is_linked(events: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A KeyboardInterrupt in the middle of taking a position: it stands in its lane once, and runs."""
    executor = SerialExecutor(max_lanes_running=1, drain_timeout=1)
    await executor.submit_nowait(Work([]).quick, 0)
    jobs = submit_both(executor, "async", events)
    append = Once(Chain.append, True)
    monkeypatch.setattr(Lane, "append", lambda lane, position: append(lane, position))
    with pytest.raises(KeyboardInterrupt):
        executor._runner.pump()
    executor._runner.scheduler.drain()
    first = executor._runner.scheduler.lanes.by_key["a"].first
    assert first is not None
    assert (first._next, first.number) == (None, 2), "the number of the first time is left out"
    await check_answers(executor, jobs, events)


@pytest.mark.parametrize("place", ["backend_of", "clock"])
async def test_ctrl_c_at_the_first_use(
    place: str, events: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A KeyboardInterrupt as an executor comes to its event loop: the next use brings it there."""
    executor = SerialExecutor(max_lanes_running=1, drain_timeout=1)

    class Backend:
        @property
        def clock(self) -> Any:
            raise KeyboardInterrupt

    def interrupted(loop: Any) -> Any:
        if place == "clock":
            return Backend()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner_module, "backend_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            executor.submit_nowait(print)
    await check_answers(executor, submit_both(executor, "async", events), events)


@pytest.mark.parametrize("name", [name for name in LOOPS if name != "trio"])
@pytest.mark.parametrize("place", ["_pump_in_turn", "pump"])
def test_ctrl_c_as_the_loop_pumps(place: str, name: str, events: list[Any]) -> None:
    """A KeyboardInterrupt in the call that the loop makes in its turn ends the loop's run, and no more."""
    loop = asyncio.new_event_loop() if name == "asyncio" else pytest.importorskip("uvloop").new_event_loop()

    async def main() -> None:
        executor = SerialExecutor(max_lanes_running=1, drain_timeout=1)
        await executor.submit_nowait(Work([]).quick, 0)
        setattr(executor._runner, place, Once(getattr(executor._runner, place)))
        await check_answers(executor, submit_both(executor, "async", events), events)

    try:
        task = loop.create_task(main())
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(task)
        loop.run_until_complete(task)
    finally:
        loop.close()


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_ctrl_c_as_a_lane_is_left(kind: str, events: list[Any]) -> None:
    """A KeyboardInterrupt as a lane gives its slot back: the slot is not lost."""
    executor = SerialExecutor(max_lanes_running=1, drain_timeout=1)
    await executor.submit_nowait(Work([]).quick, 0)
    scheduler: Any = executor._runner.scheduler
    work = Work(events)
    executor.lane("a").submit_nowait(work.sync if kind == "sync" else work.quick, 1)
    scheduler.drain()
    lane = scheduler.turns.start_next()
    give_back = scheduler.slots.give_back
    scheduler.slots.give_back = Once(give_back)
    end = functools.partial(scheduler.end, lane, lane.job, JobState.SUCCEEDED, 1, False)
    leave = functools.partial(scheduler.turns.leave, lane)
    with pytest.raises(KeyboardInterrupt):
        (leave if kind == "sync" else end)()
    scheduler.slots.give_back = give_back
    assert scheduler.slots.free == 1
    executor.lane("a").clear()
    await executor.aclose()


async def test_ctrl_c_as_a_job_is_accepted(events: list[Any]) -> None:
    """A KeyboardInterrupt after a job was accepted: nobody knows of it, and it never runs."""

    class Accepts(set[Any]):
        def add(self, job: Any) -> None:
            super().add(job)
            raise KeyboardInterrupt

    async def handle(path: str, respond: Any) -> None:
        scheduler = executor._runner.scheduler
        for add in (BackgroundTasks().add_task, executor.submit_nowait):
            waiting = scheduler.waiting
            accepts = scheduler.waiting = Accepts(waiting)
            with pytest.raises(KeyboardInterrupt):
                add(events.append, "never")
            assert not accepts
            scheduler.waiting = waiting
        await respond()

    app = app_of(handle)
    executor = app.executor
    assert (await get(app)).error is None
    await executor.join()
    await executor.submit_nowait(events.append, 1)
    assert events == [1]
    check_idle(executor)
