"""What the logger `fifo_background` says of tasks."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from fifo_background._job import Job
from fifo_background._lane import Place

__all__ = ("logger", "names", "of_request")

logger = logging.getLogger("fifo_background")


def names(jobs: Iterable[Job[Any]]) -> str:
    """How a log record lists tasks: their number, and their names with how often each.

    For one of our objects its own tasks are named.
    """
    counted: dict[str, int] = {}
    for job in jobs:
        for named in job.parts or (job,):
            counted[named.name] = counted.get(named.name, 0) + 1
    total = sum(counted.values())
    listed = ", ".join(name if n == 1 else f"{name} x{n}" for name, n in counted.items())
    return f"{total} task{'' if total == 1 else 's'}: {listed}"


def of_request(place: Place | None) -> str:
    """The request that a task belongs to, if any, in brackets."""
    request = None if place is None else place.owner
    return f" ({request})" if request is not None and request.named else ""
