from __future__ import annotations

import contextlib
import gc
import weakref
from functools import partial
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from starlette.background import BackgroundTask

from fifo_background import (
    BackgroundTasks,
    Job,
    JobDropped,
    JobNotEnded,
    JobState,
    SerialExecutor,
)
from fifo_background._executor import current
from fifo_background._job import TRANSITIONS, name_of
from tests.apps import app_of
from tests.asgi import get


def make_job(state: JobState = JobState.PENDING, outcome: object = None) -> Job[object]:
    job: Job[object] = Job(BackgroundTask(print), None, None)
    job.state, job.outcome = state, outcome
    return job


@pytest.mark.parametrize("before", JobState)
@pytest.mark.parametrize("after", JobState)
def test_table(before: JobState, after: JobState) -> None:
    """A job goes where the table says; any other move raises and changes nothing."""
    job = make_job(before, "old")
    if after in TRANSITIONS[before]:
        job.move(after, "new")
        assert (job.state, job.outcome) == (after, "new")
    else:
        with pytest.raises(RuntimeError, match=f"from {before.value} to {after.value}"):
            job.move(after, "new")
        assert (job.state, job.outcome) == (before, "old")


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
        make_job(JobState.FAILED, error).result()
    assert make_job(JobState.FAILED, error).exception() is error
    with pytest.raises(JobDropped, match="print has no result: it was dropped"):
        make_job(JobState.DROPPED).result()
    assert make_job(JobState.SKIPPED).exception() is None
    for ask in (make_job().result, make_job().exception):
        with pytest.raises(JobNotEnded, match=r"`await job.wait\(\)` first"):
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
            await job.wait()

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
    """Whoever keeps the handle of a task that has ended keeps neither its request nor other tasks by it."""
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
