"""FastAPI's span around each task of a list, and FastAPI's `add_task`; nothing where FastAPI has none."""

from __future__ import annotations

from typing import Any

from starlette.background import BackgroundTasks

from fifo_background._run.call import Around, is_starlettes

__all__ = ("around_here",)

fastapi_tasks: Any
get_telemetry_data: Any
telemetry_context: Any
try:
    from fastapi import BackgroundTasks as fastapi_tasks
except ImportError:
    fastapi_tasks = BackgroundTasks
try:
    from fastapi.telemetry import get_telemetry_data
    from opentelemetry.context import get_current as telemetry_context
except ImportError:  # FastAPI < 0.142 has none
    get_telemetry_data = telemetry_context = None

if telemetry_context is None or is_starlettes(fastapi_tasks.__call__):

    def around_here() -> Around:
        """None: FastAPI opens no spans."""
        return None

else:

    def around_here() -> Around:
        """FastAPI's own class, if its telemetry is on in this context: it opens a span around each task."""
        if not telemetry_context():  # nothing at all is in it: the quickest look there is
            return None
        return None if get_telemetry_data() is None else fastapi_tasks
