"""Retries belong to the task's function: its lane waits for them, and nothing overtakes."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
import stamina
from anyio import wait_all_tasks_blocked

from fifo_background import BackgroundTasks, JobState, OrderedBackgroundMiddleware, SerialExecutor
from fifo_background._settings import Retry
from tests.support.asgi import get

pytestmark = pytest.mark.virtual_clock


class Unreachable(Exception):
    pass


def flaky(attempts: list[Any], times: int) -> Any:
    """An async task that notes its number, and fails that often if it is 0."""

    @stamina.retry(on=Unreachable, attempts=5, wait_initial=1, wait_jitter=0)
    async def task(n: int) -> str:
        attempts.append(n)
        if n == 0 and attempts.count(0) <= times:
            raise Unreachable
        return f"{n} done"

    return task


async def test_retry_holds_the_lane(events: list[Any]) -> None:
    """A task that retries keeps its position at the head: `[0, 0, 1, 2, 3]`."""
    task = flaky(events, 1)
    async with SerialExecutor() as executor:
        jobs = [executor.submit_nowait(task, n) for n in range(4)]
        executor.lane("another").submit_nowait(task, 4)
    assert events[2:] == [0, 1, 2, 3]  # another lane does not wait for the retry
    assert sorted(events[:2]) == [0, 4]
    assert [job.result() for job in jobs] == ["0 done", "1 done", "2 done", "3 done"]


async def test_retry_holds_the_lane_while_it_closes(events: list[Any]) -> None:
    """Closing waits for the retries of the head, and the tasks behind it keep their order."""
    executor = SerialExecutor()
    task = flaky(events, 2)
    jobs = [executor.submit_nowait(task, n) for n in range(5)]
    await wait_all_tasks_blocked()
    assert events == [0]
    await executor.aclose()
    assert events == [0, 0, 0, 1, 2, 3, 4]
    assert all(job.state is JobState.SUCCEEDED for job in jobs)


async def test_retries_of_a_request(events: list[Any]) -> None:
    """A task that has failed for good skips the rest of its request, and the next request's tasks run."""
    task = flaky(events, 100)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tasks = BackgroundTasks()
        for n in scope["numbers"]:
            tasks.add_task(task, n)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        await tasks()

    ordered = OrderedBackgroundMiddleware(app)
    errors: list[Any] = []

    async def ask(*numbers: int) -> None:
        errors.append((await get(ordered, numbers=numbers)).error)

    async with anyio.create_task_group() as group:
        group.start_soon(ask, 0, 1)
        await wait_all_tasks_blocked()
        group.start_soon(ask, 2)
    assert events == [0] * 5 + [2]
    assert sorted(type(error).__name__ for error in errors) == ["NoneType", "Unreachable"]


def test_waits_of_a_retry() -> None:
    """Each wait is twice as long as the one before, up to a limit, and there is none after the last run."""
    retry = Retry(attempts=5, wait=2, wait_max=10)
    assert [retry.seconds_after(attempt) for attempt in range(1, 6)] == [2, 4, 8, 10, None]
    assert Retry.of(7) == Retry(attempts=7)


def test_retry_is_checked() -> None:
    """A `Retry` has at least one attempt, and waits for a number of seconds; in memory there is none."""
    for wrong in ({"attempts": 0}, {"attempts": True}, {"wait": -1}, {"wait_max": None}, {"wait": True}):
        with pytest.raises((TypeError, ValueError), match="give"):
            Retry(**wrong)
    with pytest.raises(TypeError, match="an app with an engine"):
        BackgroundTasks().options(retry=3)
    assert BackgroundTasks().options(retry=None).options(timeout=1.0)
