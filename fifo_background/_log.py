"""Every sentence that the logger `fifo_background` says. No error of a filter or handler leaves this file."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextvars import Context
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR, CO_ITERABLE_COROUTINE
from reprlib import Repr
from types import TracebackType
from typing import Any, NamedTuple

from starlette.background import BackgroundTask

from fifo_background._core.failure import Failure
from fifo_background._core.job import Job
from fifo_background._core.lane import plain_key
from fifo_background._core.plain import type_name
from fifo_background._core.position import Owner, Position
from fifo_background.exceptions import counted, lane_name, safe_repr

__all__ = ("names", "say")

logger = logging.getLogger("fifo_background")


def say(level: int, text: str, *facts: object, error: BaseException | None = None) -> None:
    """One record. What a filter or handler raises is printed, as `logging` does, and goes no further."""
    try:
        logger.log(level, text, *facts, exc_info=error)
    except Exception:
        if logging.raiseExceptions and sys.stderr is not None:
            try:
                traceback.print_exc(file=sys.stderr)
            except Exception:
                pass  # there is nowhere left to say it


def names(jobs: Iterable[Job[Any]]) -> str:
    """How a log record lists tasks: their number, and their names with how often each."""
    count: dict[str, int] = {}
    for job in jobs:
        count[job.name] = count.get(job.name, 0) + 1
    listed = ", ".join(name if n == 1 else f"{name} x{n}" for name, n in count.items())
    return f"{counted(sum(count.values()), 'task', 'tasks')}: {listed}"


# Where no lane is known: None is the key of the default lane.
NO_LANE = object()

# How many tasks one record names, and how much it shows of one argument.
_MOST, _LONGEST = 100, 200


def _named(job: Job[Any], facts: Facts) -> str:
    """How a record names a task that is lost, so that a person can do it again."""
    task: Any = facts[job].task if job in facts else None
    name = job.name
    if task is not None:
        given = [_shown(value) for value in getattr(task, "args", ())]
        given += [f"{key}={_shown(value)}" for key, value in getattr(task, "kwargs", {}).items()]
        name = f"{name}({', '.join(given)})"
    return f"{name} {job.id}" if job.number else name


# Does not write out what is then cut.
_short = Repr()
_short.maxstring = _short.maxother = _short.maxlong = _LONGEST
_short.maxlist = _short.maxtuple = _short.maxset = _short.maxfrozenset = _short.maxdict = 20


def _shown(value: object) -> str:
    try:
        text = _short.repr(value)
    except Exception:  # of a class that is named like one of Python's
        text = f"<{type_name(value)}>"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _lost(jobs: Sequence[Job[Any]], facts: Facts, owner: Owner | None) -> Iterator[str]:
    """Lost tasks, by lane and request, in pieces for one record each. `owner`: is named anyway."""
    for start in range(0, len(jobs), _MOST):
        groups: dict[str, list[str]] = {}
        for job in jobs[start : start + _MOST]:
            key, its_owner, _ = facts.get(job, _NO_FACTS)
            where = _in_lane(key)
            if its_owner is not owner:
                where += in_brackets(its_owner)
            groups.setdefault(where, []).append(_named(job, facts))
        yield "; ".join(
            f"{counted(len(named), 'task', 'tasks')}: {', '.join(named)}{where}"
            for where, named in groups.items()
        )


def _in_lane(key: object) -> str:
    return "" if key is NO_LANE else f" in {lane_name(key)}"


def in_brackets(owner: Owner | None) -> str:
    return f" ({owner})" if owner is not None and owner.named else ""


def failed(
    job: Job[Any],
    owner: Owner | None,
    context: Context | None,
    skipped: Sequence[Job[Any]] = (),
    stopped: object = NO_LANE,
    *,
    facts: Facts | None = None,
    with_error: bool = True,
) -> None:
    """A failure that nobody raises, with its traceback, or what one that is raised has stopped.

    In the context of the task's request.
    """
    failure: Failure = job._outcome

    def in_context() -> None:
        if with_error:
            say(logging.ERROR, "%s failed%s", job.name, in_brackets(owner), error=failure.error)
        for after in _after(_lost(skipped, facts or {}, owner), stopped):
            say(logging.WARNING, "%s failed%s%s", job.name, in_brackets(owner), after)

    if context is None:
        in_context()
    else:
        context.copy().run(in_context)  # a copy: the context itself may be in use
    if with_error:
        failure.reported = True
        _clear_frames(failure.traceback)  # the lines stay, what the frames held does not


_SUSPENDS = CO_COROUTINE | CO_GENERATOR | CO_ASYNC_GENERATOR | CO_ITERABLE_COROUTINE


def _clear_frames(found: TracebackType | None) -> None:
    """Clear the locals of frames that have ended: the task's, those of plain functions, and our own.

    Before Python 3.13, clearing the frame of a suspended coroutine or generator closes it. One that has
    given its exception to the task may go on, and so does the first frame, which runs the jobs of a lane.
    """
    is_first = is_task = True  # the first frame below ours
    while found is not None:
        frame = found.tb_frame
        is_ours = str(frame.f_globals.get("__name__")).startswith("fifo_background.")
        suspends = frame.f_code.co_flags & _SUSPENDS
        if not suspends or (is_task and not (is_ours and is_first)) or sys.version_info >= (3, 13):
            try:
                frame.clear()
            except RuntimeError:  # it has not ended
                pass
        is_task, is_first = is_task and is_ours, False
        found = found.tb_next


def _after(skipped: Iterator[str], stopped: object) -> Iterator[str]:
    """What a failure did, in pieces for one record each."""
    stops = "" if stopped is NO_LANE else f"; {lane_name(plain_key(stopped))} has stopped"
    for text in skipped:
        yield f"; skipped after it: {text}{stops}"
        stops = ""
    if stops:
        yield stops


def was_cancelled(job: Job[Any], arguments: bool) -> None:
    """A job that runs, and has not been told that it has ended."""
    facts = facts_of([job], arguments)
    key, owner, _ = facts[job]
    text = f"{_named(job, facts)}{_in_lane(key)}{in_brackets(owner)}"
    say(logging.WARNING, "%s was cancelled", text)


def lost(position: Position, jobs: list[Job[Any]], hold_timeout: float) -> None:
    say(
        logging.WARNING,
        "%s lost its position: it kept ready tasks waiting for more than %g s without responding or running "
        "its own tasks. It takes a new position when its response has ended%s",
        position.owner,
        hold_timeout,
        f", for {names(jobs)}" if jobs else "",
    )


def overdue(job: Job[Any], owner: Owner | None, ran: float, timeout: float, waiting: int) -> None:
    say(
        logging.WARNING,
        "%s%s has been running for %.3g s, longer than its timeout of %g s. It runs in a thread, and cannot "
        "be stopped: %s behind it",
        job.name,
        in_brackets(owner),
        ran,
        timeout,
        counted(waiting, "task waits", "tasks wait"),
    )


def unrun(job: Job[Any], parts: list[Job[Any]], key: object, owner: Owner | None) -> None:
    """The parts have no id: they can be done again with the job."""
    text = f"{_named(job, {})}{_in_lane(key)}{in_brackets(owner)}"
    say(logging.WARNING, "%s ended without running %s", text, names(parts))


def waits_in_a_ring(ring: str, seconds: float) -> None:
    say(
        logging.WARNING,
        "tasks wait for each other, for %.3g s now, and none of them can end: %s",
        seconds,
        ring,
    )


def callback_failed(job: Job[Any], function: object, error: BaseException) -> None:
    say(logging.ERROR, "a done callback of %s failed: %s", job.name, safe_repr(function), error=error)


def cannot_reraise(job: Job[Any], error: BaseException) -> None:
    say(
        logging.ERROR,
        "the %s of %s does not end the program: trio raises it only in the main thread, as after Ctrl-C, and "
        "where a handler of SIGINT takes that",
        type(error).__name__,
        job.name,
    )


def dropped(owner: Owner, jobs: list[Job[Any]], facts: Facts, why: str) -> None:
    for text in _lost(jobs, facts, owner):
        say(logging.WARNING, "%s ended without running %s: %s", owner, text, why)


def not_carried(became: str) -> str:
    """Why a request has dropped tasks; `became`: the class of the exception that became its response."""
    if became:
        return (
            f"{became} became its response, which carries no tasks. Use "
            "`executor_of(request).submit_nowait(func, ...)` for a task that has to run nevertheless"
        )
    return (
        "its response did not carry them. The response had a background of its own, or was not given "
        "`background=tasks`, or an exception (HTTPException) became the response"
    )


def draining(jobs: int, seconds: float) -> None:
    say(
        logging.INFO,
        "shutdown: draining %s, for at most %g s (drain_timeout)",
        counted(jobs, "task", "tasks"),
        seconds,
    )


class Fact(NamedTuple):
    """What a job that has ended does not know anymore."""

    key: object
    """Of its lane."""
    owner: Owner | None
    task: BackgroundTask | None
    """Where its arguments are to be shown."""


Facts = dict[Job[Any], Fact]
_NO_FACTS = Fact(NO_LANE, None, None)


def facts_of(jobs: Iterable[Job[Any]], arguments: bool) -> Facts:
    """The facts of jobs that have not ended."""
    facts: Facts = {}
    for job in list(jobs):
        task, position = job._task if arguments else None, job._position
        if position is None:
            facts[job] = Fact(NO_LANE, None, task)
        else:
            facts[job] = Fact(plain_key(position.lane.key), position.owner, task)
    return facts


def not_run(why: str, jobs: Sequence[Job[Any]], facts: Facts) -> None:
    """What did not run, so that a person can do it again."""
    for text in _lost(jobs, facts, None):
        say(logging.WARNING, "%s %s", why, text)


def runs_on(job: Job[Any]) -> None:
    text = "the executor ends, and %s still runs in a thread, which cannot be stopped"
    say(logging.WARNING, text, _named(job, {}))


def left_behind(jobs: list[Job[Any]], facts: Facts) -> None:
    for text in _lost(jobs, facts, None):
        say(logging.WARNING, "shutdown: cancelled, but did not end within 1 s: %s", text)


def cleared(key: object, jobs: list[Job[Any]], facts: Facts) -> None:
    facts = {job: fact._replace(key=NO_LANE) for job, fact in facts.items()}  # it is said once
    for text in _lost(jobs, facts, None):
        say(logging.WARNING, "%s was cleared: cancelled %s", lane_name(key), text)


def warn(text: str) -> None:
    say(logging.WARNING, "%s", text)


def inform(text: str) -> None:
    say(logging.INFO, "%s", text)
