"""Whether the arguments of a task fit its function: a mistake is told where it is made.

Only plain functions are checked. Mocks, and functions that wrap others, may take more than their code says.
"""

from __future__ import annotations

import inspect
from inspect import CO_VARARGS, CO_VARKEYWORDS
from types import FunctionType, MethodType
from typing import Any

from fifo_background._core.naming import name_of
from fifo_background.exceptions import safe_repr

__all__ = ("check_arguments", "only_a_key")

_OF_LANES = frozenset({"keep", "max_waiting", "after_failure"})


def check_arguments(where: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise TypeError if `func(*args, **kwargs)` would, for a plain function, or a method of one.

    `where`: the method that was called with them.
    """
    plain: Any = func.__func__ if type(func) is MethodType else func
    if _fits(plain, len(args) + (plain is not func), kwargs):
        return
    signature = inspect.signature(func)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        name = name_of(func)
        text = f"{name} cannot be called with the arguments that `{where}` was given: {error}"
        unknown = ((option, value) for option, value in kwargs.items() if option not in signature.parameters)
        call = next(filter(None, (_call(where, option, value) for option, value in unknown)), None)
        if call is not None:
            text += f". Give an option before the task: write `{call}.{where}({name}, ...)`"
        raise TypeError(text) from None


def _fits(func: FunctionType, given: int, kwargs: dict[str, Any]) -> bool:
    """Whether a call fits; in doubt True. `inspect` knows, but takes ten times as long as `add_task`."""
    code = func.__code__
    most, names = code.co_argcount, code.co_varnames
    if given > most:
        if not code.co_flags & CO_VARARGS:
            return False
        given = most
    least = most - len(func.__defaults__ or ())
    if not (kwargs or code.co_kwonlyargcount):
        return given >= least
    needed, end = names[given:least], most + code.co_kwonlyargcount
    if code.co_kwonlyargcount:
        defaults = func.__kwdefaults__ or {}
        needed += tuple(name for name in names[most:end] if name not in defaults)
    by_name = names[max(given, code.co_posonlyargcount) : end]
    takes_any = bool(code.co_flags & CO_VARKEYWORDS)
    return all(name in kwargs for name in needed) and (takes_any or all(name in by_name for name in kwargs))


def _call(where: str, name: str, value: object) -> str | None:
    """How an option is given to `add_task`, `submit_nowait` or `submit`. None for what is none."""
    tasks = "tasks" if where == "add_task" else "await executor" if where == "submit" else "executor"
    if name == "lane":
        return f"{tasks}.lane({safe_repr(value)})"
    if name in _OF_LANES:
        return f"{tasks}.lane(key, {name}={safe_repr(value)})"
    if name == "timeout" or (name == "wait" and where == "add_task"):
        return f"{tasks}.options({name}={safe_repr(value)})"
    return None


def only_a_key(call: str) -> TypeError:
    """The error for `lane(func, 1)`, which says what to write."""
    return TypeError(f"`lane` takes one key, and no task: write `{call}`")
