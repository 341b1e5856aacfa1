"""Fixtures of pytest, for who asks for them: `pytest_plugins = ["fifo_background.testing.plugin"]`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from fifo_background.testing import draining, recording

__all__ = ("drained", "recorded")


@pytest.fixture
def drained() -> Callable[[Any], Awaitable[None] | None]:
    """`drained(client)` in a sync test with a `TestClient`; `await drained(app)` in an async one."""

    def drain(client_or_app: Any) -> Awaitable[None] | None:
        if not hasattr(client_or_app, "portal"):
            return draining.drained(client_or_app)
        if client_or_app.portal is None:
            raise RuntimeError(
                "without `with TestClient(app) as client:` each request has its own event loop"
            )
        client_or_app.portal.call(draining.drained, client_or_app.app)
        return None

    return drain


@pytest.fixture
def recorded() -> Iterator[Callable[[Any], list[recording.RecordedTask]]]:
    """`tasks = recorded(app)`: from here to the end of the test, tasks are recorded instead of run."""
    with ExitStack() as stack:
        yield lambda app: stack.enter_context(recording.recorded(app))
