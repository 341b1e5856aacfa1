"""Edges of objects that are awaited before the response has ended, and of what is awaited after them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fifo_background import BackgroundTasks, Job, JobState
from tests.support.apps import app_of, check_idle
from tests.support.asgi import get
from tests.support.log import Log

S = JobState
Respond = Callable[[], Awaitable[None]]


@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize("rest", ["skip", "run"])
async def test_held_back_task_fails(kind: str, rest: str, events: list[Any], log: Log) -> None:
    """A failed task that was held back skips the tasks of an object that is awaited after the response."""

    async def fails() -> None:
        events.append("fails")
        raise ValueError("it fails")

    def fails_in_thread() -> None:
        events.append("fails")
        raise ValueError("it fails")

    async def handle(path: str, respond: Respond) -> None:
        first, second = BackgroundTasks(), BackgroundTasks()
        jobs.append(first.add_task(fails if kind == "async" else fails_in_thread))
        jobs.append(second.add_task(events.append, "rest"))
        await first()
        await respond()
        await second()

    jobs: list[Job[Any]] = []
    app = app_of(handle, rest_after_failure=rest)
    exchange = await get(app)
    await app.executor.join()
    runs = rest == "run"
    assert [job.state for job in jobs] == [S.FAILED, S.SUCCEEDED if runs else S.SKIPPED]
    assert events == (["fails", "rest"] if runs else ["fails"])
    assert repr(exchange.error) == "ValueError('it fails')", "said once"
    assert sum("it fails" in record for record in log) == 0
    check_idle(app.executor)


@pytest.mark.parametrize("lane", [None, "k"])
async def test_awaited_added_to_and_awaited_again(lane: str | None, events: list[Any]) -> None:
    """An object that is awaited, gets one more task, and is awaited again runs the first, then the list."""

    async def work(name: str) -> None:
        events.append(name)

    async def handle(path: str, respond: Respond) -> None:
        tasks = BackgroundTasks()
        adder = tasks if lane is None else tasks.lane(lane)
        adder.add_task(work, "A")
        await tasks()
        jobs.append(adder.add_task(work, "B"))
        await respond()
        await tasks()
        assert events == ["A", "A", "B"], "the second await waits for all of them"

    jobs: list[Job[Any]] = []
    app = app_of(handle)
    assert (await get(app)).error is None
    assert events == ["A", "A", "B"]
    assert jobs[0].state is S.SUCCEEDED
    check_idle(app.executor)
