"""Records the tasks of an app instead of running them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from starlette.background import BackgroundTask

from fifo_background import OrderedBackgroundMiddleware, SerialExecutor
from fifo_background._core.job import Job
from fifo_background._core.lane import plain_key
from fifo_background._lookup import engine_of, is_ordered, layers
from fifo_background._run.runner import Runner
from fifo_background.exceptions import safe_repr

__all__ = ("RecordedTask", "recorded")


class RecordedTask(NamedTuple):
    """A task that would have run: equal to the tuple of its parts."""

    function: Callable[..., Any]
    """As it was given to `add_task` or `submit`; of an object in the place of a function, the object."""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    lane: Hashable
    """The key of its lane; None is the default lane."""


@contextmanager
def recorded(app_or_executor: Any) -> Iterator[list[RecordedTask]]:
    """Record the tasks of an app, or of a `SerialExecutor`, instead of running them.

    Yields the list: tasks appear in it when it would have been their turn, so their order is the one in which
    they would have run. They succeed, with the result None. The app need not have been started. Tasks that
    became ready before the block run. Raises LookupError for an app without the middleware, and RuntimeError
    for one with an engine.
    """
    if not isinstance(app_or_executor, SerialExecutor):
        _check(app_or_executor)
    tasks: list[RecordedTask] = []

    def stand_in(runner: Runner, job: Job[Any]) -> None:
        task, position = job._task, job._position
        if task is None or position is None or _is_stand_in(task):  # it was cancelled; or is looked at again
            return
        if _is_of(app_or_executor, runner):
            job._task = BackgroundTask(_Record(tasks, task, plain_key(position.lane.key)).append)

    Runner.stand_ins = (*Runner.stand_ins, stand_in)
    try:
        yield tasks
    finally:
        Runner.stand_ins = tuple(other for other in Runner.stand_ins if other is not stand_in)


def _check(app: Any) -> None:
    if not is_ordered(app):
        raise LookupError(
            f"no OrderedBackgroundMiddleware found in {safe_repr(app)}: its tasks would run. "
            "Give `recorded` the app that has the middleware"
        )
    if engine_of(app) is not None:
        raise RuntimeError(
            f"the tasks of {safe_repr(app)} are stored by its engine, and would not be recorded: "
            "in such a test add the middleware without `engine=`"
        )


def _is_of(app_or_executor: Any, runner: Runner) -> bool:
    if isinstance(app_or_executor, SerialExecutor):
        return app_or_executor._runner is runner
    return any(
        isinstance(layer, OrderedBackgroundMiddleware) and layer._lives.has(runner)
        for layer in layers(app_or_executor)
    )


def _is_stand_in(task: Any) -> bool:
    return type(getattr(getattr(task, "func", None), "__self__", None)) is _Record


class _Record:
    """What a task comes to while it is recorded."""

    def __init__(self, tasks: list[RecordedTask], task: Any, lane: Hashable) -> None:
        self.tasks = tasks
        function = getattr(task, "_fifo_function", None) or getattr(task, "func", task)
        self.entry = RecordedTask(function, getattr(task, "args", ()), getattr(task, "kwargs", {}), lane)

    async def append(self) -> None:
        self.tasks.append(self.entry)
