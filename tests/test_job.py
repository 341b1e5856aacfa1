"""The handle to one task: its states, its outcome, waiting for it, and the options of single tasks."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import threading
import weakref
from functools import partial
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from starlette.background import BackgroundTask

from fifo_background import (
    BackgroundTasks,
    BlockedBy,
    Job,
    JobNoResult,
    JobNotEnded,
    JobState,
    SerialExecutor,
)
from fifo_background._core.failure import Failure
from fifo_background._core.naming import name_of
from fifo_background._core.state import TRANSITIONS, check_transition
from fifo_background._run.current import current
from fifo_background._settings import NOT_GIVEN, Options
from tests.support.apps import Work, app_of, user
from tests.support.asgi import Client, get
from tests.support.log import Log
from tests.support.loops import on_asyncio


def make_job(state: JobState = JobState.PENDING, outcome: object = None) -> Job[object]:
    job: Job[object] = Job(BackgroundTask(print), None, Options(), set())
    if state.ended:
        job._end(state, outcome)
    else:
        job._queued = state is not JobState.PENDING
        job._own_state = JobState.RUNNING if state is JobState.RUNNING else None
    assert job.state is state
    return job


@pytest.mark.parametrize("before", JobState)
@pytest.mark.parametrize("after", JobState)
def test_table(before: JobState, after: JobState) -> None:
    """A job goes where the table says; the check that tests call after each move refuses any other."""
    if after in TRANSITIONS[before]:
        check_transition(before, after)
    else:
        with pytest.raises(RuntimeError, match=f"from {before.value} to {after.value}"):
            check_transition(before, after)


def test_one_claim() -> None:
    """Of all who want to decide about a waiting job one does: `claim` is True once."""
    job = make_job()
    job._claims.add(job)
    assert [job._claim(), job._claim(), job.cancel()] == [True, False, False]


def test_ended_states() -> None:
    """A job that has ended stays as it is."""
    assert {state for state in JobState if state.ended} == {
        JobState.SUCCEEDED,
        JobState.FAILED,
        JobState.SKIPPED,
        JobState.CANCELLED,
        JobState.SUPERSEDED,
        JobState.DROPPED,
    }


def test_outcomes() -> None:
    """A job tells its result, its error, or that it has none."""
    error = ValueError("x")
    assert make_job(JobState.SUCCEEDED, 3).result() == 3
    assert make_job(JobState.SUCCEEDED, 3).exception() is None
    with pytest.raises(ValueError, match="x"):
        make_job(JobState.FAILED, Failure(error, 1)).result()
    assert make_job(JobState.FAILED, Failure(error, 1)).exception() is error
    for state in (JobState.SKIPPED, JobState.CANCELLED, JobState.SUPERSEDED, JobState.DROPPED):
        for ask in (make_job(state).result, make_job(state).exception):
            with pytest.raises(JobNoResult, match=f"print has no result: it was {state.value}"):
                ask()
    for state in (JobState.PENDING, JobState.QUEUED, JobState.RUNNING):
        for ask in (make_job(state).result, make_job(state).exception):
            with pytest.raises(JobNotEnded, match=f"print has not ended: it is {state.value}. Await it"):
                ask()


def test_names() -> None:
    """A task is called by its function's qualified name, or its class's."""

    class Callable:
        def __call__(self) -> None: ...

    assert name_of(test_names) == "test_names"
    assert name_of(partial(partial(test_names))) == "test_names"
    assert name_of(Callable()) == "test_names.<locals>.Callable"
    assert repr(make_job()) == "<Job print pending>"


async def test_result_keeps_nobody() -> None:
    """However often the result of a failed task is asked for, its error keeps none of those who asked."""

    class Big: ...

    kept: list[Any] = []

    async def fails() -> None:
        raise ValueError

    async def ask() -> None:
        big = Big()
        kept.append(weakref.ref(big))
        with contextlib.suppress(ValueError):
            job.result()
        with contextlib.suppress(ValueError):
            await job

    async with SerialExecutor() as executor:
        job = executor.submit_nowait(fails)
        await executor.join()
        for _ in range(10):
            await ask()
        with contextlib.suppress(ValueError):
            job.result()
    gc.collect()
    assert [ref() for ref in kept[:-1]] == [None] * 9


async def test_handle_keeps_nothing() -> None:
    """A handle that is kept after the end keeps neither its request nor other tasks alive."""
    kept: list[Job[Any]] = []
    refs: list[Any] = []

    async def handle(path: str, respond: Any) -> None:
        request = current.get()
        assert request is not None
        refs.append(weakref.ref(request))
        tasks = BackgroundTasks()
        kept.append(tasks.add_task(anyio.sleep, 0))
        refs.append(weakref.ref(tasks.add_task(anyio.sleep, 0)))
        await respond()
        await tasks()

    app = app_of(handle)
    await get(app)
    await wait_all_tasks_blocked()
    gc.collect()
    assert [ref() for ref in refs] == [None, None]
    assert kept[0].state is JobState.SUCCEEDED


# -- the handle ------------------------------------------------------------------------------------------


async def test_await(log: Log) -> None:
    """`await job` returns the function's result, or raises its error, however often and by however many."""
    error = ValueError("mine")

    def fail() -> None:
        raise error

    async def ask() -> None:
        got.append(await good)

    got: list[Any] = []
    async with SerialExecutor() as executor:
        good, bad = executor.submit_nowait(str, 7), executor.submit_nowait(fail)
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(ask)
            with pytest.raises(ValueError, match="mine") as caught:
                await bad
        assert caught.value is error
        assert (got, await good) == (["7"] * 3, "7")
        with pytest.raises(ValueError, match="mine"):
            await bad
    assert log == []


async def test_await_of_a_job_without_result(events: list[Any]) -> None:
    """`await job` raises `JobNoResult`, which says how the job ended, if there is no result."""
    work = Work(events)
    async with SerialExecutor() as executor:
        lane = executor.lane("a", keep="latest")
        lane.pause()
        superseded, cancelled = lane.submit_nowait(work.quick, 1), lane.submit_nowait(work.quick, 2)
        skipped = lane.submit_nowait(work.sync, 3)
        await wait_all_tasks_blocked()
        async with anyio.create_task_group() as group:  # who waits already, and who comes later
            for job in (cancelled, skipped):
                group.start_soon(no_result, job)
            await wait_all_tasks_blocked()
            assert cancelled.cancel()
            assert lane.skip_head() is skipped
        for job in (superseded, cancelled, skipped):
            await no_result(job)
        lane.resume()
        dropped = executor.lane("b").submit_nowait(work.sync, 4)
        executor.lane("b").pause()
    await no_result(dropped)
    assert [job.state for job in (superseded, cancelled, skipped, dropped)] == [
        JobState.SUPERSEDED,
        JobState.CANCELLED,
        JobState.SKIPPED,
        JobState.DROPPED,
    ]
    assert events == []


async def no_result(job: Job[Any]) -> None:
    with pytest.raises(JobNoResult) as caught:
        await job
    assert str(caught.value).endswith(f"has no result: it was {job.state.value}")
    with pytest.raises(JobNoResult):
        job.exception()
    assert await job.wait() is job.state


async def test_wait_returns_the_state(events: list[Any], log: Log) -> None:
    """`job.wait()` only waits, and returns the state; it raises no error of the job."""
    work = Work(events)

    async def fail() -> None:
        raise ValueError

    async def wait(job: Job[Any]) -> None:
        events.append(await job.wait())

    async with SerialExecutor() as executor:
        gated = executor.submit_nowait(work.gated, 0)
        jobs: list[Job[Any]] = [executor.submit_nowait(fail), executor.submit_nowait(work.quick, 1)]
        async with anyio.create_task_group() as group:
            for job in (gated, *jobs):
                group.start_soon(wait, job)
            await wait_all_tasks_blocked()
            assert events == ["start 0"]
            assert jobs[1].cancel()
            await wait_all_tasks_blocked()
            assert events == ["start 0", JobState.CANCELLED]
            work.gate(0).set()
    assert events[2:] == ["end 0", JobState.SUCCEEDED, JobState.FAILED]
    assert [await job.wait() for job in (gated, *jobs)] == [events[3], events[4], events[1]]
    assert log == ["ERROR test_wait_returns_the_state.<locals>.fail failed"]


async def test_done(events: list[Any]) -> None:
    """`job.done()` is False until the job has ended, in whatever way; a cancelled one has ended at once."""
    work = Work(events)

    async def fail() -> None:
        raise ValueError

    async with SerialExecutor() as executor:
        running = executor.submit_nowait(work.gated, 0)
        failed, cancelled = executor.submit_nowait(fail), executor.submit_nowait(work.quick, 1)
        assert (running.state, running.done()) == (JobState.QUEUED, False)
        await wait_all_tasks_blocked()
        assert (running.state, running.done()) == (JobState.RUNNING, False)
        assert (failed.done(), cancelled.done()) == (False, False)
        assert cancelled.cancel()
        assert (cancelled.state, cancelled.done()) == (JobState.CANCELLED, True)
        assert not cancelled.cancel()
        work.gate(0).set()
        await failed.wait()
        assert [job.done() for job in (running, failed, cancelled)] == [True] * 3


async def test_cancel_of_a_running_job(events: list[Any], log: Log) -> None:
    """Of a running async task `cancel()` only asks: it may still succeed; of one in a thread it is False."""
    work = Work(events)

    async def stays() -> str:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            if not swallows:
                raise
        return "stayed"

    for swallows in [False, *[True] * on_asyncio()]:  # a scope of trio cancels what is awaited after it, too
        async with SerialExecutor() as executor:
            job = executor.submit_nowait(stays)
            await wait_all_tasks_blocked()
            assert job.cancel()
            assert job.state is JobState.RUNNING
            assert await job.wait() is (JobState.SUCCEEDED if swallows else JobState.CANCELLED)
            if swallows:
                assert await job == "stayed"
            in_thread = executor.submit_nowait(work.thread_gated, 0)
            while "start 0" not in events:
                await anyio.sleep(0)
            assert not in_thread.cancel()
            work.thread_gate(0).set()
            assert await in_thread == 0
        del events[:]
    assert log == [
        "WARNING test_cancel_of_a_running_job.<locals>.stays 1-… in the default lane was cancelled"
    ]


# -- callbacks -------------------------------------------------------------------------------------------


async def some_turns() -> None:
    """What the loop has yet to call is no task: `wait_all_tasks_blocked` does not see it."""
    for _ in range(5):
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("sync", [False, True])
async def test_callback(sync: bool, events: list[Any]) -> None:
    """Done callbacks are called with the job, on the loop, after its end, in the order they were added."""
    work = Work(events)

    def note(name: str, ended: Job[int]) -> None:
        events.append((name, ended is job, job.done(), job.result(), threading.get_ident() == loop_thread))

    loop_thread = threading.get_ident()
    async with SerialExecutor() as executor:
        job = executor.submit_nowait(work.sync if sync else work.quick, 7)
        job.add_done_callback(partial(note, "first"))
        job.add_done_callback(partial(note, "second"))
        assert events == []
        assert await job == 7
        await wait_all_tasks_blocked()
        await some_turns()
    assert events == [7, ("first", True, True, 7, True), ("second", True, True, 7, True)]


async def test_callback_of_every_end(events: list[Any], log: Log) -> None:
    """A done callback is called however the job ends: failed, cancelled, skipped, dropped."""

    def fail() -> None:
        raise ValueError

    def note(job: Job[Any]) -> None:
        events.append(job.state)

    async with SerialExecutor() as executor:
        lane = executor.lane("a")
        lane.pause()
        jobs = [lane.submit_nowait(print) for _ in range(2)]
        jobs += [executor.submit_nowait(fail), executor.lane("b").submit_nowait(print)]
        for job in jobs:
            job.add_done_callback(note)
        executor.lane("b").pause()
        jobs[1].cancel()
        assert events == []
        await wait_all_tasks_blocked()
        await some_turns()
        lane.skip_head()
        assert await jobs[2].wait() is JobState.FAILED
    await wait_all_tasks_blocked()
    await some_turns()
    assert sorted(state.value for state in events) == ["cancelled", "dropped", "failed", "skipped"]
    assert log[0] == "ERROR test_callback_of_every_end.<locals>.fail failed"  # a callback reports nothing


async def test_callback_of_an_ended_job(events: list[Any]) -> None:
    """A callback that is added after the end is called in the loop's next turn, not at once."""
    async with SerialExecutor() as executor:
        jobs = [executor.submit_nowait(str, 1), executor.submit_nowait(str, 2)]
        await executor.join()
        jobs[1].cancel()
        for job in jobs:
            job.add_done_callback(lambda job: events.append(job.result()))
        assert events == []
        await some_turns()
        assert events == ["1", "2"]


async def test_callback_from_a_thread(events: list[Any]) -> None:
    """A callback may be added from any thread, which waits for nothing; it runs on the loop."""
    loop_thread = threading.get_ident()

    def note(job: Job[Any]) -> None:
        events.append((job.state, threading.get_ident() == loop_thread))

    def add() -> None:
        for job in jobs:
            job.add_done_callback(note)
        added.append(jobs[1].cancel())

    added: list[bool] = []
    async with SerialExecutor() as executor:
        jobs = [executor.submit_nowait(str, 0)]
        await jobs[0]
        jobs += [executor.submit_nowait(str, n) for n in (1, 2)]
        thread = threading.Thread(target=add)
        thread.start()
        thread.join(10)  # in the loop, which so can do nothing
        assert (added, events) == ([True], [])
        await executor.join()
        await wait_all_tasks_blocked()
        await some_turns()
    ends = [JobState.SUCCEEDED, JobState.CANCELLED, JobState.SUCCEEDED]
    assert sorted(events, key=str) == sorted([(state, True) for state in ends], key=str)


async def test_callback_that_raises(events: list[Any], log: Log) -> None:
    """What a callback raises is logged with its traceback; the other callbacks and tasks run."""
    error = ValueError("callback")

    def broken(job: Job[Any]) -> None:
        raise error

    async with SerialExecutor() as executor:
        job = executor.submit_nowait(str, 1)
        job.add_done_callback(broken)
        job.add_done_callback(lambda job: events.append(job.result()))
        assert await job == "1"
        assert await executor.submit_nowait(str, 2) == "2"
        await wait_all_tasks_blocked()
        await some_turns()
    assert events == ["1"]
    assert log == [f"ERROR a done callback of str failed: {broken!r}"]
    info = log.records[0].exc_info
    assert info is not None
    assert info[1] is error
    assert info[2] is not None


async def test_callback_may_submit(events: list[Any]) -> None:
    """A callback may use the executor: submit, cancel, add another callback."""
    work = Work(events)

    def more(ended: Job[Any]) -> None:
        later.append(executor.submit_nowait(work.quick, 2))
        events.append(last.cancel())
        ended.add_done_callback(lambda job: events.append("again"))

    later: list[Job[int]] = []
    async with SerialExecutor() as executor:
        first = executor.submit_nowait(work.quick, 1)
        first.add_done_callback(more)
        gated = executor.submit_nowait(work.gated, 0)
        last = executor.submit_nowait(work.quick, 3)
        await wait_all_tasks_blocked()
        await some_turns()
        assert events[0] == 1
        work.gate(0).set()
        assert (await gated, await later[0]) == (0, 2)
    assert sorted(map(str, events[1:])) == sorted(["start 0", "True", "again", "end 0", "2"])
    assert last.state is JobState.CANCELLED


async def test_context_of_a_callback(events: list[Any]) -> None:
    """A callback runs in a copy of the context in which it was added."""

    def note(job: Job[Any]) -> None:
        events.append(user.get())
        user.set("by a callback")

    async with SerialExecutor() as executor:
        job = executor.submit_nowait(anyio.sleep, 0)
        for name in ("alice", "bob"):
            user.set(name)
            job.add_done_callback(note)
        user.set("carol")
        await job
        await wait_all_tasks_blocked()
        await some_turns()
    assert (events, user.get()) == (["alice", "bob"], "carol")


async def test_callback_is_kept_no_longer() -> None:
    """A handle that is kept after the end keeps neither the arguments nor the callbacks alive."""

    class Big:
        def note(self, job: Job[Any]) -> None:
            notes.append(job.state)

    def work(big: Big) -> None: ...

    notes: list[JobState] = []
    refs: list[weakref.ref[Any]] = []

    def submit(function: Any) -> Job[Any]:
        argument, callback = Big(), Big()
        refs.extend((weakref.ref(argument), weakref.ref(callback)))
        job = executor.submit_nowait(function, argument)
        job.add_done_callback(callback.note)
        return job

    async with SerialExecutor() as executor:
        kept = [submit(work), submit(partial(work))]
        kept[1].cancel()
        await executor.join()
        await wait_all_tasks_blocked()
        await some_turns()
        kept[0].add_done_callback(Big().note)
        await some_turns()
    gc.collect()
    assert sorted(state.value for state in notes) == ["cancelled", "succeeded", "succeeded"]
    assert [ref() for ref in refs] == [None] * 4
    assert [job.name for job in kept] == ["test_callback_is_kept_no_longer.<locals>.work"] * 2


async def test_no_queue_yet(events: list[Any]) -> None:
    """A job of an object that was made outside of any request can be cancelled, but not be waited for."""
    tasks = BackgroundTasks()
    first, second = tasks.add_task(events.append, 1), tasks.add_task(events.append, 2)
    assert (first.state, first.done()) == (JobState.PENDING, False)
    for wait in (first.wait, first._result_when_ended):
        with pytest.raises(RuntimeError, match=r"is in no queue yet.*Write `await tasks\(\)` first"):
            await wait()
    with pytest.raises(RuntimeError, match="is in no queue yet"):
        first.add_done_callback(print)
    assert first.cancel()
    assert await first.wait() is JobState.CANCELLED
    await tasks()
    assert (events, first.state, second.state) == ([2], JobState.CANCELLED, JobState.SUCCEEDED)
    assert await second is None


# -- copies ----------------------------------------------------------------------------------------------


async def test_copies() -> None:
    """A copy of a handle is the same job; pickling one is refused, and says why."""
    async with SerialExecutor() as executor:
        job = executor.submit_nowait(str, 7)
        assert copy.copy(job) is job
        assert copy.deepcopy(job) is job
        assert copy.deepcopy({"jobs": [job]})["jobs"][0] is job
        with pytest.raises(TypeError, match=r"<Job str queued> cannot be pickled: .*Send its state"):
            pickle.dumps(job)
        assert await copy.copy(job) == "7"


async def test_copies_of_objects(events: list[Any]) -> None:
    """A copy of an object, made before or after its tasks have run, is one of its own, and runs its list."""

    def note(n: int) -> None:
        events.append(n)

    tasks = BackgroundTasks()
    job = tasks.add_task(note, 1)
    copies = [copy.copy(tasks), copy.deepcopy(tasks)]
    assert all(task._fifo_job is job for task in tasks.tasks)  # type: ignore[attr-defined]
    await tasks()
    assert (events, job.state) == ([1], JobState.SUCCEEDED)
    for count, other in enumerate([*copies, copy.copy(tasks), copy.deepcopy(tasks)], 2):
        await other()
        assert events == [1] * count
    assert job.state is JobState.SUCCEEDED


# -- options ---------------------------------------------------------------------------------------------


def test_not_given() -> None:
    """What is not given keeps its value, also if it is None or a falsy one; None is a value to give."""
    options = Options(timeout=3.0, max_waiting=5, after_failure="stop", keep="latest", wait=False)
    assert options.replace() is options
    assert options.replace(timeout=NOT_GIVEN, wait=NOT_GIVEN) is options
    assert options.replace(timeout=None, max_waiting=NOT_GIVEN) == Options(
        timeout=None, max_waiting=5, after_failure="stop", keep="latest", wait=False
    )
    assert options.replace(wait=True).wait
    assert options.replace(max_waiting=None).max_waiting is None
    assert repr(NOT_GIVEN) == "NOT_GIVEN"


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"timeout": -1}, "timeout=-1: give a finite number of seconds"),
        ({"timeout": "1"}, "timeout='1': give a number of seconds.*None for no limit"),
        ({"timeout": True}, "timeout=True: give a number of seconds"),
        ({"wait": None}, "wait=None: give True or False"),
        ({"wait": 0}, "wait=0: give True or False"),
    ],
)
def test_wrong_options(wrong: dict[str, Any], error: str) -> None:
    """An invalid option is refused where it is given, and the error says what to give."""
    with pytest.raises((TypeError, ValueError), match=error):
        BackgroundTasks().options(**wrong)
    if "timeout" in wrong:
        with pytest.raises((TypeError, ValueError), match=error):
            SerialExecutor().options(**wrong)


@pytest.mark.virtual_clock
async def test_no_timeout(log: Log) -> None:
    """`options(timeout=None)` lifts the timeout of the executor or app; `options()` leaves it."""

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        jobs.append(tasks.options(timeout=None).add_task(anyio.sleep, 9))
        jobs.append(tasks.lane("a").options(timeout=None).add_task(anyio.sleep, 9))
        jobs.append(tasks.options(wait=True).options().lane("b").add_task(anyio.sleep, 9))
        await respond()
        await tasks()

    jobs: list[Job[Any]] = []
    async with SerialExecutor(timeout=2) as executor:
        jobs.append(executor.options(timeout=None).submit_nowait(anyio.sleep, 9))
        jobs.append(executor.lane("a").options(timeout=None).submit_nowait(anyio.sleep, 9))
        jobs.append(executor.lane("b").options().submit_nowait(anyio.sleep, 9))
        jobs.append(executor.lane("c").options(timeout=NOT_GIVEN).submit_nowait(anyio.sleep, 9))
        jobs.append(executor.lane("d").options(timeout=None).options(timeout=1).submit_nowait(anyio.sleep, 9))
    states = [JobState.SUCCEEDED] * 2 + [JobState.FAILED] * 3
    assert [job.state for job in jobs] == states
    del jobs[:]
    assert isinstance((await get(app_of(handle, timeout=2))).error, TimeoutError)
    assert [job.state for job in jobs] == [JobState.SUCCEEDED] * 2 + [JobState.FAILED]


@pytest.mark.virtual_clock
async def test_options_add_up() -> None:
    """Options that are given one after the other add up: a later call keeps what it is not given."""
    jobs: list[Job[Any]] = []

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        jobs.append(tasks.options(timeout=2).options(wait=False).add_task(anyio.sleep, 9))
        jobs.append(tasks.options(wait=False).options(timeout=2).lane("a").add_task(anyio.sleep, 9))
        jobs.append(tasks.lane("b").options(wait=False).lane("c").options(timeout=2).add_task(anyio.sleep, 9))
        await respond()
        await tasks()

    app = app_of(handle)
    exchange = await get(app)
    assert exchange.error is None  # it has waited for none of them
    assert not any(job.done() for job in jobs)
    await app.executor.join()
    assert [job.state for job in jobs] == [JobState.FAILED] * 3
    assert all(isinstance(job.exception(), TimeoutError) for job in jobs)


async def test_option_wait(events: list[Any], log: Log) -> None:
    """`options(wait=False)`: the request waits for its other tasks; the failure of that one is logged."""
    work = Work(events)
    jobs: list[Job[Any]] = []

    async def detached() -> None:
        await work.gated(1)
        raise ValueError

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        jobs.append(tasks.add_task(work.gated, 0))
        jobs.append(tasks.options(wait=False).add_task(detached))
        jobs.append(tasks.options(wait=False).add_task(work.quick, 2))
        await respond()
        await tasks()
        events.append("let go")

    app = app_of(handle)
    async with anyio.create_task_group() as group:
        exchange = await Client(app, group).start("/path")
        assert not exchange.ended.is_set()
        work.gate(0).set()
        await exchange.ended.wait()
        await wait_all_tasks_blocked()
        assert sorted(events[:4]) == sorted(["start 0", "end 0", "start 1", "let go"])
        assert [job.state for job in jobs] == [JobState.SUCCEEDED, JobState.RUNNING, JobState.QUEUED]
        work.gate(1).set()
        await app.executor.join()
    assert exchange.error is None
    assert [job.state for job in jobs] == [JobState.SUCCEEDED, JobState.FAILED, JobState.SKIPPED]
    assert log == [
        "ERROR test_option_wait.<locals>.detached failed (GET /path)",
        "WARNING test_option_wait.<locals>.detached failed (GET /path); "
        "skipped after it: 1 task: Work.quick 3-… in the default lane",
    ]


async def test_option_wait_true(events: list[Any]) -> None:
    """`options(wait=True)` in an app that does not wait: the request waits for that task and its error."""
    work = Work(events)

    async def fail() -> None:
        await work.gated(0)
        raise ValueError("mine")

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.options(wait=True).add_task(fail)
        tasks.lane("a").add_task(work.gated, 1)
        await respond()
        await tasks()

    app = app_of(handle, wait=False)
    async with anyio.create_task_group() as group:
        exchange = await Client(app, group).start()
        assert not exchange.ended.is_set()
        work.gate(0).set()
        await exchange.ended.wait()
        assert "end 1" not in events
        work.gate(1).set()
        await app.executor.join()
    assert isinstance(exchange.error, ValueError)


async def test_option_of_a_lane(events: list[Any]) -> None:
    """Where `.lane(...)` is not given `after_failure`, the executor's `lane_after_failure` holds."""

    def fail() -> None:
        raise ValueError

    async with SerialExecutor(lane_after_failure="stop") as executor:
        goes_on, stops = executor.lane("a", after_failure="continue"), executor.lane("b")
        for lane in (goes_on, stops):
            lane.submit_nowait(fail)
            lane.submit_nowait(events.append, lane.key)
        while executor.statistics().waiting > 1:
            await anyio.sleep(0)
        await wait_all_tasks_blocked()
        statistics = executor.statistics().lanes["b"]
        assert statistics.blocked_by is BlockedBy.FAILED_HEAD
        assert events == ["a"]
        stops.skip_head()
    assert events == ["a", "b"]
