"""What the logger `fifo_background` says of tasks."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fifo_background._job import Job
from fifo_background._lane import Place

if TYPE_CHECKING:
    from fifo_background._request import TrackedRequest

__all__ = ("in_brackets", "logger", "names", "of_request")

logger = logging.getLogger("fifo_background")


def names(jobs: Iterable[Job[Any]]) -> str:
    """How a log record lists tasks: their number, and their names with how often each.

    For one of our objects those of its tasks are named that share its fate.
    """
    counted: dict[str, int] = {}
    for job in jobs:
        for named in [part for part in job.parts if part.state is job.state] or [job]:
            counted[named.name] = counted.get(named.name, 0) + 1
    total = sum(counted.values())
    listed = ", ".join(name if n == 1 else f"{name} x{n}" for name, n in counted.items())
    return f"{total} task{'' if total == 1 else 's'}: {listed}"


def of_request(place: Place | None) -> str:
    """The request that a task belongs to, if any, in brackets."""
    return in_brackets(None if place is None else place.owner)


def in_brackets(request: TrackedRequest | None) -> str:
    return f" ({request})" if request is not None and request.named else ""
