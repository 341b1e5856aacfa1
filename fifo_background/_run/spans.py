"""Puts the lane and the waiting time of a task on the span that others have opened around it, if asked to."""

from __future__ import annotations

from fifo_background._core.job import Job
from fifo_background._core.lane import plain_key
from fifo_background._core.plain import text_of
from fifo_background._run.call import own_class
from fifo_background._run.current import current

__all__ = ("describe_spans",)


def describe_spans() -> None:
    """From here on, in all apps of the process, the span around a task has its lane and its waiting time.

    As `fifo_background.lane.name` and `fifo_background.job.waited` (seconds). The key of a lane may be
    private. FastAPI's telemetry, `opentelemetry-instrumentation-fastapi` and logfire open such spans. Needs
    `opentelemetry-api`.
    """
    from opentelemetry.trace import get_current_span

    def describe() -> None:
        span, job = get_current_span(), current.get()
        if not (span.is_recording() and isinstance(job, Job)):
            return
        position = job._position
        if position is not None:
            key = plain_key(position.lane.key)
            span.set_attribute("fifo_background.lane.name", "default" if key is None else text_of(key))
        if job._started is not None:
            span.set_attribute("fifo_background.job.waited", job._started - job._added)

    own_class.in_span = describe
