"""Edges of requests that tasks have made: the tasks have ended, and what they came from has not."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from fifo_background import BackgroundTasks, Job, SerialExecutor
from fifo_background._run.current import current_party, origin_of
from tests.support.apps import app_of, check_idle, until
from tests.support.asgi import Client, Exchange, get

Respond = Callable[[], Awaitable[None]]


class Starter:
    """A task that starts a request and ends; the request begins after that."""

    def __init__(self, group: Any) -> None:
        self._group = group
        self._ended = anyio.Event()
        self._answered = anyio.Event()

    async def start(self, app: Any, path: str) -> None:
        self._group.start_soon(self._ask, app, path)

    async def _ask(self, app: Any, path: str) -> None:
        await self._ended.wait()
        assert (await get(app, path)).error is None
        self._answered.set()

    async def answered(self) -> None:
        self._ended.set()
        with anyio.fail_after(4):  # less than `hold_timeout`
            await self._answered.wait()


HOWS = ("a submitted task", "a task of a task", "its own task", "a request that has ended", "a retried task")


@pytest.mark.virtual_clock
@pytest.mark.parametrize("how", HOWS)
async def test_made_by_a_task_that_has_ended(how: str, events: list[Any]) -> None:
    """A request does not wait behind the handler that its maker came from, also once the maker has ended."""

    async def fails_once(starter: Starter) -> None:
        if not events:
            events.append("failed")
            raise ValueError
        await starter.start(app, "/inner")

    async def submits(starter: Starter) -> None:
        jobs.append(app.executor.lane("y").submit_nowait(starter.start, app, "/inner"))

    async def begins(starter: Starter, path: str, respond: Respond) -> None:
        lane = app.executor.lane("x", after_failure="stop")
        if how == "a submitted task":
            await lane.submit_nowait(starter.start, app, "/inner")
        elif how == "a task of a task":
            await lane.submit_nowait(submits, starter)
            await jobs.pop().wait()
            gc.collect()
        elif how == "its own task":
            tasks = BackgroundTasks()
            own = tasks.lane("x").add_task(starter.start, app, "/inner")
            await respond()
            await tasks()
            await own.wait()
        elif how == "a request that has ended":
            await get(other)
        else:
            await lane.submit_nowait(fails_once, starter).wait()
            await lane.retry_head()

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(events.append, path)
        if path == "/outer":
            starter = starters[0]
            await begins(starter, path, respond)
            await starter.answered()
        if how != "its own task" or path != "/outer":
            await respond()
        await tasks()

    async def handle_other(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(starters[0].start, app, "/inner")
        await respond()
        await tasks()

    jobs: list[Job[Any]] = []
    starters: list[Starter] = []
    app, other = app_of(handle, wait=how != "its own task"), app_of(handle_other)
    async with anyio.create_task_group() as group:
        starters.append(Starter(group))
        assert (await get(app, "/outer")).error is None
    await app.executor.join()
    assert [event for event in events if event != "failed"] == ["/outer", "/inner"]
    check_idle(app.executor)


async def test_made_by_nothing_that_is_left(events: list[Any]) -> None:
    """A request whose maker's handler has ended, too, waits for its tasks, and raises what they raise."""

    async def fails() -> None:
        raise ValueError("it fails")

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        if path == "/outer":
            await app.executor.lane("x").submit_nowait(start)
        else:
            await ended.wait()
            tasks.add_task(fails)
        await respond()
        await tasks()

    async def start() -> None:
        exchanges.append(await client.start("/made"))

    ended, exchanges = anyio.Event(), []
    app = app_of(handle)
    async with anyio.create_task_group() as group:
        client = Client(app, group)
        assert (await get(app, "/outer")).error is None
        ended.set()
    assert repr(exchanges[0].error) == "ValueError('it fails')"


async def test_ended_task_keeps_no_request() -> None:
    """The handle of a task that has ended keeps neither its request nor the one that made that alive."""
    made: list[weakref.ref[Any]] = []
    jobs: list[Job[Any]] = []

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        jobs.append(tasks.add_task(print))
        made.append(weakref.ref(tasks._fifo_request))  # type: ignore[arg-type]
        if path == "/outer":
            one = Exchange(other, "/inner")  # called without its cancel scope, which old anyio keeps
            await other(one.scope, one.receive, one.send)
        jobs.append(app.executor.submit_nowait(anyio.sleep, 0))
        await respond()
        await tasks()

    app, other = app_of(handle), app_of(handle)
    one = Exchange(app, "/outer")
    await app(one.scope, one.receive, one.send)
    await app.executor.join()
    await other.executor.join()
    del one
    assert (len(jobs), len(made)) == (4, 2)

    def are_gone() -> bool:
        gc.collect()
        return all(request() is None for request in made)

    with anyio.fail_after(60):  # a thread that has told its last outcome may still be on its way out
        await until(are_gone)


async def test_long_chain_of_tasks() -> None:
    """However long tasks submit the next one and end, the last one knows only those that have not ended."""
    known: list[Any] = []

    async def submits(n: int) -> None:
        if n:
            executor.submit_nowait(submits, n - 1)
            return
        origin = origin_of(current_party())
        while origin is not None:
            known.append(origin())
            origin = origin.made_by

    async with SerialExecutor() as executor:
        executor.submit_nowait(submits, 50)
        await executor.join()
    assert [job.name.rpartition(".")[2] for job in known] == ["submits"]
