"""How one task is called: straight, or through whatever others have put around it.

Instrumentations replace `BackgroundTask.__call__`, users override it, FastAPI opens a span in its
`BackgroundTasks.__call__`. Knows nothing of lanes and requests, and starts no thread: it is told how.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Awaitable, Callable, Coroutine
from inspect import CO_COROUTINE
from types import FunctionType, MethodType
from typing import Any, TypeVar

import starlette.background
from starlette.background import BackgroundTask, BackgroundTasks

__all__ = (
    "STARLETTES_ADD",
    "STARLETTES_CALL",
    "Around",
    "around_here",
    "call",
    "drive",
    "is_starlettes",
    "is_starlettes_call",
    "make_task",
    "overrides_call",
    "run_here",
)

T = TypeVar("T")
RunSync = Callable[[Callable[[], Any]], Awaitable[Any]]
Around = type[BackgroundTasks] | None

# What FastAPI does around each task in the current context: its own `BackgroundTasks` where it opens a span.
# Set once, by `_fastapi`.
around_here: Callable[[], Around] = lambda: None  # noqa: E731


def is_starlettes(function: Any) -> bool:
    """Whether this is the function that Starlette defines, not one that wraps or replaces it."""
    return type(function) is FunctionType and function.__globals__ is starlette.background.__dict__


def is_starlettes_call(function: Any) -> bool:
    """Whether this is Starlette's `BackgroundTask.__call__`."""
    return is_starlettes(function) and function.__qualname__ == "BackgroundTask.__call__"


def overrides_call(task: BackgroundTask) -> bool:
    """Whether a class below `BackgroundTask` says how the task is called.

    Not by comparing functions: some instrumentations give a new one each time the attribute is looked up.
    """
    return next((base for base in type(task).__mro__ if "__call__" in vars(base)), None) is not BackgroundTask


# Starlette's own, unless somebody has replaced it already: what `is` this needs no closer look.
STARLETTES_CALL: Any = BackgroundTask.__call__ if is_starlettes_call(BackgroundTask.__call__) else None
STARLETTES_ADD: Any = BackgroundTasks.add_task if is_starlettes(BackgroundTasks.add_task) else None
# The same of what builds a task, as long as it sets no more than `make_task` does.
STARLETTES_INIT: Any = (
    BackgroundTask.__init__
    if is_starlettes(BackgroundTask.__init__)
    and vars(BackgroundTask(print)).keys() == {"func", "args", "kwargs", "is_async"}
    else None
)


def make_task(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> BackgroundTask:
    """`BackgroundTask(func, *args, **kwargs)`, whatever the names in `kwargs`, `func` and `self` included.

    Starlette's constructor takes as long as all the rest of `add_task` to find out that a plain `def`
    function is not async. Of a function that has no attributes, and so no mark, the code alone tells.
    """
    plain: Any = func
    if type(func) is MethodType:
        plain = plain.__func__
    if type(plain) is FunctionType and not plain.__dict__ and BackgroundTask.__init__ is STARLETTES_INIT:
        task: Any = object.__new__(BackgroundTask)
        task.func = func
        task.is_async = bool(plain.__code__.co_flags & CO_COROUTINE)
    else:
        task = BackgroundTask(func)
    task.args = args
    task.kwargs = kwargs
    made: BackgroundTask = task
    return made


async def call(task: BackgroundTask, run_sync: RunSync, around: Around) -> Any:
    """Call the task the way Starlette and FastAPI would, and return what its function returned."""
    if around is None or not hasattr(task, "func"):
        return await _call_task(task, run_sync)
    stand_in = _StandIn(task, run_sync)
    shell = around()
    entries: list[BackgroundTask] = [stand_in]
    shell.tasks = entries
    await shell()
    return stand_in.returned


class _StandIn(BackgroundTask):
    """Stands for a task where somebody else calls it, and keeps what its function returned."""

    def __init__(self, task: BackgroundTask, run_sync: RunSync) -> None:
        self.func = task.func
        self.task = task
        self.run_sync = run_sync
        self.returned: Any = None

    async def __call__(self) -> None:
        self.returned = await _call_task(self.task, self.run_sync)


async def _call_task(task: BackgroundTask, run_sync: RunSync) -> Any:
    own_call = type(task).__call__
    if is_starlettes_call(own_call):
        return await _call_func(task, run_sync)
    if is_starlettes(own_call) and isinstance(task, BackgroundTasks):  # a plain list as an entry
        for entry in task.tasks:
            await _call_task(entry, run_sync)
        return None
    if overrides_call(task):
        return await task()
    # replaced for all tasks: it gets a copy whose function keeps what it returned
    returned: Any = None

    @functools.wraps(task.func)
    async def func(*args: Any, **kwargs: Any) -> Any:
        nonlocal returned
        returned = await _call_func(task, run_sync)

    shown = copy.copy(task)
    shown.func = func
    shown.__dict__["is_async"] = True
    await shown()
    return returned


async def _call_func(task: BackgroundTask, run_sync: RunSync) -> Any:
    if task.is_async:
        return await task.func(*task.args, **task.kwargs)
    return await run_sync(functools.partial(task.func, *task.args, **task.kwargs))


async def run_here(call: Callable[[], T]) -> T:
    """`run_sync` for a caller that is in a worker thread already: never suspends."""
    return call()


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends to its end, in this thread."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise RuntimeError("a wrapper around a sync task awaited something in the task's thread")
