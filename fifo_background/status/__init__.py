"""Show and operate an app's tasks: a JSON API and a live page.

Mount `StatusApp()`, or include `router()`, which needs FastAPI.
"""

from importlib.util import find_spec as _find_spec

from fifo_background.status.app import StatusApp

if _find_spec("fastapi") is not None:
    from fifo_background.status.router import router

__all__ = ("StatusApp", "router")
