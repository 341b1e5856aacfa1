"""Which requests hold a place with `order="arrived"` where nobody says so: those that ask for our class."""

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
from fifo_background._routes import asks_for_tasks
from tests.asgi import Client, http_scope

fastapi = pytest.importorskip("fastapi")


async def _asks(asked: Any, path: str, **scope: Any) -> bool:
    """What is asked before a request is routed; its scope is left alone."""
    given = http_scope(path, **scope)
    before = dict(given)
    answer = asks_for_tasks(asked, given)
    assert given == before
    return answer


async def test_default_for_fastapi() -> None:
    """By default those requests hold a place whose endpoint asks for our class, at any depth."""

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


async def test_unrelated_classes_hold_a_place() -> None:
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
    """What cannot be seen asks for nothing: an app without routes, a route that cannot match."""

    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    class Route:
        def matches(self, scope: Any) -> Any:
            raise ValueError

    class Router:
        routes = (Route(),)

    assert not await _asks(app, "/")
    assert not await _asks(Router(), "/")
    assert not await _asks(app, "/", app=Router())
