"""The blocks of the docs that need PostgreSQL run: each is a module of its own, in an app with the engine.

A block that has a route, or a middleware, changes an app that has not been started; its routes are then
called. Every other one runs in a handler.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any
from uuid import uuid4

import anyio
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

import fifo_background
from fifo_background import BackgroundTasks, OrderedBackgroundMiddleware, executor_of
from fifo_background.cli import tables
from fifo_background.engines.postgres import PostgresEngine
from tests.support.log import Log
from tests.support.postgres import Server
from tests.test_docs import POSTGRES, ROOT, Block, compiled

fastapi = pytest.importorskip("fastapi")
PAGE = ROOT / "docs" / "postgres.md"
PLACE = "postgresql://user@host/database"


@pytest.fixture(scope="module")
def database(postgres: Server) -> str:
    """A database with the tables of the engine, and those of the blocks."""
    dsn = postgres.database()
    anyio.run(tables.migrated, dsn)
    with psycopg.connect(dsn) as connection:
        for name in ("orders", "bookings"):
            columns = "customer text, number int, PRIMARY KEY (customer, number)"
            connection.execute(f"CREATE TABLE {name} ({columns})".encode())
    return dsn


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, database: str) -> Iterator[ModuleType]:
    """What a block runs in: its functions can be found by their import path."""
    made = ModuleType("block_of_docs")
    monkeypatch.setitem(sys.modules, made.__name__, made)
    engine = PostgresEngine(database, queue=uuid4().hex, packages=[made.__name__])
    exec("def book(customer, number): pass", vars(made))
    vars(made).update({name: getattr(fifo_background, name) for name in fifo_background.__all__})
    vars(made).update(customer="ann", number=1, engine=engine)
    return made


def query_of(dsn: str) -> str:
    """The DSN as SQLAlchemy takes it."""
    known = conninfo_to_dict(dsn)
    return f"postgresql+psycopg://{known['user']}@/{known['dbname']}?host={known['host']}"


@pytest.mark.parametrize("block", POSTGRES, ids=str)
def test_block_runs(block: Block, database: str, module: ModuleType, log: Log) -> None:
    """A block of Python in the docs runs, its routes answer, and what they add runs."""
    for name in re.findall(r"^(?:from|import) ([\w.]+)", block.text, re.MULTILINE):
        pytest.importorskip(name, exc_type=ImportError)  # SQLAlchemy's asyncio needs greenlet
    text = block.text.replace(PLACE.replace("ql:", "ql+psycopg:"), query_of(database)).replace(
        PLACE, database
    )
    code = compiled(block._replace(text=text))
    ordered = Middleware(OrderedBackgroundMiddleware, engine=module.engine)
    if "@app." in text or "add_middleware" in text:
        made = "add_middleware" in text
        app: Any = fastapi.FastAPI() if made else fastapi.FastAPI(middleware=[ordered])
        vars(module)["app"] = app
        exec(code, vars(module))
        app = module.app  # a block may make its own
        with TestClient(app) as client:
            for route in app.routes:
                if getattr(route, "include_in_schema", False):
                    path = route.path.replace("{customer}", uuid4().hex).replace("{number}", "1")
                    assert client.request(*route.methods, path).status_code == 202
            client.portal.call(executor_of(app).join)
            counts = client.portal.call(executor_of(app).statistics)["states"]
        assert set(counts) <= {"succeeded"}
    else:

        async def handler(request: Request) -> Response:
            tasks = BackgroundTasks()
            vars(module).update(tasks=tasks, request=request)
            running = eval(code, vars(module))
            if inspect.iscoroutine(running):
                await running
            return Response(background=tasks)

        host = Starlette(routes=[Route("/", handler)], middleware=[ordered])
        with TestClient(host) as client:
            assert client.get("/").status_code == 200
            client.portal.call(executor_of(host).join)
    assert [record for record in log if record.startswith(("WARNING", "ERROR"))] == []


def test_grants(postgres: Server) -> None:
    """A role with the rights of the page runs an app, and may not make tables: it is told what to run."""
    dsn, empty = postgres.database(), postgres.database()
    anyio.run(tables.migrated, dsn)
    (grants,) = re.findall(r"```sql\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    role = f"myapp_{uuid4().hex[:8]}"
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN".encode())
        for grant in filter(str.strip, grants.replace("myapp", role).split(";")):
            connection.execute(grant.encode())

    async def run() -> Any:
        engine = PostgresEngine(as_role(dsn, role), packages=["tests"])
        await engine.open()
        await (await engine.executor.submit(str_of, 1)).wait()
        counts = await engine.executor.statistics()
        await engine.close()
        return counts["states"]

    assert anyio.run(run) == {"succeeded": 1}
    with pytest.raises(fifo_background.OrderedBackgroundError, match="run `fifo-background migrate"):
        anyio.run(tables.migrated, as_role(empty, role))


def as_role(dsn: str, role: str) -> str:
    return dsn.replace(f"//{conninfo_to_dict(dsn)['user']}:@", f"//{role}@")


def str_of(number: int) -> str:
    return str(number)


def test_files() -> None:
    """The unit and the compose file of the page have the command, and time enough for its end."""
    text = PAGE.read_text(encoding="utf-8")
    (unit,) = re.findall(r"```ini\n(.*?)```", text, re.DOTALL)
    (compose,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert "RestartForceExitStatus=75" in unit
    for written in (unit, compose):
        assert "fifo-background worker myapp:app" in written
        (seconds,) = re.findall(r"(?:TimeoutStopSec=|stop_grace_period: )(\d+)", written)
        assert int(seconds) > 31


def test_demo_in_the_readme() -> None:
    """The README and the page show the same run of the demo."""
    found = [
        re.search(
            r"^200 requests to 2 apps.*?(?=\n```)", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        )
        for page in (PAGE, ROOT / "README.md")
    ]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0][0] == found[1][0]
