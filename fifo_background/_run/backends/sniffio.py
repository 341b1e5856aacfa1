"""What sniffio says of a context, where anyio still asks it."""

from __future__ import annotations

from typing import Any

__all__ = ("set_library",)

_library: Any
try:
    from sniffio import current_async_library_cvar as _library
except ImportError:  # anyio >= 4.12 does without
    _library = None


def set_library(name: str | None) -> None:
    """Make the current context one in which this async library runs; None: a worker thread's."""
    if _library is not None and _library.get() != name:
        _library.set(name)
