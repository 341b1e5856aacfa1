"""Which functions may be stored, by the path at which another process finds them.

Rows of a database say what a worker calls. So a worker calls nothing but functions of the packages that the
app has named, and each only under the name that it was defined with.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from enum import Enum
from importlib import import_module
from typing import Any

from fifo_background._core.naming import name_of
from fifo_background.exceptions import safe_repr

__all__ = ("Functions", "NotAllowedError", "NotThereError")


class NotAllowedError(LookupError):
    """A row names a function or an Enum that this app does not allow, or does not have."""


class NotThereError(NotAllowedError):
    """It would be allowed, and this process does not have it: another version of the app may."""


class Functions:
    """The functions of some packages, such as `{"myapp"}`."""

    def __init__(self, packages: Iterable[str]) -> None:
        self.packages: frozenset[str] = frozenset(packages)

    def path_of(self, func: Any) -> str:
        """Where a function is found: "module:name". Raises TypeError, with what works, for what is not."""
        name = name_of(func)
        if isinstance(func, functools.partial):
            raise _cannot(name, "a partial has no import path", "pass its arguments to `add_task` instead")
        if inspect.ismethod(func):
            raise _cannot(
                name,
                "a bound method belongs to an object of this process",
                "write a function of a module, and pass it what it needs to find the object, such as an id",
            )
        if isinstance(func, type):
            raise _cannot(name, "it is a class", "write a function of a module that makes the object")
        if not isinstance(getattr(func, "__qualname__", None), str):
            raise _cannot(name, "it is an object that can be called", "write a function of a module")
        if "<lambda>" in func.__qualname__:
            raise _cannot(name, "a lambda has no import path", "write `def` at the top level of a module")
        if "<locals>" in func.__qualname__:
            raise _cannot(
                name,
                "it is defined inside another function",
                "move it to the top level of its module, and pass what it uses as arguments",
            )
        return self._checked(func, name)

    def path_of_enum(self, kind: type[Enum]) -> str:
        """Where an Enum is found. Raises TypeError for one that another process cannot find."""
        name = f"the Enum {kind.__qualname__}"
        if "<locals>" in kind.__qualname__:
            raise _cannot(name, "it is defined inside a function", "move it to the top level of its module")
        return self._checked(kind, name)

    def _checked(self, found: Any, name: str) -> str:
        module: str | None = getattr(found, "__module__", None)
        if module is None:  # of a method of a built-in object
            raise _cannot(name, "it belongs to no module", "write a function of a module")
        if module == "__main__":
            raise _cannot(
                name,
                "it is in the program that was started (`__main__`), which workers do not import",
                "move it into a module",
            )
        if not self._has(module):
            allowed = ", ".join(sorted(map(repr, self.packages))) or "no package"
            more = sorted({*self.packages, module.partition(".")[0]})
            raise _cannot(
                name,
                f"it is in {module!r}, and workers of this app run functions of {allowed}",
                f"allow its package: `PostgresEngine(dsn, packages={more})`",
            )
        path = f"{module}:{found.__qualname__}"
        try:
            same = _at(path) is found
        except (ImportError, AttributeError):
            same = False
        if not same:
            why = f"{path} does not lead to it"
            raise _cannot(name, why, "give the function the name that its module has for it")
        return path

    def function(self, path: str) -> Callable[..., Any]:
        """The function at a path. Raises `NotAllowedError` for what is not, or may not be called."""
        found = self._find(path)
        if not callable(found) or isinstance(found, type):
            raise NotAllowedError(f"{path} is not a function")
        function: Callable[..., Any] = found
        return function

    def enum(self, path: str) -> type[Enum]:
        """The Enum at a path. Raises `NotAllowedError` for what is none."""
        found = self._find(path)
        if not (isinstance(found, type) and issubclass(found, Enum)):
            raise NotAllowedError(f"{path} is not an Enum")
        return found

    def _find(self, path: str) -> Any:
        module, _, name = path.partition(":")
        if not name or not self._has(module):
            raise NotAllowedError(
                f"a row names {path!r}, and this app allows {sorted(self.packages)}: see `packages`"
            )
        try:
            found = _at(path)
        except (ImportError, AttributeError) as error:
            raise NotThereError(f"{path} is not there: {error}") from error
        own = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
        if own != (module, name):  # what a module has imported is not its own
            raise NotAllowedError(f"{path} is something else: {safe_repr(found)}")
        return found

    def _has(self, module: str) -> bool:
        return any(module == one or module.startswith(f"{one}.") for one in self.packages)


def _at(path: str) -> Any:
    module, _, name = path.partition(":")
    found: Any = import_module(module)
    for part in name.split("."):
        found = inspect.getattr_static(found, part) if isinstance(found, type) else getattr(found, part)
    return found.__func__ if isinstance(found, staticmethod) else found


def _cannot(name: str, why: str, instead: str) -> TypeError:
    return TypeError(f"{name} cannot run in another process: {why}. {instead[:1].upper()}{instead[1:]}")
