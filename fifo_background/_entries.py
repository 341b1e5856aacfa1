"""The entries of `.tasks`: each keeps the job that `add_task` made of it, and what was asked for it."""

from __future__ import annotations

from typing import Any, NamedTuple

from starlette.background import BackgroundTask

from fifo_background._core.job import Job
from fifo_background._core.naming import name_of
from fifo_background._core.state import CANCELLED, SKIPPED, SUPERSEDED

__all__ = (
    "Entry",
    "added_to",
    "attach",
    "has_arguments",
    "is_left_out",
    "job_of_entry",
    "name_by_function",
    "options_of_entry",
    "set_on",
    "take_job",
)

# A job that ended like this before its object was awaited is left out.
LEFT_OUT = frozenset({CANCELLED, SKIPPED, SUPERSEDED})


class Entry(NamedTuple):
    """What `tasks.lane(...)` and `tasks.options(...)` asked for a task."""

    key: Any  # `...` for the request's lane
    changes: dict[str, Any]  # of `Options`

    def after(self, first: Entry | None) -> Entry:
        """What is asked for if this is said after `first`."""
        if first is None:
            return self
        return Entry(first.key if self.key is ... else self.key, {**first.changes, **self.changes})


def added_to(tasks: list[Any], before: list[Any]) -> list[Any]:
    """What is in the list and was not before: mostly at its end, which needs no look at all of it."""
    known = len(before)
    added = tasks[known:]
    if added and (not known or (tasks[known - 1] is before[-1] and added[-1] is not before[-1])):
        return added
    ids = set(map(id, before))
    return [task for task in tasks if id(task) not in ids]


def attach(task: Any, job: Job[Any], entry: Entry | None) -> None:
    """An entry of the list keeps its job until it is handed over."""
    set_on(task, "_fifo_job", job)
    if entry is not None:
        set_on(task, "_fifo_entry", entry)


def has_arguments(task: Any, args: tuple[Any, ...]) -> bool:
    given = getattr(task, "args", None)
    if not isinstance(given, tuple) or len(given) != len(args):
        return False
    return all(one is other for one, other in zip(given, args, strict=True))


def set_on(task: Any, name: str, value: object) -> None:
    try:
        setattr(task, name, value)
    except AttributeError:  # a task with slots cannot keep it
        pass


def job_of_entry(task: Any) -> Job[Any] | None:
    """The job that `add_task` made for an entry. A mock answers any name: only a job is one."""
    job = getattr(task, "_fifo_job", None)
    return job if type(job) is Job else None


def name_by_function(job: Job[Any], task: Any) -> None:
    """A new job of an entry around whose function somebody has put another one has the name of the first."""
    if isinstance(task, BackgroundTask) and getattr(task, "_fifo_function", None) is not None:
        job._name = name_of(task)


def options_of_entry(task: Any) -> Entry | None:
    """What `tasks.lane(...)` and `tasks.options(...)` asked for an entry."""
    entry = getattr(task, "_fifo_entry", None)
    return entry if type(entry) is Entry else None


def take_job(task: Any) -> Job[Any] | None:
    """The job that `add_task` made for an entry, once."""
    job = job_of_entry(task)
    if job is not None:
        del task._fifo_job
    return job


def is_left_out(job: Job[Any]) -> bool:
    """Whether it was cancelled, skipped or superseded by itself, not with the task that it was a part of."""
    return job._own_state in LEFT_OUT and not (job._special is not None and job._special.ended_with_outer)
