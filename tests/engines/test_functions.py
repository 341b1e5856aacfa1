"""Which functions may be stored, and which a worker calls."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from fifo_background import BackgroundTasks
from fifo_background.engines.postgres._functions import Functions, NotAllowedError
from tests.engines import work
from tests.support import apps

FUNCTIONS = Functions(["tests.engines"])


def wrapped(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper() -> Any: ...

    return wrapper


@wrapped
def decorated() -> None: ...


def hidden() -> None: ...


original, hidden = hidden, wrapped(print)  # type: ignore[assignment]
re_exported = work.sync


@pytest.mark.parametrize(
    "func", [work.quick, work.sync, work.Mailer.static, work.Mailer.Inner.deep, work.Mailer.bound, decorated]
)
def test_found_again(func: Any) -> None:
    """Functions of modules, static ones and those that are decorated are found again by their path."""
    assert FUNCTIONS.function(FUNCTIONS.path_of(func)) is func


def test_re_exported() -> None:
    """A function that another module has imported is stored under the name of its own module."""
    assert FUNCTIONS.path_of(re_exported) == "tests.engines.work:sync"


def of_main() -> Any:
    def function() -> None: ...

    function.__qualname__, function.__module__ = "function", "__main__"
    return function


def closure() -> Any:
    def inner() -> None: ...

    return inner


REFUSED: dict[str, tuple[Any, str]] = {
    "lambda": (lambda: None, "lambda has no import path.*top level"),
    "closure": (closure(), "inside another function.*top level"),
    "bound method": (work.Mailer().bound, "bound method.*an id"),
    "class method": (work.Mailer.of_class, "bound method"),
    "partial": (functools.partial(work.sync, 1), "partial.*Pass its arguments"),
    "class": (work.Mailer, "it is a class"),
    "object": (work.Mailer(), "an object that can be called"),
    "tasks object": (BackgroundTasks(), "an object that can be called"),
    "__main__": (of_main(), "`__main__`.*Move it into a module"),
    "other package": (apps.make_app, r"packages=\['tests', 'tests.engines'\]"),
    "builtin": (print, r"packages=\['builtins', 'tests.engines'\]"),
    "method of a builtin": ([].append, "belongs to no module"),
    "operator of a builtin": ([].__len__, "belongs to no module"),
    "renamed": (original, "does not lead to it"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str) -> None:
    """What another process could not find is refused, by an error that says what works."""
    func, text = REFUSED[what]
    with pytest.raises(TypeError, match=f"(?s)cannot run in another process.*{text}"):
        FUNCTIONS.path_of(func)


def test_gone() -> None:
    """A function whose module does not have it, or is not there, is refused."""

    def lost() -> None: ...

    lost.__qualname__, lost.__module__ = "lost", "tests.engines.nowhere"
    with pytest.raises(TypeError, match="does not lead to it"):
        FUNCTIONS.path_of(lost)
    with pytest.raises(TypeError, match="no package"):
        Functions([]).path_of(work.sync)


@pytest.mark.parametrize(
    "path",
    [
        "os:system",
        "builtins:eval",
        "tests.engines.test_functions:work.threading.Thread",
        "tests.engines.test_functions:functools.partial",
        "tests.engines.test_functions:re_exported",
        "tests.engines.test_functions:FUNCTIONS.function",
        "tests.engines.work:Mailer",
        "tests.engines.work:Mailer.Inner",
        "tests.engines.work:sync.__globals__",
        "tests.engines.work:sync.__class__",
        "tests.engines.work:ran",
        "tests.engines.work:Mailer.of_class",
        "tests.engines.work:nothing",
        "tests.engines.nowhere:nothing",
        "tests.engines.work",
        "tests.engines.work:",
        "tests.enginesx:sync",
        "tests:sync",
        "",
        ":",
    ],
)
def test_hostile_rows(path: str) -> None:
    """Rows of the database make a worker call nothing but functions that the app's packages define."""
    with pytest.raises(NotAllowedError):
        FUNCTIONS.function(path)


def test_local_enum() -> None:
    """An Enum that another process could not find is refused."""
    from enum import Enum

    class Local(Enum):
        ONE = 1

    with pytest.raises(TypeError, match="inside a function"):
        FUNCTIONS.path_of_enum(Local)
