"""How logs and errors name a task: whatever the user's own code does there."""

from __future__ import annotations

import functools
from typing import Any

from starlette.background import BackgroundTask

from fifo_background._core.plain import type_name

__all__ = ("name_of",)


def name_of(func: object) -> str:
    """How logs and errors name a task: its qualified name, else its class's."""
    inner: Any = func
    try:
        while isinstance(inner, (functools.partial, BackgroundTask)) and hasattr(inner, "func"):
            inner = getattr(inner, "_fifo_function", None) or inner.func
        return str(getattr(inner, "__qualname__", type(inner).__qualname__))
    except Exception:  # a user's attribute may raise
        return type_name(func)
