"""A pytest plugin for `upstream.py`: notes each test's outcome; imports ours, or puts it into every app."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import pytest

outcomes: dict[str, str] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call":
        outcome = report.outcome
        if hasattr(report, "wasxfail"):
            outcome = "xfailed" if report.skipped else "xpassed"  # type: ignore[assignment]
        outcomes[report.nodeid] = outcome
    elif report.failed:
        outcomes[report.nodeid] = "error"
    elif report.skipped:
        outcomes[report.nodeid] = "skipped"


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        outcomes[report.nodeid] = "error"


def pytest_sessionfinish() -> None:
    Path(os.environ["UPSTREAM_OUTCOMES"]).write_text(json.dumps(outcomes), "utf-8")


def add_middleware_everywhere() -> None:
    """Make OrderedBackgroundMiddleware the outermost one of every app, and of what a test client is given."""
    import starlette.applications
    import starlette.testclient
    from starlette.middleware import Middleware

    from fifo_background import OrderedBackgroundMiddleware

    def patch(application: Any) -> None:
        original = application.__dict__["build_middleware_stack"]

        @functools.wraps(original)
        def build_middleware_stack(self: Any) -> Any:
            users = self.user_middleware
            self.user_middleware = [Middleware(OrderedBackgroundMiddleware), *users]
            try:
                return original(self)
            finally:
                self.user_middleware = users

        application.build_middleware_stack = build_middleware_stack

    patch(starlette.applications.Starlette)
    try:
        import fastapi
    except ImportError:
        pass
    else:
        if "build_middleware_stack" in fastapi.FastAPI.__dict__:
            patch(fastapi.FastAPI)

    transport = starlette.testclient._TestClientTransport
    original_init = transport.__init__

    @functools.wraps(original_init)
    def __init__(self: Any, app: Any, *args: Any, **kwargs: Any) -> None:
        if not isinstance(app, starlette.applications.Starlette):
            app = OrderedBackgroundMiddleware(app)
        original_init(self, app, *args, **kwargs)

    transport.__init__ = __init__


if os.environ.get("UPSTREAM_IMPORT"):
    import fifo_background  # noqa: F401
if os.environ.get("UPSTREAM_MIDDLEWARE"):
    add_middleware_everywhere()
