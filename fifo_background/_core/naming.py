"""How logs and errors name a task, or show a value: whatever the user's own code does there."""

from __future__ import annotations

import functools
from typing import Any

from starlette.background import BackgroundTask

__all__ = ("name_of", "safe_repr")


def name_of(func: object) -> str:
    """How logs and errors name a task: its qualified name, else its class's."""
    inner: Any = func
    try:
        while isinstance(inner, (functools.partial, BackgroundTask)) and hasattr(inner, "func"):
            inner = getattr(inner, "_fifo_function", None) or inner.func
        return str(getattr(inner, "__qualname__", type(inner).__qualname__))
    except Exception:  # a user's attribute may raise
        return type(func).__qualname__


def safe_repr(value: object) -> str:
    """`repr`, of an object that may not have one."""
    try:
        return repr(value)
    except Exception:
        return f"<{type(value).__name__}>"
