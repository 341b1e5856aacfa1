"""Where the status can be: at any path, under any root, and its links are right there."""

from __future__ import annotations

import re
from graphlib import TopologicalSorter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import anyio
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

import fifo_background.status
from fifo_background import BackgroundTask, OrderedBackgroundMiddleware, executor_of
from fifo_background.status import StatusApp
from fifo_background.status.app import PATH_HAS_ROOT
from tests.support.apps import Work
from tests.support.asgi import Client
from tests.support.status import FACES, HAS_FASTAPI, Site, status_at

pytestmark = pytest.mark.one_loop

STATIC = Path(fifo_background.status.__file__).parent / "static"
LOCAL = {"base_url": "http://localhost:8000"}


# How a server may tell an app its root: with a path that has it, or not. Starlette below 0.33 takes one only.
ROOTS = [("", ""), ("/api", ""), *([("/api", "/api"), ("/a b/ü", "/a b/ü")] if PATH_HAS_ROOT else [])]

# In a mount in a mount, and to redirect to a slash, Starlette itself needs the whole path.
NESTED_ROOTS = [(root, sent) for root, sent in ROOTS if root == sent]


def everybody(request: Request) -> bool:
    return True


def client_of(app: Any, **settings: Any) -> TestClient:
    return TestClient(OrderedBackgroundMiddleware(app), **{**LOCAL, **settings})


async def add(request: Request) -> JSONResponse:
    job = executor_of(request).submit_nowait(anyio.sleep, 0)
    return JSONResponse({"id": job.id, "url": str(request.url_for("tasks:job", id=job.id))})


def app_with(face: str, path: str) -> Any:
    app = status_at(face, path, authorize=everybody)
    app.router.routes.append(Route("/add", add, methods=["POST"]))
    return app


class Links(HTMLParser):
    """The URLs that a page names."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    @property
    def files(self) -> list[str]:
        return [link for link in self.found if not link.startswith("data:")]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("src", "href") and value]


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("path", ["/tasks", "/admin/tasks"])
def test_page(face: str, path: str) -> None:
    """The page is found with and without its last slash, and its files are beside it."""
    with client_of(status_at(face, path, authorize=everybody)) as client:
        for asked in (path, f"{path}/"):
            page = client.get(asked)
            assert (page.status_code, page.url.path) == (200, f"{path}/")
            assert page.headers["content-type"] == "text/html; charset=utf-8"
            assert page.text == (STATIC / "index.html").read_text(encoding="utf-8")
        for file in STATIC.iterdir():
            kind = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}[file.suffix]
            answer = client.get(f"{path}/{file.name}".removesuffix("index.html"))
            assert (answer.status_code, answer.headers["content-type"]) == (200, f"{kind}; charset=utf-8")
            assert answer.headers["cache-control"] == "no-store"
            assert answer.content == file.read_bytes()


def test_links_of_the_page() -> None:
    """The page names each of its files, and so the browser asks for all at once. It names nothing else."""
    links = Links((STATIC / "index.html").read_text(encoding="utf-8")).files
    assert sorted(["index.html", *links]) == sorted(file.name for file in STATIC.iterdir())


def test_modules_of_the_page() -> None:
    """A module imports others of the page only, and none that imports it, itself or through others."""
    imports = {
        file.name: re.findall(r'^import .* from "\./([a-z]+\.js)";$', file.read_text(encoding="utf-8"), re.M)
        for file in STATIC.glob("*.js")
    }
    for name, others in imports.items():
        assert (STATIC / name).read_text(encoding="utf-8").count("import ") == len(others)
    order = list(TopologicalSorter(imports).static_order())
    assert sorted(order) == sorted(imports)
    assert order[-1] == "page.js"


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(("root_path", "sent"), ROOTS)
def test_url_for(face: str, root_path: str, sent: str) -> None:
    """`url_for("tasks:job", id=...)` is the URL of a job, under any root path."""
    with client_of(app_with(face, "/tasks"), root_path=root_path) as client:
        added = client.post(f"{sent}/add").json()
        assert unquote(urlsplit(added["url"]).path) == f"{root_path}/tasks/jobs/{added['id']}"
        assert client.get(f"{sent}/tasks/jobs/{added['id']}?wait=5").json()["done"] is True


@pytest.mark.parametrize(("root_path", "sent"), NESTED_ROOTS)
def test_nested_mounts(root_path: str, sent: str) -> None:
    """The status works in a mount of a mount, and there the links are right, too."""
    inner = Starlette(routes=[Mount("/tasks", StatusApp(authorize=everybody), name="tasks")])
    app = Starlette(routes=[Mount("/a", Starlette(routes=[Mount("/b", inner)]))])
    with client_of(app, root_path=root_path) as client:
        for asked in ("/a/b/tasks", "/a/b/tasks/"):
            page = client.get(sent + asked)
            assert page.status_code == 200
            for link in Links(page.text).files:
                assert client.get(urljoin(f"{sent}/a/b/tasks/", link)).status_code == 200
        assert client.get(f"{sent}/a/b/tasks/jobs").json() == {"items": [], "next": None}


@pytest.mark.parametrize(
    ("path", "root_path", "location"),
    [
        ("", "/tasks", "./tasks/"),
        ("/tasks", "/tasks", "./tasks/"),
        ("/x/a b:c", "/x/a b:c", "./a%20b%3Ac/"),
        ("/x//evil.test", "/x//evil.test", "./evil.test/"),
    ],
)
async def test_without_slash(path: str, root_path: str, location: str) -> None:
    """Called at its mount without a slash, it sends there, relative to wherever the client thinks it is."""
    site = Site()
    exchange = site.exchange("")
    exchange.app = OrderedBackgroundMiddleware(StatusApp())
    exchange.scope.update(path=path, root_path=root_path)
    await exchange.run()
    assert exchange.status == 307
    sent = dict(exchange.messages[0]["headers"])[b"location"].decode()
    assert sent == location


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_without_slash_other_methods(method: str) -> None:
    """Nothing but a page is looked for at the mount."""
    exchange = Site().exchange("", method)
    exchange.app = OrderedBackgroundMiddleware(StatusApp())
    exchange.scope.update(path="/tasks", root_path="/tasks")
    await exchange.run()
    assert exchange.status == 404


def test_alone() -> None:
    """It can be an app by itself, in the middleware."""
    with client_of(StatusApp(authorize=everybody)) as client:
        assert client.get("/").status_code == 200
        assert client.get("/jobs").json()["items"] == []


@pytest.mark.skipif(not HAS_FASTAPI, reason="needs FastAPI")
@pytest.mark.parametrize("prefix", ["", "/tasks"])
def test_prefix_where_it_is_included(prefix: str) -> None:
    """A router may get its prefix where it is included, or none."""
    from fastapi import FastAPI

    from fifo_background.status import router

    app = FastAPI()
    app.include_router(router(authorize=everybody), prefix=prefix)
    with client_of(app) as client:
        assert client.get(f"{prefix}/").status_code == 200
        assert client.get(f"{prefix}/jobs").status_code == 200
        assert client.get(prefix or "/").url.path == f"{prefix}/"


@pytest.mark.parametrize("face", FACES)
async def test_no_position(face: str, events: list[Any]) -> None:
    """An open event stream, or a wait, holds nobody up, though its request arrived first."""
    site = Site(face, {"order": "arrived", "may_add_tasks": lambda scope: True, "hold_timeout": 3600})
    work = Work(events)

    async def handler(request: Request) -> JSONResponse:
        return JSONResponse({}, background=BackgroundTask(work.quick, 1))

    site.app.app.router.routes.append(Route("/add", handler))
    job = site.executor.lane("other").submit_nowait(work.gated, 9)
    async with anyio.create_task_group() as group:
        stream, wait = site.exchange("/events"), site.exchange(f"/jobs/{job.id}?wait=30")
        for exchange in (stream, wait):
            group.start_soon(exchange.run)
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(5):
            assert (await Client(site.app, group).start("/add")).status == 200
            assert await site.executor.submit_nowait(work.quick, 2) == 2
        work.gate(9).set()
        stream.disconnected.set()
        await job
    assert events == ["start 9", "end 9"] or events == ["start 9", 1, 2, "end 9"]
