"""Whether the server runs this app in several processes, as far as it can be told from inside one of them.

Nothing is guessed from the environment or from command lines: the server itself has read these, and its own
function that started this worker is still on the stack, with what it was told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import currentframe
from typing import Any

__all__ = ("several_processes",)


def several_processes() -> str | None:
    """What shows that this process is one of several workers; None for one, or where nothing is known.

    To be called in the event loop, below the server. A loop of a test, or in a thread, is below none.
    """
    frame = currentframe()
    while frame is not None:
        seen_by = _WORKERS.get((frame.f_globals.get("__name__"), frame.f_code.co_name))
        if seen_by is not None:
            try:
                return seen_by(frame.f_locals)
            except Exception:
                return None  # a version of the server with other names
        frame = frame.f_back
    return None


def _several(server: str, workers: int) -> str | None:
    return f"{server} with {workers} workers" if workers > 1 else None


def _uvicorn(names: Mapping[str, Any]) -> str | None:
    config = names["config"]
    return None if config.reload else _several("uvicorn", config.workers)  # --reload ignores the number


def _hypercorn(names: Mapping[str, Any]) -> str | None:
    return _several("hypercorn", names["config"].workers)


def _gunicorn(names: Mapping[str, Any]) -> str | None:
    return _several("gunicorn", names["self"].num_workers)  # it forks below its arbiter


def _granian(names: Mapping[str, Any]) -> str | None:
    """A worker knows its number alone: all but the first one know that there are others."""
    number = names["worker_id"]
    return f"granian's worker {number}" if number > 1 else None


# The function of each server that a worker process runs in, by module and name.
_WORKERS: dict[tuple[str | None, str], Callable[[Mapping[str, Any]], str | None]] = {
    ("uvicorn._subprocess", "subprocess_started"): _uvicorn,
    ("hypercorn.asyncio.run", "asyncio_worker"): _hypercorn,
    ("hypercorn.asyncio.run", "uvloop_worker"): _hypercorn,
    ("hypercorn.trio.run", "trio_worker"): _hypercorn,
    ("gunicorn.arbiter", "spawn_worker"): _gunicorn,
    ("granian.server.mp", "wrapped"): _granian,
}
