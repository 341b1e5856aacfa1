"""Runs one stored task in an executor in memory, and says how it has ended, as the database is told."""

from __future__ import annotations

import logging
from typing import Any

from fifo_background import _log
from fifo_background._core.plain import text_of, type_name
from fifo_background._core.state import CANCELLED, FAILED, SUCCEEDED
from fifo_background._executor import SerialExecutor
from fifo_background._settings import Retry
from fifo_background.engines.postgres._codec import Codec
from fifo_background.engines.postgres._functions import Functions, NotThereError
from fifo_background.engines.postgres._in_hand import InHand
from fifo_background.engines.postgres._stored import Carried, Claimed, Running, clean

__all__ = ("Tasks",)

# A function that is not there is looked for again, for some four minutes: so long a deploy may take.
_DEPLOY = Retry(attempts=10)


class Tasks:
    """Calls the functions of an app. `results_bytes`: the largest result that is kept."""

    def __init__(self, functions: Functions, codec: Codec, carried: Carried, results_bytes: int) -> None:
        self._functions = functions
        self._codec = codec
        self._carried = carried
        self._results_bytes = results_bytes
        # a worker limits how many jobs are in hand: one that waits for another one lends its slot
        self.executor: SerialExecutor = SerialExecutor(max_lanes_running=1_000_000, history=0)

    async def run(self, one: InHand, task: Claimed, running: Running) -> dict[str, Any] | None:
        """How it has ended; None where it was interrupted, and is to run again."""
        try:
            function, args, kwargs = task.call(self._functions, self._codec)
            context = self._carried.context(task.carried, running)
        except NotThereError as missing:  # in a deploy another worker has it, or this one soon
            return _failed(task, missing, _DEPLOY)
        except Exception as unreadable:
            _log.say(logging.ERROR, "%s cannot be called", task.function, error=unreadable)
            return _failure(task, unreadable)
        submitter = self.executor.lane(one.claim.job).options(timeout=task.options.get("timeout"))
        job = context.run(submitter.submit_nowait, function, *args, **kwargs)
        one.started(job)
        state = await job.wait()
        if state is SUCCEEDED:
            return {"id": task.id, "state": state.value, **self._result(job.result())}
        if state is not FAILED:
            return None if one.gives_back else {"id": task.id, "state": CANCELLED.value}
        error: Any = job.exception()
        return _failed(task, error, task.retry)

    def _result(self, value: Any) -> dict[str, Any]:
        try:
            text = self._codec.write(value)
        except (TypeError, RecursionError) as error:
            return {"result_omitted": clean(str(error))}
        if len(text) > self._results_bytes:
            return {
                "result_omitted": f"it takes {len(text)} bytes, and results_bytes is {self._results_bytes}"
            }
        return {"result": text}


def _failed(task: Claimed, error: BaseException, retry: Retry | None) -> dict[str, Any]:
    seconds = None if retry is None else retry.seconds_after(task.attempts)
    if seconds is None:
        return _failure(task, error)
    text = "%s %s failed, and runs again in %g s: %s"
    _log.say(logging.WARNING, text, task.name, task.id, seconds, text_of(error))
    return {**_failure(task, error), "retry_in": seconds}


def _failure(task: Claimed, error: BaseException) -> dict[str, Any]:
    return {
        "id": task.id,
        "state": FAILED.value,
        "error_type": clean(type_name(error)),
        "error": clean(text_of(error)),
        "skip": task.options.get("rest") != "run",
        "stop": task.options.get("after_failure") == "stop",
    }
