"""Real servers, and pages in a real browser, which must not complain of anything."""

from __future__ import annotations

import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect, sync_playwright

PATIENCE = 15.0  # seconds for everything that has to happen

expect.set_options(timeout=PATIENCE * 1000)

# What goes wrong in the page itself, without a word in the console.
LISTEN = """
    const tell = (event) => console.error("CSP", event.violatedDirective, event.blockedURI);
    addEventListener("securitypolicyviolation", tell);
"""


class Served:
    """An app under uvicorn, in a thread."""

    def __init__(self, app: Any, port: int = 0) -> None:
        self._socket = socket.create_server(("127.0.0.1", port))
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(app, loop="asyncio", log_level="warning", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})
        self._thread.start()
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE)
        give_up = time.monotonic() + PATIENCE
        while not self._server.started:
            assert time.monotonic() < give_up, "the server has not started"
            time.sleep(0.01)

    def post(self, path: str, **query: Any) -> None:
        assert self.client.post(path, params=query).status_code == 200

    def add(self, task: str, **query: Any) -> None:
        self.post(f"/add/{task}", **query)

    def open(self, gate: str) -> None:
        self.post(f"/open/{gate}")

    def jobs(self, **query: Any) -> list[Any]:
        found: list[Any] = self.client.get("/tasks/jobs", params=query).json()["items"]
        return found

    def operate(self, lane: str, verb: str) -> None:
        lanes = self.client.get("/tasks/lanes").json()["items"]
        (id,) = [one["id"] for one in lanes if one["name"] == lane]
        self.post(f"/tasks/lanes/{id}/{verb}")

    def job(self, id: str) -> Any:
        """The job, when it has ended."""
        return self.client.get(f"/tasks/jobs/{id}", params={"wait": PATIENCE}).json()

    @contextmanager
    def held(self, path: str, **query: Any) -> Iterator[None]:
        """While a request to this path does not respond."""
        more = {"params": {**query, "hold": "response"}, "timeout": None}
        asks = threading.Thread(target=self.client.post, args=(path,), kwargs=more)
        asks.start()
        try:
            yield
        finally:
            self.open("response")
            asks.join(PATIENCE)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the server has not ended"
        self.client.close()
        self._socket.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    assert chromium, "these tests need a Chromium: `apt-get install chromium`, or its path in CHROMIUM"
    # no host but this one has an address
    rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", rules])
        yield browser
        browser.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    running: list[Served] = []

    def start(app: Any, port: int = 0) -> Served:
        running.append(Served(app, port))
        return running[-1]

    yield start
    for served in running:
        served.stop()


class Visit:
    """A page, and what has gone wrong in it."""

    def __init__(self, browser: Browser, url: str, **settings: Any) -> None:
        # without motion it is drawn only when something changes, which takes half of the time here
        usual = {"viewport": {"width": 1280, "height": 1000}, "reduced_motion": "reduce"}
        self.context = browser.new_context(**{**usual, **settings})
        self.context.set_default_timeout(PATIENCE * 1000)
        self.page: Page = self.context.new_page()
        self.page.add_init_script(LISTEN)
        self.wrong: list[str] = []
        self.allowed: tuple[str, ...] = ()
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", self._said)
        self.page.on("dialog", self._dialog)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.host = urlsplit(url).netloc
        self.page.goto(url)

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(message.text)

    def _dialog(self, dialog: Any) -> None:
        self.wrong.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def check(self) -> None:
        assert [one for one in self.wrong if not any(part in one for part in self.allowed)] == []
        urls = map(urlsplit, self.requests)
        assert {url.netloc for url in urls if url.scheme not in ("data", "blob")} == {self.host}


@pytest.fixture
def visit(browser: Browser, serve: Callable[..., Served]) -> Iterator[Callable[..., Visit]]:
    """Opens a page, which must not complain, ask a foreign host, or open a dialog."""
    visits: list[Visit] = []

    def open_page(served: Served, path: str = "/tasks/", *, live: bool = True, **settings: Any) -> Visit:
        made = Visit(browser, served.url + path, **settings)
        visits.append(made)
        if live:
            expect(made.page.locator("#linkWord")).to_have_text("Live")
            # the stream is there before its first event, without which the page takes nothing for news
            expect(made.page.locator("#succeeded")).to_have_text(re.compile(r"\d"))
        return made

    yield open_page
    for made in visits:
        made.context.close()
    for made in visits:
        made.check()
