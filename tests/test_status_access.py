"""Who may look at the tasks, and who may operate: closed by default, and never for foreign pages."""

from __future__ import annotations

from typing import Any

import pytest
from anyio import wait_all_tasks_blocked
from starlette.exceptions import HTTPException
from starlette.requests import Request

from fifo_background.status import StatusApp
from fifo_background.status.api import ENDPOINTS
from tests.support.status import FACES, HAS_FASTAPI, Site

pytestmark = pytest.mark.one_loop

PATHS = [
    (one.method, one.path.replace("{id}", "x").replace("{lane_id}", "x")) for one in ENDPOINTS if one.path
]
# of nginx, Apache, Cloudflare, Akamai, Fastly, Fly, Azure, App Engine, Envoy, WebLogic
OF_PROXIES = (
    *(
        "x-real-ip",
        "via",
        "cf-connecting-ip",
        "cf-ray",
        "true-client-ip",
        "fastly-client-ip",
        "fly-client-ip",
    ),
    *("x-azure-clientip", "x-azure-socketip", "x-appengine-user-ip", "x-envoy-external-address", "cdn-loop"),
    *("wl-proxy-client-ip", "client-ip", "x-cluster-client-ip", "x-proxyuser-ip", "cf-connecting-ipv6"),
    *("x-original-forwarded-for", "x-remote-ip", "x-forwarded"),
)
UNTRUSTED: list[dict[str, Any]] = [
    {"client": "10.0.0.1"},
    {"client": "testclient"},
    {"client": "::ffff:10.0.0.1"},
    {"client": None},
    {"headers": {"host": "evil.test"}},
    {"headers": {"host": "localhost.evil.test:8000"}},
    {"headers": {"host": "127.0.0.1.evil.test"}},
    {"headers": {"host": "localhost:evil"}},
    {"headers": {"host": ""}},
    {"headers": {"forwarded": "for=10.0.0.1"}},
    {"headers": {"x-forwarded-for": "127.0.0.1"}},
    {"headers": {"x-forwarded-host": "localhost"}},
    *({"headers": {name: "127.0.0.1"}} for name in OF_PROXIES),
]
TRUSTED: list[dict[str, Any]] = [
    {},
    {"client": "127.0.0.8"},
    {"client": "::1"},
    {"client": "::ffff:127.0.0.1"},
    {"headers": {"host": "LOCALHOST"}},
    {"headers": {"host": "127.0.0.1:80"}},
    {"headers": {"host": "[::1]"}},
    {"headers": {"host": "[::1]:8000"}},
    {"headers": {"x-request-id": "1", "viable": "1", "x-ip": "1", "x-client-id": "1"}},
]


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("request_", UNTRUSTED, ids=str)
async def test_closed_by_default(face: str, request_: dict[str, Any]) -> None:
    """A client that may be elsewhere gets no endpoint, and is told the line that opens it."""
    site = Site(face)
    for method, path in PATHS:
        status, detail = (await site.ask(path, method, **request_)).problem()
        assert status == 403, path
        assert "StatusApp(authorize=may_see_tasks)" in detail


@pytest.mark.parametrize("request_", UNTRUSTED, ids=str)
async def test_closed_for_what_is_not_there(request_: dict[str, Any]) -> None:
    """A client that may be elsewhere cannot find out which paths there are."""
    site = Site()
    assert (await site.get("/nowhere", **request_)).problem()[0] == 403
    assert (await site.ask("/jobs", "DELETE", **request_)).problem()[0] == 403


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("request_", TRUSTED, ids=str)
async def test_open_on_this_machine(face: str, request_: dict[str, Any]) -> None:
    """A program or browser on this machine may look and operate."""
    site = Site(face)
    answer = await site.get("/summary", **request_)
    assert (answer.status, answer.json()["operate"]) == (200, True)


async def test_two_hosts() -> None:
    """A request with two Host headers is not local."""
    exchange = Site().exchange("/summary")
    exchange.scope["headers"].append((b"host", b"evil.test"))
    await exchange.run()
    assert exchange.status == 403


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("right", "look", "operate"),
    [(True, 200, 404), ("operate", 200, 404), ("read", 200, 403), (False, 403, 403), (None, 403, 403)],
)
async def test_authorize(face: str, is_async: bool, right: Any, look: int, operate: int) -> None:
    """`authorize` decides alone, sync or async: who may look, and who may operate."""

    async def decide_async(request: Request) -> Any:
        return right

    site = Site(face, authorize=decide_async if is_async else lambda request: right)
    far: dict[str, Any] = {
        "client": "10.0.0.1",
        "headers": {"host": "tasks.example", "x-forwarded-for": "1.2.3.4"},
    }
    assert (await site.get("/summary", **far)).status == look
    for method, path in PATHS:
        if method == "POST":
            assert (await site.ask(path, method, **far)).problem()[0] == operate


@pytest.mark.parametrize("face", FACES)
async def test_a_reader_operates_nothing(face: str) -> None:
    """What a reader asks for does not happen."""
    site = Site(face, authorize=lambda request: "read")

    async def task() -> None: ...

    site.executor.lane("a").pause()
    job = site.executor.lane("a").submit_nowait(task)
    assert (await site.post(f"/jobs/{job.id}/cancel")).problem()[0] == 403
    await wait_all_tasks_blocked()
    assert not job.done()
    site.executor.lane("a").resume()
    await job


@pytest.mark.parametrize("face", FACES)
async def test_authorize_raises_a_response(face: str) -> None:
    """An HTTPException of `authorize` is the answer, with its headers."""

    def ask_for_password(request: Request) -> bool:
        raise HTTPException(401, "Who are you?", headers={"WWW-Authenticate": "Basic"})

    answer = await Site(face, authorize=ask_for_password).get("/summary")
    assert answer.problem() == (401, "Who are you?")
    assert answer.headers["www-authenticate"] == "Basic"


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("right", ["Read", 1, "yes"])
async def test_authorize_returns_nonsense(face: str, right: Any) -> None:
    """What `authorize` must not return opens nothing: the client gets a 500, and the server the error."""
    exchange = await Site(face, authorize=lambda request: right).exchange("/summary").run()
    assert exchange.status == 500
    assert isinstance(exchange.error, TypeError)
    assert "authorize(request) must return" in str(exchange.error)


@pytest.mark.parametrize("face", FACES)
async def test_authorize_fails(face: str) -> None:
    """An error of `authorize` is a 500 that tells nothing, and the server logs the error."""
    exchange = await Site(face, authorize=lambda request: 1 / 0 > 0).exchange("/summary").run()
    assert (exchange.status, type(exchange.error)) == (500, ZeroDivisionError)
    assert b"division" not in exchange.messages[1]["body"]


FOREIGN: list[dict[str, str]] = [
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "cross-site", "origin": "http://localhost:8000"},
    {"origin": "http://evil.test"},
    {"origin": "http://localhost:9000"},
    {"origin": "http://localhost"},
    {"origin": "null"},
    {"origin": ""},
    {"origin": "http://["},
    {"origin": "file://localhost:8000"},
]
OWN: list[dict[str, str]] = [
    {},
    {"sec-fetch-site": "same-origin"},
    {"sec-fetch-site": "none"},
    {"sec-fetch-site": "same-origin", "origin": "http://other"},
    {"origin": "http://localhost:8000"},
    {"origin": "https://LOCALHOST:8000"},
    {"origin": "http://localhost", "host": "localhost"},
    {"origin": "http://localhost", "host": "localhost:80"},
    {"origin": "https://localhost:443", "host": "localhost"},
]


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("headers", FOREIGN, ids=str)
async def test_foreign_pages(face: str, headers: dict[str, str]) -> None:
    """No page of another site operates, even if `authorize` lets the browser's user in; it may not read."""
    for site in (Site(face), Site(face, authorize=lambda request: True)):
        for method, path in PATHS:
            answer = await site.ask(path, method, headers=headers) if method == "POST" else None
            assert answer is None or answer.problem()[0] == 403
        answer = await site.get("/summary", headers=headers)
        assert answer.status == 200
        assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("headers", OWN, ids=str)
async def test_own_pages(face: str, headers: dict[str, str]) -> None:
    """The own page operates, and so do programs that are no browser."""
    assert (await Site(face).post("/jobs/x/cancel", headers=headers)).problem()[0] == 404


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("path", ["/", "/page.js", "/summary", "/jobs/nobody", "/events"])
async def test_headers(face: str, path: str) -> None:
    """Every response forbids foreign scripts, frames, guessing of types, and keeping."""
    site = Site(face, stream_seconds=0.01)
    headers = (await site.get(path)).headers
    policy = headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'"} < set(policy)
    assert {"frame-ancestors 'none'", "img-src 'self' data:"} < set(policy)
    assert (headers["x-frame-options"], headers["x-content-type-options"]) == ("DENY", "nosniff")
    assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"authorize": "admin"}, TypeError),
        ({"stream_seconds": 0}, ValueError),
        ({"stream_seconds": float("nan")}, ValueError),
    ],
)
def test_settings(settings: dict[str, Any], error: type[Exception]) -> None:
    """A setting that cannot work is refused where it is given."""
    with pytest.raises(error):
        StatusApp(**settings)


@pytest.mark.skipif(not HAS_FASTAPI, reason="needs FastAPI")
async def test_dependencies() -> None:
    """A router's dependencies are asked first, and do not open it."""
    from fastapi import Depends
    from fastapi import HTTPException as FastAPIHTTPException

    def admin(request: Request) -> None:
        if "authorization" not in request.headers:
            raise FastAPIHTTPException(401, "no")

    site = Site("router", dependencies=[Depends(admin)])
    assert (await site.get("/summary")).status == 401
    known = {"authorization": "x"}
    assert (await site.get("/summary", headers=known)).status == 200
    assert (await site.get("/summary", headers=known, client="10.0.0.1")).problem()[0] == 403
