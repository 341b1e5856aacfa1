"""How one task is called: directly, or through whatever others have put around it.

Instrumentations replace `BackgroundTask.__call__`, of Starlette's class or of ours; users override it;
FastAPI opens a span in its `BackgroundTasks.__call__`. Knows nothing of lanes and requests, and starts no
thread: it is told how.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Awaitable, Callable, Coroutine
from inspect import CO_COROUTINE
from types import BuiltinMethodType, FunctionType, MethodType, ModuleType
from typing import Any, TypeVar, cast

import starlette.background
from starlette.background import BackgroundTask, BackgroundTasks

from fifo_background._arguments import check_arguments
from fifo_background.exceptions import safe_repr

__all__ = (
    "call",
    "drive",
    "identity_of",
    "is_direct",
    "is_starlettes",
    "make_task",
    "not_callable",
    "overrides_call",
    "own_class",
    "run_here",
)

T = TypeVar("T")
B = TypeVar("B", bound=BackgroundTask)
RunSync = Callable[[Callable[[], Any]], Awaitable[Any]]
Around = type[BackgroundTasks] | None


def is_starlettes(function: Any) -> bool:
    """Whether this is the function that Starlette defines, not one that wraps or replaces it."""
    return type(function) is FunctionType and function.__globals__ is starlette.background.__dict__


def is_starlettes_call(function: Any) -> bool:
    """Whether this is Starlette's `BackgroundTask.__call__`."""
    return is_starlettes(function) and function.__qualname__ == "BackgroundTask.__call__"


# Starlette's own, unless somebody has replaced it already: what `is` this needs no closer look.
STARLETTES_CALL: Any = BackgroundTask.__call__ if is_starlettes_call(BackgroundTask.__call__) else None


class _OwnClass:
    """Our class of tasks, and its own `__call__`: set once, where it is defined."""

    task: type[BackgroundTask] = BackgroundTask
    call: Any = None
    in_span: Callable[[], None] | None = None  # see `spans.py`


own_class = _OwnClass()


def is_direct(task: BackgroundTask) -> bool:
    """Whether calling the task comes to calling its function: nobody has put anything around it."""
    kind = type(task)
    if kind is own_class.task:
        if kind.__call__ is not own_class.call:
            return False
    elif kind is not BackgroundTask:
        return False
    starlettes = BackgroundTask.__call__
    return starlettes is STARLETTES_CALL or is_starlettes_call(starlettes)


def identity_of(task: Any) -> object:
    """What stands for the function of a task: the same function, or the same method of the same object.

    Nothing of a user's is asked: no `__eq__`, no `__hash__`.
    """
    func = getattr(task, "_fifo_function", None) or getattr(task, "func", task)
    if isinstance(func, MethodType):
        return id(func.__self__), id(func.__func__)
    if isinstance(func, BuiltinMethodType) and not isinstance(func.__self__, ModuleType):
        return id(func.__self__), func.__name__
    return id(func)


def overrides_call(task: BackgroundTask) -> bool:
    """Whether a class below Starlette's and ours says how the task is called.

    Not by comparing functions: some instrumentations give a new one each time the attribute is looked up.
    """
    return _who_calls(task) not in (BackgroundTask, own_class.task)


def _who_calls(task: BackgroundTask) -> type | None:
    return next((base for base in type(task).__mro__ if "__call__" in vars(base)), None)


# What builds a task, as long as it sets no more than `make_task` does.
STARLETTES_INIT: Any = (
    BackgroundTask.__init__
    if is_starlettes(BackgroundTask.__init__)
    and vars(BackgroundTask(print)).keys() == {"func", "args", "kwargs", "is_async"}
    else None
)


def make_task(
    where: str, kind: type[B], func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> B:
    """`kind(func, *args, **kwargs)`, whatever the names in `kwargs`, `func` and `self` included.

    Raises TypeError, for the method `where`, if a plain function does not take these arguments.

    Starlette's constructor takes as long as all the rest of `add_task` to find out that a plain `def`
    function is not async. Of a function that has no attributes, and so no mark, the code alone tells.
    """
    task: Any = object.__new__(kind)
    if BackgroundTask.__init__ is not STARLETTES_INIT:  # somebody's own, which may change all of it
        BackgroundTask.__init__(task, func, *args, **kwargs)
        task._fifo_function = func
        return task  # type: ignore[no-any-return]
    plain: Any = func
    if type(plain) is MethodType:
        plain = plain.__func__
    if type(plain) is FunctionType and not plain.__dict__:
        code = plain.__code__
        given = len(args) + (plain is not func)
        if given != code.co_argcount or kwargs or code.co_kwonlyargcount:
            check_arguments(where, func, args, kwargs)
        task.func = func
        task.is_async = bool(code.co_flags & CO_COROUTINE)
    else:
        BackgroundTask.__init__(task, func)
    task.args = args
    task.kwargs = kwargs
    return task  # type: ignore[no-any-return]


def not_callable(where: str, func: object) -> TypeError:
    """The error for a task that is not one, which says what to write."""
    return TypeError(
        f"{where} takes a function and then its arguments, got {safe_repr(func)}: "
        f"write {where}(func, argument), not {where}(func(argument))"
    )


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
        self.returned = await _call_task(self.task, self.run_sync, True)


async def _call_task(task: BackgroundTask, run_sync: RunSync, wrapped: bool = False) -> Any:
    """`wrapped`: somebody else is around the task already."""
    caller = _who_calls(task)
    if caller is BackgroundTasks and is_starlettes(BackgroundTasks.__call__):  # a plain list as an entry
        for entry in cast(BackgroundTasks, task).tasks:
            await _call_task(entry, run_sync, wrapped)
        return None
    if caller is not BackgroundTask and caller is not own_class.task:
        return await task()
    kept = _Kept(task, run_sync, wrapped)
    is_replaced = own_class.task.__call__ is not own_class.call
    if caller is own_class.task and is_replaced and "_fifo_is_alone" not in vars(task):
        return await kept.through(own_class.task)
    if not is_starlettes_call(BackgroundTask.__call__):
        return await kept.through(BackgroundTask)
    return await kept.call()


class _Kept:
    """Calls a task's function, and keeps what it returned where those around it do not."""

    def __init__(self, task: BackgroundTask, run_sync: RunSync, wrapped: bool) -> None:
        self.wrapped = wrapped
        self.task = task
        self.run_sync = run_sync
        self.returned: Any = None

    async def call(self) -> Any:
        task = self.task
        if self.wrapped and own_class.in_span is not None:
            own_class.in_span()
        if task.is_async:
            return await task.func(*task.args, **task.kwargs)
        return await self.run_sync(functools.partial(task.func, *task.args, **task.kwargs))

    async def through(self, kind: type[BackgroundTask]) -> Any:
        """Through the `__call__` of a class that somebody has replaced: it gets a copy of the task."""
        task, self.wrapped = self.task, True

        @functools.wraps(task.func)
        async def func(*args: Any, **kwargs: Any) -> Any:
            if kind is not BackgroundTask and not is_starlettes_call(BackgroundTask.__call__):
                self.returned = await self.through(BackgroundTask)
            else:
                self.returned = await self.call()

        if not hasattr(task.func, "__name__"):  # a partial, or an instance
            func.__name__ = func.__qualname__ = type(task.func).__name__
        shown: BackgroundTask = copy.copy(task) if type(task) is kind else object.__new__(kind)
        shown.__dict__.update({**vars(task), "func": func, "is_async": True, "_fifo_is_shown": True})
        await shown()
        return self.returned


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
