"""Waits for the end of a job on behalf of a client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
from starlette.requests import Request
from starlette.types import Receive

from fifo_background import ExecutorClosed, WouldDeadlock
from fifo_background.status.executors import ShownExecutor, ShownJob

__all__ = ("until_disconnected", "wait_for_end")

# Seconds between two looks whether the executor takes work, while things change.
LOOK_EVERY = 0.25


async def wait_for_end(request: Request, executor: ShownExecutor, job: ShownJob, seconds: float) -> None:
    """Until the job has ended, the client is gone, the executor closes, or the time is over.

    Not at all if the job cannot end before the response.
    """
    with anyio.move_on_after(seconds):
        await _until_first(request, executor, job)


async def _until_first(request: Request, executor: ShownExecutor, job: ShownJob) -> None:
    async with anyio.create_task_group() as group:

        async def first(wait: Callable[[], Awaitable[object]]) -> None:
            await wait()
            group.cancel_scope.cancel()

        async def job_ends() -> None:
            with suppress(WouldDeadlock):  # it stands behind a task of the request's dependencies
                await executor.wait_for(job)

        async def executor_closes() -> None:
            version = -1
            with suppress(ExecutorClosed):
                while True:
                    version = await executor.changed(version)
                    await anyio.sleep(LOOK_EVERY)

        async def client_leaves() -> None:
            await until_disconnected(request.receive)

        for wait in (job_ends, executor_closes, client_leaves):
            group.start_soon(first, wait)


async def until_disconnected(receive: Receive) -> None:
    """Read what the client still sends, until it is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
