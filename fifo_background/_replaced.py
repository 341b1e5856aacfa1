"""An agent, or a mock, has replaced `add_task` or `__call__` of a class below ours: it has its say."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from starlette.background import BackgroundTask, BackgroundTasks

from fifo_background._core.job import Job
from fifo_background._core.naming import name_of
from fifo_background._core.state import DROPPED
from fifo_background._engine import EngineRequest
from fifo_background._entries import Entry, added_to, attach, has_arguments, job_of_entry, set_on
from fifo_background._settings import PLAIN

__all__ = ("Shown", "add_through", "run_through")


class Shown(Protocol):
    """The object to which they add, and which they await."""

    tasks: list[BackgroundTask]
    _fifo_stored_by: EngineRequest | None

    def _fifo_make_job(self, task: BackgroundTask, entry: Entry | None) -> Job[Any]: ...


def add_through(
    tasks: Shown, add: Callable[..., object], func: Any, args: Any, kwargs: Any, entry: Entry | None
) -> Job[Any]:
    """`add_task` by `add`, which somebody has replaced."""
    before = tasks.tasks.copy()
    add(func, *args, **kwargs)
    added = added_to(tasks.tasks, before)
    # other threads may be adding, too
    added = [task for task in added if has_arguments(task, args)] or added
    job: Job[Any] | None = None
    for task in added:
        job = job_of_entry(task) or _attach_job(tasks, task, func, entry)
    if job is None:  # a mock: nothing was added
        job = Job(BackgroundTask(func), None, PLAIN, set())
        job._end(DROPPED)
    return job


def _attach_job(tasks: Shown, task: BackgroundTask, func: Any, entry: Entry | None) -> Job[Any]:
    """The job of an entry that somebody else has made of `func`, perhaps with a function around it."""
    set_on(task, "_fifo_function", func)
    if tasks._fifo_stored_by is not None:
        stored: Job[Any] = tasks._fifo_stored_by.add(task, entry)
        return stored
    try:
        job = tasks._fifo_make_job(task, entry)
    except BaseException:  # refused: it must not run
        tasks.tasks[:] = [other for other in tasks.tasks if other is not task]
        raise
    job._name = name_of(func)
    attach(task, job, entry)
    return job


async def run_through(kind: type[BackgroundTasks], run: Callable[[], Awaitable[None]]) -> None:
    """Await an object by `kind.__call__`, which somebody has replaced: it gets a list that calls `run`."""
    shell: BackgroundTasks = object.__new__(kind)
    entries: list[BackgroundTask] = [_Runs(run)]
    shell.tasks = entries
    await shell()


class _Runs(BackgroundTask):
    """The one entry of that list."""

    def __init__(self, run: Callable[[], Awaitable[None]]) -> None:
        self.run: Callable[[], Awaitable[None]] = run
        vars(self)["func"] = run  # FastAPI names its span by it

    async def __call__(self) -> None:
        await self.run()
