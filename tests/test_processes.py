"""What an app sees of the server that runs it. Servers are functions here, named as theirs are.

`tests/servers/test_processes.py` has the real ones.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from starlette.testclient import TestClient

from fifo_background._processes import several_processes
from tests.support.apps import make_app
from tests.support.asgi import get
from tests.support.log import Log
from tests.support.loops import LOOPS, backend_of

WARNING = (
    "WARNING this app runs in several processes (uvicorn with 4 workers). Each has a queue of its own, so "
    "order is kept within each process only. Start one worker; or install `fifo-background[postgres]`, and "
    "all processes keep one order: "
    "`app.add_middleware(OrderedBackgroundMiddleware, engine=PostgresEngine(dsn))`"
)


def below(module: str, function: str, name: str, value: object) -> Callable[[Callable[[], Any]], Any]:
    """Calls below a server's function, which knows `value` under `name`."""
    names: dict[str, Any] = {"__name__": module}
    exec(f"def {function}({name}, call):\n    return call()", names)
    return lambda call: names[function](value, call)


def uvicorn(workers: int, *, reload: bool = False) -> Callable[[Callable[[], Any]], Any]:
    config = SimpleNamespace(workers=workers, reload=reload)
    return below("uvicorn._subprocess", "subprocess_started", "config", config)


def hypercorn(backend: str, workers: int) -> Callable[[Callable[[], Any]], Any]:
    module = "hypercorn.trio.run" if backend == "trio" else "hypercorn.asyncio.run"
    return below(module, f"{backend}_worker", "config", SimpleNamespace(workers=workers))


def gunicorn(workers: int) -> Callable[[Callable[[], Any]], Any]:
    return below("gunicorn.arbiter", "spawn_worker", "self", SimpleNamespace(num_workers=workers))


def granian(number: int) -> Callable[[Callable[[], Any]], Any]:
    return below("granian.server.mp", "wrapped", "worker_id", number)


@pytest.mark.parametrize(
    ("server", "seen"),
    [
        (uvicorn(4), "uvicorn with 4 workers"),
        (uvicorn(1), None),
        (uvicorn(1, reload=True), None),
        (uvicorn(4, reload=True), None),
        (hypercorn("asyncio", 2), "hypercorn with 2 workers"),
        (hypercorn("uvloop", 3), "hypercorn with 3 workers"),
        (hypercorn("trio", 4), "hypercorn with 4 workers"),
        (hypercorn("asyncio", 1), None),
        (hypercorn("asyncio", 0), None),
        (gunicorn(2), "gunicorn with 2 workers"),
        (gunicorn(1), None),
        (granian(1), None),
        (granian(2), "granian's worker 2"),
    ],
)
def test_seen(server: Callable[[Callable[[], Any]], Any], seen: str | None) -> None:
    """Each server's worker is known by the function that it runs in, with the number that the server took."""
    assert server(several_processes) == seen


@pytest.mark.parametrize(
    "server",
    [
        below("uvicorn._subprocess", "subprocess_started", "settings", SimpleNamespace(workers=4)),
        below("hypercorn.asyncio.run", "asyncio_worker", "config", SimpleNamespace()),
        below("gunicorn.arbiter", "spawn_worker", "self", SimpleNamespace(num_workers=None)),
        below("gunicorn.arbiter", "manage_workers", "self", SimpleNamespace(num_workers=4)),
        below("hypercorn.asyncio.run", "worker_serve", "config", SimpleNamespace(workers=4)),
    ],
)
def test_unknown(server: Callable[[Callable[[], Any]], Any]) -> None:
    """Nothing is said of a server that has other names, and nothing fails."""
    assert server(several_processes) is None


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """`WEB_CONCURRENCY` alone says nothing: the server may not read it, or may be told another number."""
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    assert several_processes() is None
    assert uvicorn(1)(several_processes) is None


async def live(app: Any) -> None:
    """The app's lifespan, and a request in it."""
    messages = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive() -> dict[str, str]:
        return {"type": next(messages)}

    async def send(message: Any) -> None:
        if message["type"] == "lifespan.startup.complete":
            await get(app)

    await app({"type": "lifespan", "state": {}}, receive, send)


async def request_twice(app: Any) -> None:
    await get(app)
    await get(app)


@pytest.mark.parametrize("loop", LOOPS)
def test_said_at_startup(loop: str, log: Log) -> None:
    """An app in several processes says so once, at its start, and what to write."""
    app = make_app()
    with backend_of(loop) as (backend, options):
        for _ in range(2):  # it is started again
            uvicorn(4)(lambda: anyio.run(live, app, backend=backend, backend_options=options))
    assert log == [WARNING]


@pytest.mark.parametrize("loop", LOOPS)
def test_said_at_first_request(loop: str, log: Log) -> None:
    """Without a lifespan, an app in several processes says it once, at its first request."""
    app = make_app()

    with backend_of(loop) as (backend, options):
        uvicorn(4)(lambda: anyio.run(request_twice, app, backend=backend, backend_options=options))
    assert log == [WARNING]


@pytest.mark.parametrize("loop", LOOPS)
def test_one_process(loop: str, log: Log) -> None:
    """An app in one process says nothing."""
    with backend_of(loop) as (backend, options):
        uvicorn(1)(lambda: anyio.run(live, make_app(), backend=backend, backend_options=options))
    assert log == []


def test_page() -> None:
    """The page on production shows the record as it is."""
    page = Path(__file__).parent.parent / "docs" / "production.md"
    assert WARNING.replace("WARNING", "WARNING fifo_background:") in page.read_text(encoding="utf-8")


def test_client(log: Log) -> None:
    """A TestClient has a loop of its own: it is silent, also in a worker, which may test itself."""

    def test() -> None:
        with TestClient(make_app()) as client:
            assert client.get("/").status_code == 404

    uvicorn(4)(test)
    assert log == []
