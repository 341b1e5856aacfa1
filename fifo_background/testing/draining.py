"""Waits until everything that was added has run, and says what keeps it from that."""

from __future__ import annotations

from typing import Any

import anyio

from fifo_background import JobRecord, JobState, OrderedBackgroundMiddleware, SerialExecutor, executor_of
from fifo_background._lookup import layers

__all__ = ("drained",)

_UNFINISHED = (JobState.PENDING, JobState.QUEUED, JobState.RUNNING)


async def drained(app_or_executor: Any, timeout: float = 10.0) -> None:
    """Wait until every task that was added to an app, or to a `SerialExecutor`, has run.

    In a sync test: `client.portal.call(drained, app)`. Raises TimeoutError after `timeout` seconds; the error
    says which tasks have not ended, and why. Raises LookupError for an app that has not been started, and
    RuntimeError for one that runs only in other event loops.
    """
    if any(
        isinstance(layer, OrderedBackgroundMiddleware) and layer._lives.is_elsewhere
        for layer in layers(app_or_executor)
    ):
        raise RuntimeError(
            "the app runs in another event loop, such as that of a TestClient, and its tasks are waited for "
            "there: write `client.portal.call(drained, app)`"
        )
    is_executor = isinstance(app_or_executor, SerialExecutor)
    executor: SerialExecutor = app_or_executor if is_executor else executor_of(app_or_executor)
    with anyio.move_on_after(timeout):
        await executor.join()
        return
    left = await executor.jobs(states=_UNFINISHED)
    if left:
        words = "; ".join(map(_in_words, reversed(left)))
        raise TimeoutError(f"after {timeout:g} s these tasks have not ended: {words}")


def _in_words(job: JobRecord) -> str:
    lane = "the default lane" if job.lane is None else f"lane {job.lane_name.name!r}"
    return f"{job.name} in {lane} ({_why(job)})"


def _why(job: JobRecord) -> str:
    if job.state is JobState.RUNNING:
        return "it runs"
    blocker = job.blocked_by
    if blocker is None:
        return "it was about to start"
    return {
        "job": f"{blocker.name} runs",
        "request": f"{blocker.name} has not responded",
        "paused": "the lane is paused",
        "failed": f"the lane has stopped, because {blocker.name} failed",
        "slot": "max_lanes_running lanes run",
        "retry": f"{blocker.name} has failed, and waits to run again",
        "worker": "no worker is alive",
    }[blocker.kind]
