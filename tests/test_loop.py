"""The backends of event loops that have ended, are gone, or are unusual."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import contextvars
import functools
import gc
import runpy
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import anyio.to_thread
import pytest
import starlette.background
from anyio import wait_all_tasks_blocked
from starlette.requests import Request
from starlette.responses import Response

from fifo_background import (
    BackgroundTask,
    BackgroundTasks,
    Job,
    JobState,
    OrderedBackgroundMiddleware,
    SerialExecutor,
    executor_of,
)
from fifo_background._core.invariants import check
from fifo_background._run import groups
from fifo_background._run.backends import api, sniffio, threads
from fifo_background._run.backends.api import backend_of, running_loop
from fifo_background._run.backends.asyncio import AsyncioBackend
from fifo_background._run.backends.trio import TrioBackend
from fifo_background._run.call import drive
from tests.support.apps import Work, check_idle, make_app, user
from tests.support.asgi import get
from tests.support.log import Log
from tests.support.loops import LOOPS


@contextlib.contextmanager
def asyncio_runner() -> Iterator[Callable[[Any], Any]]:
    """Runs coroutines on a loop of its own, one after the other."""
    loop = asyncio.new_event_loop()
    try:
        yield loop.run_until_complete
    finally:
        loop.close()


def test_gone_asyncio_loop() -> None:
    """A backend does not keep its loop alive, and tells when it is gone or closed."""
    loop = asyncio.new_event_loop()
    backend = AsyncioBackend(loop)
    assert not backend.is_dead
    loop.close()
    assert not backend.soon(print)
    assert not backend.work_soon(print)
    assert backend.is_dead
    del loop
    gc.collect()
    assert not backend.soon(print)
    assert not backend.work_soon(print)
    assert backend.is_dead


def test_ended_trio_run() -> None:
    """The same for a trio run."""
    trio = pytest.importorskip("trio")

    async def main() -> tuple[TrioBackend, Any]:
        backend = TrioBackend(running_loop())
        assert not backend.is_dead
        return backend, running_loop()

    backend, token = trio.run(main)
    assert not backend.soon(print)
    assert backend.is_dead
    del token
    gc.collect()
    assert not backend.soon(print)
    assert backend.is_dead


def test_without_sniffio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no sniffio, tasks run without it."""
    monkeypatch.setattr(sniffio, "_library", None)

    async def main() -> None:
        assert await SerialExecutor().submit_nowait(str, 1) == "1"

    anyio.run(main)
    backend = None
    over: list[Any] = []

    async def on_trio() -> None:
        nonlocal backend
        backend = backend_of(running_loop())
        done = anyio.Event()

        async def run() -> None:
            done.set()

        handle = backend.start(run(), contextvars.copy_context())
        backend.when_over(handle, over.append)
        await done.wait()
        await anyio.wait_all_tasks_blocked()
        assert over == [handle]

    anyio.run(on_trio, backend="trio")
    assert isinstance(backend, TrioBackend)


def test_without_trio(monkeypatch: pytest.MonkeyPatch) -> None:
    """trio is looked at only if somebody has imported it."""
    monkeypatch.delitem(sys.modules, "trio", raising=False)
    assert api._trio_token() is None
    with pytest.raises(RuntimeError, match="from a running event loop"):
        running_loop()


def test_unused_executor() -> None:
    """An executor that was not used in an event loop says so, and how to use it."""
    executor = SerialExecutor()
    with pytest.raises(RuntimeError, match=r"no event loop yet.*async with SerialExecutor"):
        executor.submit_nowait(print)
    for use in (executor.statistics, executor.lane(1).pause, executor.lane(1).clear):
        with pytest.raises(RuntimeError, match=r"in the event loop and in anyio worker threads"):
            use()
    assert executor.is_open


async def test_lost_loop() -> None:
    """A runner that cannot tell its loop to pump does not remember that it has asked."""
    runner = SerialExecutor()._runner
    runner.check_in_loop()

    class Gone:
        def work_soon(self, *args: Any) -> bool:
            return False

    runner.backend = Gone()  # type: ignore[assignment]
    runner.pump_soon()
    assert not runner._asked


def test_submitted_between_loops() -> None:
    """What is submitted while the loop stands still may run later. Once the loop is closed, it is refused."""
    executor = SerialExecutor()

    async def use() -> None:
        await executor.submit_nowait(str)

    with asyncio_runner() as run:
        run(use())
        job = executor.submit_nowait(str)
    assert job.state is JobState.QUEUED
    for _ in range(2):
        with pytest.raises(RuntimeError, match="another event loop, which has ended"):
            executor.submit_nowait(str)


def test_loops_that_begin_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops in two threads each keep their executor of one app, also where both get it in the same moment."""
    app = OrderedBackgroundMiddleware(make_app())
    has_its_own, other_has, found = threading.Event(), threading.Event(), []
    is_dead = AsyncioBackend.is_dead

    async def use() -> None:
        found.append(app.executor)

    async def other() -> None:
        executor = app.executor
        has_its_own.set()
        assert other_has.wait(10)
        app._latest = None  # as the other loop has it, too
        found.append(app.executor is executor)

    thread = threading.Thread(target=asyncio.run, args=(other(),))

    def looked(backend: AsyncioBackend) -> Any:
        if not thread.ident:
            thread.start()
            assert has_its_own.wait(10)
        return is_dead.fget(backend)  # type: ignore[misc]

    asyncio.run(use())
    monkeypatch.setattr(AsyncioBackend, "is_dead", property(looked))
    asyncio.run(use())
    other_has.set()
    thread.join()
    assert found[1] is not found[0]
    assert found[2:] == [True]


async def test_abandoned_before_it_began() -> None:
    """A function whose caller left before its thread came does not run."""
    ran: list[int] = []
    stay = threads._Stay(lambda: ran.append(1), backend_of(running_loop()))
    assert stay.abandon() is None
    assert stay.run() is None
    assert ran == []


def test_import_without_sniffio(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module can be imported where there is no sniffio."""
    monkeypatch.setitem(sys.modules, "sniffio", None)
    assert runpy.run_path(sniffio.__file__)["_library"] is None


def test_wrapper_that_suspends() -> None:
    """A coroutine that is driven in a thread must not wait there: that is an error, not a hang."""

    async def waits() -> None:
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="awaited something in the task's thread"):
        drive(waits())


def test_object_of_another_loop() -> None:
    """An object that is awaited in another event loop than its request's runs there, as in Starlette."""
    kept: list[BackgroundTasks] = []
    ran: list[int] = []

    async def handler(request: Request) -> Response:
        kept.append(BackgroundTasks([BackgroundTask(ran.append, 1)]))
        return Response()

    app = make_app(handler)
    with asyncio_runner() as first, asyncio_runner() as second:
        first(get(app, "/handler"))
        second(kept[0]())
    assert ran == [1]


@pytest.mark.parametrize("kind", ["keyword", "plain", "broken", "eager"])
def test_task_factories(kind: str) -> None:
    """The loop's own task factory, whatever it takes or raises, changes nothing of how tasks run."""

    def factory(loop: Any, coroutine: Any, **more: Any) -> Any:
        return asyncio.Task(coroutine, loop=loop, **more)

    def broken(loop: Any, coroutine: Any, **more: Any) -> Any:
        coroutine.close()
        raise ZeroDivisionError

    factories: dict[str, Any] = {
        "keyword": factory,
        "plain": lambda loop, coroutine: factory(loop, coroutine),
        "broken": broken,
        "eager": getattr(asyncio, "eager_task_factory", factory),
    }

    async def work(n: int) -> str:
        await asyncio.sleep(0)
        return f"{user.get()} {n}"

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with SerialExecutor() as executor:
            user.set("alice")
            loop.set_task_factory(factories[kind])
            with pytest.raises(ZeroDivisionError) if kind == "broken" else contextlib.nullcontext():
                await loop.create_task(asyncio.sleep(0))
            jobs = [executor.submit_nowait(work, n) for n in range(3)]
            assert [await job for job in jobs] == ["alice 0", "alice 1", "alice 2"]
            loop.set_task_factory(None)

    asyncio.run(main())


async def test_no_task_can_be_started(log: Log) -> None:
    """A job for which the loop cannot start a task fails, and the lane goes on."""

    async def work() -> str:
        return "done"

    def broken(*args: Any, **how: Any) -> Any:
        raise ZeroDivisionError

    async with SerialExecutor() as executor:
        assert await executor.submit_nowait(work) == "done"
        for func in (work, functools.partial(str, 1)):
            backend: Any = executor._runner.backend
            backend.start = broken
            failed = executor.submit_nowait(func)
            assert await failed.wait() is JobState.FAILED
            del backend.start
            assert await executor.submit_nowait(work) == "done"
            assert isinstance(failed.exception(), ZeroDivisionError)
        check_idle(executor)
    names = ["test_no_task_can_be_started.<locals>.work", "str"]
    assert log == [f"ERROR {name} failed" for name in names]


def test_cancelled_by_itself(log: Log) -> None:
    """A task that raises CancelledError has failed, and ends no lane, whatever else is being cancelled."""
    events: list[Any] = []

    async def raises() -> None:
        await asyncio.sleep(0)
        raise asyncio.CancelledError

    async def main() -> None:
        executor = SerialExecutor()
        jobs = [executor.submit_nowait(raises)]
        for n in range(3):
            executor.submit_nowait(events.append, n)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(0)
        await executor.join()
        assert executor.is_open
        jobs.append(executor.submit_nowait(raises))
        executor.submit_nowait(events.append, 3)
        await executor.aclose()
        assert [job.state for job in jobs] == [JobState.FAILED] * 2

    asyncio.run(main())
    assert events == [0, 1, 2, 3]
    assert log == ["ERROR test_cancelled_by_itself.<locals>.raises failed"] * 2
    assert [record.exc_info is not None for record in log.records] == [True, True]


async def test_event_loop_inside_a_sync_task() -> None:
    """A sync task may run an event loop of its own."""
    async with SerialExecutor() as executor:
        await executor.submit_nowait(anyio.run, anyio.sleep, 0)


def test_cancel_when_nothing_else_runs() -> None:
    """Cancelling the only task of a loop in which nothing else runs ends no lane."""
    loop = asyncio.new_event_loop()
    turns = iter(range(20))
    jobs: list[Job[Any]] = []
    executor = SerialExecutor()

    def turn() -> None:
        n = next(turns, None)
        if n is None:
            loop.stop()
            return
        if n in (0, 10):
            jobs.append(executor.submit_nowait(asyncio.sleep, 3600))
        elif n in (5, 15):
            assert jobs[-1].cancel()
        loop.call_soon(turn)

    loop.call_soon(turn)
    loop.run_forever()
    assert [job.state for job in jobs] == [JobState.CANCELLED] * 2
    assert executor.is_open
    loop.close()


def test_loops_in_turn(events: list[Any]) -> None:
    """Each event loop has an executor of its own, however often they take turns."""

    async def handler(request: Request) -> Response:
        return Response(background=BackgroundTask(events.append, executor_of(request)))

    app = make_app(handler)
    loops = [asyncio.new_event_loop() for _ in range(2)]
    for loop in loops * 2:
        loop.run_until_complete(get(app, "/handler"))
    for loop in loops:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    assert events[:2] == events[2:]
    assert events[0] is not events[1]


def test_loops_of_both_kinds_in_turn(events: list[Any]) -> None:
    """An app that has run on asyncio can run on trio, and the other way round."""

    async def handler(request: Request) -> Response:
        return Response(background=BackgroundTask(events.append, 1))

    app = make_app(handler)
    for name in ("asyncio", "trio") * 2:
        gc.collect()
        exchange = anyio.run(get, app, "/handler", backend=name)
        assert exchange.error is None
    assert events == [1] * 4


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("why", ["paused", "stopped", "submitted"])
def test_loop_ends_while_nothing_runs(name: str, why: str, log: Log) -> None:
    """A loop that ends while tasks wait and none runs: they are dropped, and named."""
    jobs: list[Job[Any]] = []

    async def main() -> None:
        executor = SerialExecutor(lane_after_failure="stop")
        if why == "paused":
            executor.lane("a").pause()
        elif why == "stopped":
            assert await executor.lane("a").submit_nowait(int, "no").wait() is JobState.FAILED
        jobs.extend(executor.lane("a").submit_nowait(print) for _ in range(2))
        if why != "submitted":
            await wait_all_tasks_blocked()

    with contextlib.suppress(AssertionError):  # the helper sees the task that waits for the end
        anyio.run(
            main,
            backend="trio" if name == "trio" else "asyncio",
            backend_options={"use_uvloop": True} if name == "uvloop" else {},
        )
    if name == "trio" and why == "submitted":
        return  # trio runs what was asked for before it ends
    assert {job.state for job in jobs} == {JobState.DROPPED}
    first = 2 if why == "stopped" else 1
    names = f"print {first}-…, print {first + 1}-…"
    assert log[-1] == f"WARNING the event loop ended: dropped 2 tasks: {names} in lane 'a'"


@pytest.mark.parametrize("name", [name for name in LOOPS if name != "trio"])
@pytest.mark.parametrize("again", [False, True])
def test_loop_ends_after_its_tasks_were_cancelled(again: bool, name: str, log: Log) -> None:
    """A loop all of whose tasks were cancelled, while jobs wait, still tells its end: the jobs are named."""
    jobs: list[Job[Any]] = []

    async def main() -> None:
        executor = SerialExecutor()
        executor.lane("a").pause()
        jobs.extend(executor.lane("a").submit_nowait(print) for _ in range(2))
        for _ in range(1 + again):
            await wait_all_tasks_blocked()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
        await wait_all_tasks_blocked()

    with contextlib.suppress(AssertionError):  # the helper sees the task that waits for the end
        anyio.run(main, backend_options={"use_uvloop": name == "uvloop"})
    assert {job.state for job in jobs} == {JobState.DROPPED}
    assert log == ["WARNING the event loop ended: dropped 2 tasks: print 1-…, print 2-… in lane 'a'"]


async def test_parked_task_is_cancelled_as_the_last_job_leaves(events: list[Any]) -> None:
    """Where nothing waits anymore, nothing waits for the end of the loop either."""
    async with SerialExecutor() as executor:
        executor.lane("a").pause()
        job = executor.lane("a").submit_nowait(events.append, 1)
        await wait_all_tasks_blocked()
        runner = executor._runner
        assert runner.parking.waiter is not None
        assert job.cancel()
        await wait_all_tasks_blocked()
        assert runner.parking.waiter is None
    assert events == []


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_task_that_is_started_as_the_run_of_trio_ends(kind: str, events: list[Any], log: Log) -> None:
    """A task for which clean-up code asks as a run of trio ends does not start, and is named."""
    trio = pytest.importorskip("trio")
    work = Work(events)
    jobs: list[Job[Any]] = []
    executor = SerialExecutor()

    async def clean_up() -> None:
        try:
            await trio.sleep_forever()
        finally:
            jobs.append(executor.submit_nowait(work.quick if kind == "async" else work.sync, 1))
            executor._runner.pump()

    async def main() -> None:
        await executor.submit_nowait(anyio.sleep, 0)
        trio.lowlevel.spawn_system_task(clean_up)
        await wait_all_tasks_blocked()

    trio.run(main)
    scheduler = executor._runner.scheduler
    check(scheduler)
    assert (events, scheduler.unfinished, executor._runner.tasks_alive) == ([], 0, 0)
    if kind == "async":
        assert jobs[0].state is JobState.CANCELLED
        assert log == ["WARNING Work.quick 2-… in the default lane was cancelled"]
    else:
        assert jobs[0].state is JobState.DROPPED
        assert log == ["WARNING the event loop ended: dropped 1 task: Work.sync 2-… in the default lane"]


def test_executor_of_another_loop_in_a_worker_thread() -> None:
    """Operations of an executor in a worker thread of another loop are refused with what to write."""

    async def main() -> None:
        with pytest.raises(RuntimeError, match="this executor belongs to another event loop"):
            await anyio.to_thread.run_sync(executor.statistics)

    executor = SerialExecutor()
    with asyncio_runner() as first, asyncio_runner() as second:
        first(executor.__aenter__())
        second(main())


async def test_replaced_run_in_threadpool(events: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that replaces Starlette's `run_in_threadpool` carries its state into the threads of tasks."""
    original = starlette.background.run_in_threadpool

    async def carries(function: Callable[..., Any], *args: Any) -> Any:
        def with_state() -> Any:
            events.append("state")
            return function(*args)

        return await original(with_state)

    monkeypatch.setattr(starlette.background, "run_in_threadpool", carries)
    async with SerialExecutor() as executor:
        job = executor.submit_nowait(str, 1)
        assert await job == "1"
    assert events == ["state"]


def test_exit_of_a_task_in_a_thread_of_trio(log: Log) -> None:
    """A trio run outside of the main thread is not stopped by a task's KeyboardInterrupt, which is logged."""
    pytest.importorskip("trio")
    events: list[Any] = []

    async def leave() -> None:
        raise KeyboardInterrupt

    async def main() -> None:
        async with SerialExecutor() as executor:
            job = executor.submit_nowait(leave)
            assert await job.wait() is JobState.FAILED
            assert await executor.submit_nowait(events.append, 1) is None

    thread = threading.Thread(target=anyio.run, args=[main], kwargs={"backend": "trio"})
    thread.start()
    thread.join()
    assert events == [1]
    said, failed = sorted(log, key=len, reverse=True)
    assert "does not end the program" in said
    assert failed == "ERROR test_exit_of_a_task_in_a_thread_of_trio.<locals>.leave failed"


def test_without_exceptiongroup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.10 without the package `exceptiongroup` has no real exception groups, and no error either."""
    monkeypatch.setitem(sys.modules, "exceptiongroup", None)
    made = runpy.run_path(groups.__file__)
    built_in = getattr(builtins, "BaseExceptionGroup", None)
    assert made["GROUPS"] == (() if built_in is None else (built_in,))
    assert not made["is_group_of"](ValueError(), ValueError)
    assert not made["is_group_of"](KeyError(), ValueError)


@pytest.mark.skipif(sys.version_info >= (3, 11), reason="tasks are given their context")
def test_loop_that_is_thrown_away() -> None:
    """Before Python 3.11, too, a task in a loop that is thrown away cleans up in its own context."""
    events: list[str] = []

    async def work() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            events.append(user.get())

    async def main() -> asyncio.Task[Any]:
        user.set("alice")
        executor = SerialExecutor()
        executor.submit_nowait(work)
        await asyncio.sleep(0.01)
        (task,) = asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]
        return task

    loop = asyncio.new_event_loop()
    task: Any = loop.run_until_complete(main())
    loop.close()
    task.get_coro().close()  # as the garbage collector does
    assert events == ["alice"]


def test_submit_after_the_loop_has_ended() -> None:
    """An executor whose loop has ended while it ran says so, and names what to write."""

    async def main() -> SerialExecutor:
        executor = SerialExecutor()
        executor.submit_nowait(anyio.sleep_forever)
        await wait_all_tasks_blocked()
        return executor

    executor = asyncio.run(main())
    with pytest.raises(
        RuntimeError, match=r"another event loop, which has ended\. Make an executor in each loop"
    ):
        executor.submit_nowait(print)


def test_run_of_trio_that_has_ended() -> None:
    """A run of trio that takes no more tasks has ended: the executor is told so, once."""
    trio = pytest.importorskip("trio")

    async def main() -> Any:
        return backend_of(running_loop())

    async def nothing() -> None: ...

    backend = trio.run(main)
    told: list[bool] = []
    backend.loop_ends = lambda: told.append(backend.ending)
    run = nothing()
    for _ in range(2):
        with pytest.raises(RuntimeError):
            backend.start(run, contextvars.Context())
    run.close()
    assert told == [True]


@pytest.mark.parametrize("name", [name for name in LOOPS if name != "trio"])
def test_tasks_are_cancelled_until_none_is_left(name: str) -> None:
    """A shutdown that cancels tasks until there are none comes to an end, also while jobs wait."""
    rounds: list[int] = []

    async def main() -> None:
        executor = SerialExecutor()
        executor.lane("a").pause()
        executor.lane("a").submit_nowait(print)
        await wait_all_tasks_blocked()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.wait(others)
            rounds.append(len(others))
            assert len(rounds) < 100

    anyio.run(main, backend_options={"use_uvloop": name == "uvloop"})
    assert rounds
