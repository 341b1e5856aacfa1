"""Which requests hold a position with `order="arrived"` by default: those that ask for our class."""

from typing import Annotated, Any

import anyio
import anyio.to_thread
import pytest
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route
from starlette.staticfiles import StaticFiles

from fifo_background import BackgroundTasks, OrderedBackgroundMiddleware
from tests.support.asgi import Client, get, http_scope
from tests.support.log import Log

fastapi = pytest.importorskip("fastapi")
from fifo_background._fastapi.routes import any_asks_for_tasks, asks_for_tasks  # noqa: E402


async def _asks(asked: Any, path: str, **scope: Any) -> bool:
    """The answer before a request is routed; its scope is left alone."""
    given = http_scope(path, **scope)
    before = dict(given)
    answer = asks_for_tasks(asked, given)
    assert given == before
    return answer


async def test_default_for_fastapi() -> None:
    """By default a request holds a position if its endpoint asks for our class, at any depth."""

    def needs(tasks: BackgroundTasks) -> None: ...

    def through(it: Annotated[None, fastapi.Depends(needs)]) -> None: ...

    def nothing() -> None: ...

    def ours(tasks: BackgroundTasks) -> None: ...

    def plain(tasks: fastapi.BackgroundTasks) -> None: ...

    def deep(it: Annotated[None, fastapi.Depends(through)]) -> None: ...

    def overridden(it: Annotated[None, fastapi.Depends(nothing)]) -> None: ...

    def add_all(router: Any) -> Any:
        for endpoint in (ours, plain, deep, overridden, nothing):
            router.get(f"/{endpoint.__name__}")(endpoint)
        router.post("/items/{item}")(ours)
        return router

    def wrap(app: Any) -> Any:
        return BaseHTTPMiddleware(app, dispatch=None)

    app = add_all(fastapi.FastAPI())
    inner = add_all(fastapi.APIRouter(prefix="/inner"))
    middle = fastapi.APIRouter(prefix="/middle")
    middle.include_router(inner)
    needy = fastapi.APIRouter(prefix="/needy", dependencies=[fastapi.Depends(needs)])
    needy.get("/nothing")(nothing)
    app.include_router(middle)
    app.include_router(middle, prefix="/again")
    app.include_router(needy)
    app.mount("/sub", add_all(fastapi.FastAPI()))
    app.mount("/wrapped", wrap(add_all(fastapi.FastAPI())))
    app.mount("/files", StaticFiles(directory="."))
    app.mount("/function", lambda scope, receive, send: None)
    app.add_route("/starlette", lambda request: PlainTextResponse())  # type: ignore[arg-type]
    outer = Starlette(
        routes=[
            Mount("/mounted", routes=[Mount("/app", app=app)]),
            Host("host.example", app=app),
            Route("/plain", PlainTextResponse()),  # type: ignore[arg-type]
        ]
    )
    for prefix in ("", "/middle/inner", "/again/middle/inner", "/sub", "/wrapped"):
        for name, expected in {
            "ours": True,
            "deep": True,
            "plain": False,
            "overridden": False,
            "nothing": False,
            "ours/": False,
            "missing": False,
        }.items():
            assert await _asks(app, f"{prefix}/{name}") is expected, (prefix, name)
            assert await _asks(outer, f"/mounted/app{prefix}/{name}") is expected, (prefix, name)
        assert not await _asks(app, f"{prefix}/ours", method="POST")
        assert await _asks(app, f"{prefix}/items/7", method="POST")
    for path in ("/files/x", "/function/x", "/starlette"):
        assert not await _asks(app, path)
    assert await _asks(app, "/needy/nothing")
    assert await _asks(outer, "/ours", headers=[(b"host", b"host.example")])
    assert not await _asks(outer, "/plain")
    app.dependency_overrides[nothing] = needs
    assert await _asks(app, "/overridden")
    assert await _asks(app, "/middle/inner/overridden")
    assert not await _asks(app, "/sub/overridden")
    assert any_asks_for_tasks(app, http_scope())
    assert any_asks_for_tasks(outer, http_scope())


async def test_unrelated_classes_hold_a_position() -> None:
    """A route that asks for two unrelated classes arrives, and fails with its own error."""

    class One(BackgroundTasks): ...

    class Two(BackgroundTasks): ...

    def needs(tasks: One) -> None: ...

    app = fastapi.FastAPI()

    def endpoint(tasks: Two, it: None = fastapi.Depends(needs)) -> None: ...

    app.get("/")(endpoint)
    assert await _asks(app, "/")


@pytest.mark.parametrize("limit", [1, 40])
async def test_threads_cannot_reorder(limit: int, events: list[Any]) -> None:
    """`def` endpoints run in threads, which anyio < 3.7 wakes last in first out: still in order."""
    app = fastapi.FastAPI()
    app.add_middleware(OrderedBackgroundMiddleware, order="arrived")

    @app.get("/{n}")
    def endpoint(n: int, tasks: BackgroundTasks) -> int:
        tasks.add_task(events.append, n)
        return n

    limiter = anyio.to_thread.current_default_thread_limiter()
    before = limiter.total_tokens
    limiter.total_tokens = limit
    try:
        async with anyio.create_task_group() as group:
            client = Client(app, group)
            for n in range(10):
                group.start_soon(client.start, f"/{n}")
                await anyio.sleep(0)
    finally:
        limiter.total_tokens = before
    assert events == list(range(10))


async def test_unknown_apps() -> None:
    """An app without routes, and a route that cannot match, ask for nothing."""

    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    class Route:
        def matches(self, scope: Any) -> Any:
            raise ValueError

    class Router:
        routes = (Route(),)

    assert not await _asks(app, "/")
    assert not await _asks(Router(), "/")
    assert not await _asks(app, "/", app=Router())
    assert not any_asks_for_tasks(app, http_scope())
    assert not any_asks_for_tasks(app, http_scope(app=Router()))


async def test_warns_where_nothing_arrives(log: Log) -> None:
    """`order="arrived"` where no route asks for our class, and no `may_add_tasks` is given, warns once."""

    def plain(tasks: fastapi.BackgroundTasks) -> None: ...

    def ours(tasks: BackgroundTasks) -> None: ...

    def make(endpoint: Any, **settings: Any) -> Any:
        app = fastapi.FastAPI()
        app.include_router(fastapi.APIRouter(prefix="/x"))
        app.get("/")(endpoint)
        app.add_middleware(OrderedBackgroundMiddleware, order="arrived", **settings)
        return app

    async def warnings(app: Any) -> list[bool]:
        log.clear()
        for _ in range(2):
            assert (await get(app)).error is None
        return ["Give `may_add_tasks=" in line for line in log if line.startswith('WARNING order="arrived"')]

    assert await warnings(make(ours)) == []
    assert await warnings(make(plain, may_add_tasks=lambda scope: False)) == []
    assert await warnings(make(plain)) == [True]


async def test_app_that_is_mounted_twice() -> None:
    """An app that is mounted twice, or inside itself, is looked through once."""
    inner = fastapi.FastAPI(openapi_url=None)
    inner.mount("/again", inner)
    app = fastapi.FastAPI(openapi_url=None)
    app.mount("/a", inner)
    app.mount("/b", inner)
    assert not any_asks_for_tasks(app, http_scope())

    def ours(tasks: BackgroundTasks) -> None: ...

    inner.get("/ours")(ours)
    assert any_asks_for_tasks(app, http_scope())
