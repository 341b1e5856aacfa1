"""A task reports how far it is."""

from __future__ import annotations

import math
from numbers import Real
from typing import cast

from fifo_background._core.job import Job, JobRunner
from fifo_background._core.plain import text_of
from fifo_background._core.special import Progress
from fifo_background._run.current import current_party

__all__ = ("report",)


def report(done: float, total: float | None = None, note: str | None = None) -> None:
    """Inside a task, sync or async: say how far it is, for `Job.progress` and the status page.

    `done` of `total`, in whatever unit; `note` says which, such as "rows written" (at most 500 characters are
    kept). Outside of a task it does nothing, so that a function can be called directly, too. Raises TypeError
    or ValueError for what is no number, or no text.
    """
    done = _checked("done", done)
    total = None if total is None else _checked("total", total)
    if note is not None and not isinstance(note, str):
        raise TypeError(f"note={note!r}: give a str, such as 'rows written'")
    job = current_party()
    if not isinstance(job, Job) or job.done():
        return
    job = job._outermost
    job._make_special().progress = Progress(done, total, None if note is None else text_of(note))
    cast(JobRunner, job._runner).note_change()


def _checked(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r}: give a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{name}={value!r}: give a finite number, 0 or more")
    return value if isinstance(value, int) else number
