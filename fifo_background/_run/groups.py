"""Real exception groups, where there are any: of a foreign exception no attribute is looked at."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ("GROUPS", "is_group_of")

GROUPS: tuple[Any, ...] = ()
if sys.version_info >= (3, 11):
    GROUPS = (BaseExceptionGroup,)  # noqa: F821
else:
    try:
        from exceptiongroup import BaseExceptionGroup  # type: ignore[import-not-found, unused-ignore]
    except ImportError:  # anyio < 4 brings none
        pass
    else:
        GROUPS = (BaseExceptionGroup,)


def is_group_of(error: BaseException, kind: type[BaseException]) -> bool:
    """Whether this is a group of nothing but errors of that kind."""
    look: list[Any] = [error]
    found = False
    while look:
        one = look.pop()
        if issubclass(type(one), GROUPS):
            look += one.exceptions
            found = True
        elif not issubclass(type(one), kind):
            return False
    return found
