"""Tasks inside a task: of an object that is a task itself, or that a running task awaits."""

from __future__ import annotations

from typing import Any, Protocol

from starlette.background import BackgroundTask, BackgroundTasks

from fifo_background._core.job import Job
from fifo_background._entries import attach, is_left_out, job_of_entry, options_of_entry, take_job
from fifo_background._run.call import Around
from fifo_background._settings import PLAIN

__all__ = ("add_part", "run_parts", "take_in")


class Inner(Protocol):
    """The object whose tasks run inside a task."""

    tasks: list[BackgroundTask]

    def _fifo_orphan(self, task: BackgroundTask) -> Job[Any]:
        """A job that no executor knows."""
        ...


def object_in(task: Any) -> BackgroundTasks | None:
    """The object that a task runs, if it is one: an entry of a list, or what `add_task` was given."""
    inner = task if isinstance(task, BackgroundTasks) else getattr(task, "func", None)
    return inner if isinstance(inner, BackgroundTasks) else None


def take_in(task: Any, outer: Job[Any]) -> None:
    """What was added to an object that is a task itself runs inside that: it leaves the scheduler."""
    inner = object_in(task)
    if inner is None:
        return
    parts: list[Job[Any]] = []
    look, seen = [inner], {id(inner)}
    while look:
        owner: Any = look.pop()
        claims = owner._fifo_become_part(outer) if hasattr(owner, "_fifo_become_part") else set()
        for one in getattr(owner, "tasks", ()):
            job = job_of_entry(one)
            if job is not None and not job._queued and job._claim():
                if job._runner is not None:
                    job._runner.let_go(job)
                job._runner, job._claims = outer._runner, claims
                claims.add(job)  # where others can cancel it still
                job._make_special().outer = outer
                parts.append(job)
            deeper = object_in(one)
            if deeper is not None and id(deeper) not in seen:
                seen.add(id(deeper))
                look.append(deeper)
    outer._make_special().parts = parts


def add_part(job: Job[Any], outer: Job[Any]) -> bool:
    """One more part of `outer`, which has not ended. False if it has ended just now, without this part."""
    job._runner = outer._runner
    job._make_special().outer = outer
    special = outer._make_special()
    parts = special.parts  # the end of the outer job takes it away
    if parts is None:
        parts = special.parts = []
    parts.append(job)
    return not (outer.done() and job._claim())


async def run_parts(tasks: Inner, outer: Job[Any], around: Around) -> None:
    """Run the tasks of an object inside `outer`, the running task that awaits it."""
    _join(tasks, outer)
    runner: Any = outer._runner
    for task in tasks.tasks:
        job = take_job(task)
        if job is None:
            job = tasks._fifo_orphan(task)
        elif is_left_out(job):
            attach(task, job, None)
            continue
        elif job._own_state is not None or job._queued:
            job = tasks._fifo_orphan(task)
        if not job._claim():
            continue  # cancelled just now
        entry = options_of_entry(task)
        job._options = PLAIN if entry is None else PLAIN.replace(**entry.changes)
        job._make_special().outer = outer
        job._make_special().around = around
        await runner.loop_runs.run_part(job)


def _join(tasks: Inner, outer: Job[Any]) -> None:
    """The jobs of the list are parts of `outer`: those that do not run inside it end with it."""
    parts = [job for task in tasks.tasks if (job := job_of_entry(task)) is not None]
    for job in parts:
        job._make_special().outer = outer
        job._runner = job._runner or outer._runner
    special = outer._make_special()
    known = [part for part in special.parts or () if not part.done()]
    special.parts = list(dict.fromkeys([*known, *parts]))
