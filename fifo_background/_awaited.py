"""An object is awaited in a request: its entries become jobs, are handed over, and the request waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from starlette.background import BackgroundTask, BackgroundTasks

from fifo_background import _log
from fifo_background._core.job import Job
from fifo_background._core.state import DROPPED, SUCCEEDED
from fifo_background._entries import (
    Entry,
    is_left_out,
    job_of_entry,
    name_by_function,
    options_of_entry,
)
from fifo_background._parts import take_in
from fifo_background._request import HANDLING, TrackedRequest
from fifo_background._run.awaited_jobs import AwaitedJobs
from fifo_background._run.call import Around, own_class
from fifo_background.exceptions import safe_repr

__all__ = ("Collected", "run")


class Collected(Protocol):
    """What a request needs of an object that is awaited in it."""

    tasks: list[BackgroundTask]

    def _fifo_was_awaited(self, request: Any, jobs: AwaitedJobs) -> None:
        """These jobs run with it from here on."""
        ...


async def run(request: TrackedRequest, collected: Collected, around: Around) -> None:
    """Run the tasks of an object, after the response; wait for those that are attached.

    `around`: the class in whose `__call__` FastAPI opens a span around each task.
    """
    jobs, listed = AwaitedJobs(), list(collected.tasks)
    try:
        new = _jobs_of(request, around, listed)
        if request.stage is HANDLING:
            _hold_back(request, collected, around, listed, new)
            return
        jobs += new
        jobs.waited = request.waits  # before threads can see that the object is awaited
        collected._fifo_was_awaited(request, jobs)
        if len(collected.tasks) > len(listed):  # a thread has added to it meanwhile
            before, listed = listed, list(collected.tasks)
            late = _jobs_of(request, around, _put_in(request, listed, before))
            jobs += late
            new += late
        if new:
            _hand_over(request, jobs, new)
    except BaseException as error:  # such as the `__eq__` of a key
        request.runner.waits.leave(jobs, request)
        for job in jobs:
            if not job._queued:
                job._attached = None  # it was not handed over: the request's end drops it
        if not request.named:  # nobody else ends it
            request.end(error)
        raise
    if new:
        for job in jobs:
            if job._own_state is not SUCCEEDED:
                break
        else:
            jobs.waited = False  # before the last look: see `TrackedRequest.join`
            job = jobs[-1]
        if job._own_state is not SUCCEEDED:
            await request.runner.waits.attached(jobs, request)
        while len(collected.tasks) > len(listed):
            before, listed = listed, list(collected.tasks)
            added = _jobs_of(request, around, _put_in(request, listed, before))
            jobs += added
            _hand_over(request, jobs, added)
            await request.runner.waits.attached(jobs, request)


def _hold_back(
    request: TrackedRequest,
    collected: Collected,
    around: Around,
    listed: list[BackgroundTask],
    new: list[Job[Any]],
) -> None:
    """They run when the response has ended: the object's jobs are those of the request from here on."""
    held = request.hold_back(new)
    at = len(held)
    collected._fifo_was_awaited(request, held)
    if len(collected.tasks) > len(listed):  # a thread has added to it meanwhile, and then perhaps to `held`
        entries = _put_in(request, list(collected.tasks), listed)
        request.hold_back(_jobs_of(request, around, entries), at)


def _put_in(
    request: TrackedRequest, tasks: list[BackgroundTask], listed: list[BackgroundTask]
) -> list[BackgroundTask]:
    """What a task has put into the list by hand: Starlette runs that, too.

    Also what a thread has added at the moment at which the object was awaited.
    """
    if all(before is now for before, now in zip(listed, tasks, strict=False)):
        new = tasks[len(listed) :]
    else:
        known = set(map(id, listed))
        new = [task for task in tasks if id(task) not in known]
    return [task for task in new if _is_nobodys(request, job_of_entry(task))]


def _is_nobodys(request: TrackedRequest, job: Job[Any] | None) -> bool:
    if job is None or job._runner is None:
        return True
    position = job._position
    return position is not None and position.owner is request and job._attached is None


def _jobs_of(request: TrackedRequest, around: Around, entries: Sequence[Any]) -> list[Job[Any]]:
    """The jobs of the entries, in order: those that `add_task` made, and new ones for the others."""
    jobs: list[Job[Any]] = []
    for task in entries:
        kind: type[Any] = type(task)
        plain = kind is own_class.task
        job: Job[Any] | None = task._fifo_job if plain else None
        if (
            job is not None
            and job._own_state is None
            and request.handed_over is None
            and (position := job._position) is not None
            and position.owner is request
        ):
            del task._fifo_job
        else:
            job = _job_of(request, task)
            if job is None:
                continue
        if around is not None:
            job._make_special().around = around
        if not plain or isinstance(task.func, BackgroundTasks):
            take_in(task, job)
        jobs.append(job)
    return jobs


def _job_of(request: TrackedRequest, task: Any) -> Job[Any] | None:
    """The job that `add_task` made for this entry, or a new one. None if it was cancelled or superseded."""
    job, entry = job_of_entry(task), options_of_entry(task)
    if job is None:
        return _adopt(request, task, None, entry)
    if job._own_state is None:
        position = job._position
        if position is not None and position.owner is request:
            del task._fifo_job
            return None if job._queued else job
        if job._runner is None and job._claim():
            del task._fifo_job
            return _adopt(request, task, job, entry)
    elif is_left_out(job):
        return None
    return _adopt(request, task, None, entry)


def _adopt(
    request: TrackedRequest, task: BackgroundTask, job: Job[Any] | None, entry: Entry | None
) -> Job[Any]:
    """The job of a list entry that did not come through `add` of this request; it is always accepted.

    `job` is the handle that `add_task` returned outside of any request.
    """
    options = request.settings.options if entry is None else request.settings.options.replace(**entry.changes)
    made = request.runner.make_job(task, options)
    name_by_function(made, task)
    if job is not None:
        job._runner, job._options, job._special = request.runner, options, made._special
        made = job
    made._claims = request.runner.scheduler.waiting
    try:
        request.accept(made, request.key() if entry is None or entry.key is ... else entry.key, False)
    except BaseException as error:
        facts = _log.facts_of([made], request.settings.log_arguments)
        if not made.done():
            made._end(DROPPED)
        if job is not None:  # somebody has the handle
            _log.dropped(request, [made], facts, f"it raised {safe_repr(error)}")
        raise
    return made


def _hand_over(request: TrackedRequest, jobs: AwaitedJobs, new: list[Job[Any]]) -> None:
    """The new ones of these jobs were awaited, and are ready."""
    jobs.waited = waits = request.waits
    for job in new:
        job._attached = waits and job._options.wait
    if request.settings.order == "arrived":
        request.arrived()
    held = () if request.handed_over is None else request.handed_over.take(new)
    request.runner.hand_over(new, held)
