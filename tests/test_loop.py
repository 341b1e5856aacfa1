"""The faces of event loops that have ended, are gone, or are unusual."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import runpy
import sys
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
from starlette.requests import Request
from starlette.responses import Response

from fifo_background import BackgroundTask, BackgroundTasks, SerialExecutor, _call, _loop, _threads
from fifo_background._loop import AsyncioLoop, TrioLoop, face_of, running_loop
from tests.asgi import get
from tests.test_middleware import make_app


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
    monkeypatch.setattr(_loop, "_sniffio_library", None)

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

        import contextvars

        face.start(run(), contextvars.copy_context(), lambda: None)
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
    assert runpy.run_path(_loop.__file__)["_sniffio_library"] is None


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
