"""The faces of event loops that have ended, are gone, or are unusual."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import runpy
import sys
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import anyio.to_thread
import pytest
from starlette.requests import Request
from starlette.responses import Response

from fifo_background import (
    BackgroundTask,
    BackgroundTasks,
    Job,
    JobState,
    SerialExecutor,
    _call,
    _loop,
    _sniffio,
    _threads,
    executor_of,
)
from fifo_background._asyncio import AsyncioLoop
from fifo_background._loop import face_of, running_loop
from fifo_background._trio import TrioLoop
from tests.apps import make_app, user
from tests.asgi import get
from tests.conftest import Log


@contextlib.contextmanager
def asyncio_runner() -> Iterator[Callable[[Any], Any]]:
    """Runs coroutines on a loop of its own, one after the other."""
    loop = asyncio.new_event_loop()
    try:
        yield loop.run_until_complete
    finally:
        loop.close()


def test_gone_asyncio_loop() -> None:
    """A face does not keep its loop alive, and says when it is gone or closed."""
    loop = asyncio.new_event_loop()
    face = AsyncioLoop(loop)
    loop.close()
    assert not face.soon(print)
    del loop
    gc.collect()
    assert not face.soon(print)


def test_ended_trio_run() -> None:
    """The same for a trio run."""
    trio = pytest.importorskip("trio")

    async def main() -> tuple[TrioLoop, Any]:
        return TrioLoop(running_loop()), running_loop()

    face, token = trio.run(main)
    assert not face.soon(print)
    del token
    gc.collect()
    assert not face.soon(print)


def test_task_factory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop's own task factory makes the tasks, as its user wants."""
    made: list[Any] = []

    def factory(loop: Any, coroutine: Any, **kwargs: Any) -> Any:
        made.append(coroutine.__name__)
        return asyncio.Task(coroutine, loop=loop, **kwargs)

    async def task() -> int:
        return 1

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(factory)
        assert await SerialExecutor().submit_nowait(task).wait() == 1

    asyncio.run(main())
    assert made[0] == "_run_async_jobs"


def test_without_sniffio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no sniffio, nothing has to be told to it."""
    monkeypatch.setattr(_sniffio, "_library", None)

    async def main() -> None:
        assert await SerialExecutor().submit_nowait(str, 1).wait() == "1"

    anyio.run(main)
    face = None

    async def on_trio() -> None:
        nonlocal face
        face = face_of(running_loop())
        done = anyio.Event()

        async def run() -> None:
            done.set()

        handle = face.start(run(), contextvars.copy_context())
        face.when_over(handle, lambda: None)
        await done.wait()

    anyio.run(on_trio, backend="trio")
    assert isinstance(face, TrioLoop)


def test_without_trio(monkeypatch: pytest.MonkeyPatch) -> None:
    """trio is looked at only if somebody has imported it."""
    monkeypatch.delitem(sys.modules, "trio", raising=False)
    assert _loop._trio_token() is None
    with pytest.raises(RuntimeError, match="from a running event loop"):
        running_loop()


def test_unused_executor() -> None:
    """An executor that nobody has used says that it has no loop."""
    with pytest.raises(RuntimeError, match="no event loop yet"):
        SerialExecutor()._loop.soon(print)


async def test_lost_loop() -> None:
    """Where the loop cannot be told, nothing stays marked as told."""
    executor = SerialExecutor()
    executor.check_caller()

    class Gone:
        def soon(self, *args: Any) -> bool:
            return False

    executor._loop = Gone()  # type: ignore[assignment]
    executor.settle_soon()
    assert not executor._asked


async def test_abandoned_before_it_began() -> None:
    """A function whose caller left before its thread came does not run."""
    ran: list[int] = []
    stay = _threads._Stay(lambda: ran.append(1), face_of(running_loop()))
    assert stay.abandon() is None
    assert stay.run() is None
    assert ran == []


def test_import_without_sniffio(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module can be imported where there is no sniffio."""
    monkeypatch.setitem(sys.modules, "sniffio", None)
    assert runpy.run_path(_sniffio.__file__)["_library"] is None


def test_wrapper_that_suspends() -> None:
    """A coroutine that is driven in a thread must not wait there: that is an error, not a hang."""

    async def waits() -> None:
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="awaited something in the task's thread"):
        _call.drive(waits())


def test_object_of_another_loop() -> None:
    """An object that was made in a request of one event loop cannot be awaited in another: that is said."""
    kept: list[BackgroundTasks] = []

    async def handler(request: Request) -> Response:
        kept.append(BackgroundTasks([BackgroundTask(print)]))
        return Response()

    app = make_app(handler)
    with asyncio_runner() as first, asyncio_runner() as second:
        first(get(app, "/handler"))
        with pytest.raises(RuntimeError, match="this executor belongs to another event loop"):
            second(kept[0]())


@pytest.mark.parametrize("keyword", [False, True])
def test_task_factories(keyword: bool, log: Log) -> None:
    """A task factory need not know `context=`; one that raises fails the task, and the line goes on."""

    def factory(loop: Any, coroutine: Any, **more: Any) -> Any:
        if broken:
            raise ZeroDivisionError
        return asyncio.Task(coroutine, loop=loop, **more)

    async def work() -> str:
        return user.get()

    async def main() -> None:
        nonlocal broken
        loop = asyncio.get_running_loop()
        plain: Any = lambda loop, coroutine: factory(loop, coroutine)  # noqa: E731
        async with SerialExecutor() as executor:
            user.set("alice")
            loop.set_task_factory(factory if keyword else plain)
            assert await executor.submit_nowait(work).wait() == "alice"
            broken = True
            failed = executor.submit_nowait(work)
            await asyncio.sleep(0)
            broken = False
            loop.set_task_factory(None)
            assert await executor.submit_nowait(work).wait() == "alice"
            assert isinstance(failed.exception(), ZeroDivisionError)

    broken = False
    asyncio.run(main())
    assert [line.split(":")[0] for line in log] == ["ERROR test_task_factories.<locals>.work failed"]


@pytest.mark.skipif("sys.version_info < (3, 11)", reason="Python 3.10 cannot tell who has cancelled a task")
def test_cancelled_by_itself(log: Log) -> None:
    """A task that raises CancelledError ends no line, whatever else is being cancelled."""
    events: list[Any] = []

    async def raises() -> None:
        await asyncio.sleep(0)
        raise asyncio.CancelledError

    async def main() -> None:
        executor = SerialExecutor()
        executor.submit_nowait(raises)
        for n in range(3):
            executor.submit_nowait(events.append, n)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(0)
        await executor.join()
        assert executor.is_open
        executor.submit_nowait(raises)
        executor.submit_nowait(events.append, 3)
        await executor.aclose()

    asyncio.run(main())
    assert events == [0, 1, 2, 3]
    assert [line.rsplit(" ", 2)[-1] for line in log] == ["cancelled", "cancelled"]


async def test_event_loop_inside_a_sync_task() -> None:
    """A sync task may run an event loop of its own."""
    async with SerialExecutor() as executor:
        await executor.submit_nowait(anyio.run, anyio.sleep, 0).wait()


def test_cancel_when_nothing_else_runs() -> None:
    """To call the only task off, in a loop in which nothing else runs, ends no line."""
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
