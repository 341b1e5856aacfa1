"""Every error of the status API is a problem, in both faces, and hostile input changes nothing."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from starlette.applications import Starlette
from starlette.routing import Mount

from fifo_background.status import StatusApp
from fifo_background.status.query import cursor_of
from tests.support.asgi import get
from tests.support.status import HAS_FASTAPI, HOST, Answer, Site

pytestmark = pytest.mark.one_loop


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/jobs?limit=0", 422),
        ("/jobs?limit=201", 422),
        ("/jobs?limit=-1", 422),
        ("/jobs?limit=1e2", 422),
        ("/jobs?limit=", 422),
        ("/jobs?limit=%D9%A1", 422),  # a digit, but not of ASCII
        ("/jobs?limit=1&limit=2", 422),
        ("/lanes?limit=x", 422),
        ("/jobs?state=", 422),
        ("/jobs?state=Running", 422),
        ("/jobs?state=running,", 422),
        ("/jobs?q=" + "x" * 501, 422),
        ("/jobs?lane=a&lane=b", 422),
        ("/jobs/x?wait=31", 422),
        ("/jobs/x?wait=-1", 422),
        ("/jobs/x?wait=nan", 422),
        ("/jobs/x?wait=1_0", 422),
        ("/jobs/x?wait=soon", 422),
        ("/jobs?cursor=", 400),
        ("/jobs?cursor=117", 400),
    ],
)
async def test_parameters(site: Site, path: str, status: int) -> None:
    """A parameter that is wrong is named."""
    answer = await site.get(path)
    assert answer.problem()[0] == status
    assert answer.json()["parameter"] in path


def encoded(text: bytes) -> str:
    from base64 import urlsafe_b64encode

    return urlsafe_b64encode(text).rstrip(b"=").decode()


HOSTILE = [
    *(
        "\x00",
        "'; DROP TABLE jobs; --",
        "<script>alert(1)</script>",
        "../../etc/passwd",
        "=",
        "%",
        "a" * 499,
        "💥",
    ),
    *(
        encoded(text)
        for text in (b"n0", b"n-1", b"n01", b"n1 ", b"n" + b"9" * 20, b"x1", b"n", b"\xff\xfe", b"n1.5")
    ),
    cursor_of(7) + "=",
    cursor_of(7)[:-1] + "B",  # decodes to the same number, but is no cursor that was given out
    "abcde",
]


@pytest.mark.parametrize("cursor", HOSTILE, ids=repr)
async def test_hostile_cursor(site: Site, cursor: str) -> None:
    """A cursor that the API did not give out is a 400."""
    assert (await site.get(f"/jobs?cursor={quote(cursor)}")).problem()[0] == 400


@pytest.mark.parametrize("text", [*HOSTILE, "\r\nset-cookie: x", "\u2028", "\ud800"], ids=repr)
async def test_hostile_text(site: Site, text: str) -> None:
    """Text that a client sends finds nothing, comes back nowhere but in the link, and there only encoded."""

    async def task() -> None: ...

    for _ in range(2):
        await site.executor.submit_nowait(task)
    sent = quote(text, errors="replace")
    for name in ("q", "lane", "function"):
        answer = await site.get(f"/jobs?{name}={sent}")
        assert answer.json() == {"items": [], "next": None}
    for path in (f"/jobs/{quote(sent, safe='')}", f"/jobs/{sent.replace('/', '%2F')}"):
        assert (await site.get(path)).status == 404
    answer = await site.get(f"/jobs?x={sent}&limit=1")
    assert answer.headers["link"].isprintable()
    assert answer.headers["link"].count("<") == answer.headers["link"].count(">") == 1


async def test_hostile_names(site: Site) -> None:
    """Names, keys and messages of any text are JSON."""
    text = "</script><img src=x onerror=alert(1)>\ud800\u2028\x00"

    async def task() -> None:
        raise ValueError(text)

    task.__qualname__ = text
    job = site.executor.lane(text).submit_nowait(task)
    with pytest.raises(ValueError, match="script"):  # so it is not logged, as not every log takes this text
        await job
    answer = await site.get(f"/jobs/{job.id}")
    assert answer.body.isascii()
    assert answer.json()["error"]["message"] == text
    assert answer.json()["function"] == text
    assert answer.headers["content-type"] == "application/json"
    assert (await site.get("/lanes")).status == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"\xff", 400),
        (b"[" * 9000, 400),
        (b"[]", 422),
        (b'"x"', 422),
        (b'{"head": 1}', 422),
        (b"null", 409),
        (b'{"head": null}', 409),
        (b"{}", 409),
        (b" ", 409),
        (b" " * 10_001, 413),
    ],
    ids=lambda value: repr(value)[:20],
)
@pytest.mark.parametrize("operation", ["skip", "retry"])
async def test_bodies(site: Site, operation: str, body: bytes, status: int) -> None:
    """A body is `{"head": id}`, or nothing."""

    async def task() -> None:
        await gate.wait()

    gate = anyio.Event()
    job = site.executor.submit_nowait(task)
    await wait_all_tasks_blocked()
    lane = (await site.get(f"/jobs/{job.id}")).json()["lane"]["id"]
    assert (await site.post(f"/lanes/{lane}/{operation}", body=body)).problem()[0] == status
    gate.set()
    await job


async def test_body_that_does_not_arrive(site: Site) -> None:
    """A client that leaves in the middle of its body has asked for nothing."""
    exchange = site.exchange("/lanes/x/skip", "POST")
    exchange._asked = True
    exchange.disconnected.set()
    await exchange.run()
    assert Answer(exchange).problem()[0] == 400


async def test_methods(site: Site) -> None:
    """A method that a path does not have is a 405 that names those that it has."""
    for method, path, allowed in (
        ("DELETE", "/jobs", "GET, HEAD"),
        ("POST", "/jobs/x", "GET, HEAD"),
        ("OPTIONS", "/summary", "GET, HEAD"),
        ("GET", "/jobs/x/cancel", "POST"),
        ("HEAD", "/lanes/x/skip", "POST"),
        ("QUERY", "/", "GET, HEAD"),
    ):
        answer = await site.ask(path, method)
        assert answer.problem()[0] == 405
        assert answer.headers["allow"] == allowed


@pytest.mark.parametrize("path", ["/", "/page.css", "/summary", "/jobs", "/lanes", "/events"])
async def test_head(site: Site, path: str) -> None:
    """HEAD asks for what GET asks for."""
    assert (await site.ask(path, "HEAD")).status == 200


@pytest.mark.parametrize(
    "path", ["/nowhere", "/jobs/", "/jobs/a/b", "/page.js/", "//", "/static/page.js", "/../x"]
)
async def test_no_such_path(path: str) -> None:
    """A path that there is not is a 404."""
    assert (await Site().get(path)).problem()[0] == 404


async def test_no_middleware() -> None:
    """Without the middleware the answer is a 500 that says what to write."""
    app = Starlette(routes=[Mount("/tasks", StatusApp())])
    headers = [(b"host", b"localhost")]
    exchange = await get(app, "/tasks/jobs", client=("127.0.0.1", 1), headers=headers)
    status, detail = Answer(exchange).problem()
    assert status == 500
    assert "app.add_middleware(OrderedBackgroundMiddleware)" in detail


async def test_closed(site: Site) -> None:
    """After the end its history can be read; what needs an open executor is a 503."""

    async def task() -> None: ...

    job = site.executor.submit_nowait(task)
    await site.executor.aclose()
    assert (await site.get(f"/jobs/{job.id}")).json()["state"] == "succeeded"
    assert (await site.get("/jobs")).status == 200
    assert (await site.get("/lanes")).status == 200
    assert (await site.get("/summary")).json()["state"] == "closed"


async def test_closed_meanwhile(monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    """An operation that the executor refuses because it is closed is a 503."""
    from fifo_background import ExecutorClosed, ExecutorLane

    def refuse(lane: Any) -> None:
        raise ExecutorClosed("retry")

    async def task() -> None:
        await gate.wait()

    gate = anyio.Event()
    job = site.executor.submit_nowait(task)
    lane = (await site.get(f"/jobs/{job.id}")).json()["lane"]["id"]
    monkeypatch.setattr(ExecutorLane, "retry_head", refuse)
    answer = await site.post(f"/lanes/{lane}/retry")
    assert answer.problem()[0] == 503
    assert answer.headers["retry-after"] == "1"
    gate.set()
    await job


async def test_websocket() -> None:
    """A websocket is closed."""
    exchange = Site().exchange("/jobs")
    exchange.scope["type"] = "websocket"
    del exchange.scope["method"]
    await exchange.run()
    assert [message["type"] for message in exchange.messages] == ["websocket.close"]


def test_status_of_its_own() -> None:
    """A status that HTTP does not know is a problem, too."""
    from fifo_background.status.problems import Problem

    response = Problem(599, "x").response()
    assert (response.status_code, b'"title":"Error"' in response.body) == (599, True)


@pytest.mark.skipif(not HAS_FASTAPI, reason="needs FastAPI")
async def test_handlers_of_the_app() -> None:
    """An app's handlers of errors do not change what the status answers."""
    from fastapi import FastAPI
    from starlette.responses import PlainTextResponse

    from fifo_background import OrderedBackgroundMiddleware
    from fifo_background.status import router

    async def handler(request: Any, error: Any) -> PlainTextResponse:
        return PlainTextResponse("mine", 418)

    app = FastAPI(exception_handlers={404: handler, 405: handler, Exception: handler, RuntimeError: handler})
    app.include_router(router(prefix="/router"))
    app.mount("/app", StatusApp())
    wrapped = OrderedBackgroundMiddleware(app)
    headers = [(name.encode(), value.encode()) for name, value in HOST.items()]
    for path, method, status in (
        ("/router/jobs/x", "GET", 404),
        ("/app/jobs/x", "GET", 404),
        ("/app/nowhere", "GET", 404),
        ("/router/jobs", "PUT", 405),
        ("/app/jobs", "PUT", 405),
    ):
        exchange = await get(wrapped, path, method=method, client=("127.0.0.1", 1), headers=headers)
        assert Answer(exchange).problem()[0] == status
    assert (await get(wrapped, "/nowhere")).status == 418
