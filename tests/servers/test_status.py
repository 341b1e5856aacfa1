"""The status API under real servers: a stream and a wait work, and do not keep a server from its end."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from signal import SIGTERM
from typing import Any

import pytest
from test_end import PATIENCE, Server, serving

STREAM_SECONDS = 2.0  # as in the app
SERVERS = {
    "uvicorn-asyncio": ("uvicorn", "uvicorn status_app:app --loop asyncio --port {port}"),
    "uvicorn-uvloop": ("uvicorn uvloop", "uvicorn status_app:app --loop uvloop --port {port}"),
    "hypercorn-trio": ("hypercorn trio", "hypercorn status_app:app -k trio -b 127.0.0.1:{port}"),
    "granian": ("granian", "granian --interface asgi --port {port} status_app:app"),
}


@pytest.fixture(params=SERVERS)
def running(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    modules, command = SERVERS[request.param]
    for module in modules.split():
        pytest.importorskip(module, minversion="0.22" if module == "trio" else None)  # hypercorn asks for it
    with serving(command, tmp_path) as server:
        yield server
        if server.process.poll() is None:
            server.signal(SIGTERM)


class Stream:
    """An open event stream."""

    def __init__(self, server: Server, after: str = "") -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        headers = {"Host": "localhost", **({"Last-Event-ID": after} if after else {})}
        self.connection.request("GET", "/tasks/events", headers=headers)
        self.response = self.connection.getresponse()
        assert self.response.status == 200
        self.last_id = after

    def ticks(self) -> Iterator[Any]:
        """The ticks, until the server ends the stream."""
        name = b""
        for line in self.response:
            if line.startswith(b"event: "):
                name = line[7:-1]
            elif line.startswith(b"id: "):
                self.last_id = line[4:-1].decode()
            elif line.startswith(b"data: ") and name == b"tick":
                yield json.loads(line[6:])

    def close(self) -> None:
        self.connection.close()


def test_stream(running: Server) -> None:
    """A stream tells of every job once, in order, over its own end."""
    ended: list[int] = []
    with closing(Stream(running)) as stream:
        jobs = running.ask("POST", "/add?seconds=0.001&count=30")
        for tick in stream.ticks():
            ended += [job["number"] for job in tick["ended"]]
    jobs += running.ask("POST", "/add?seconds=0.001&count=30")
    assert running.ask("GET", f"/tasks/jobs/{jobs[-1]}?wait=20")["done"]
    with closing(Stream(running, stream.last_id)) as stream:
        for tick in stream.ticks():
            ended += [job["number"] for job in tick["ended"]]
            if len(ended) == 60:
                break
    assert ended == list(range(1, 61))


def test_wait(running: Server) -> None:
    """Who waits for a job gets it when it has ended, or when the time is over."""
    (job,) = running.ask("POST", "/add?seconds=0.5&count=1")
    assert running.ask("GET", f"/tasks/jobs/{job}?wait=0.05")["done"] is False
    found = running.ask("GET", f"/tasks/jobs/{job}?wait=20")
    assert (found["state"], found["result"]) == ("succeeded", 0.5)


def test_end(running: Server) -> None:
    """A server that stops waits no longer for those who watch than a stream lasts."""
    with closing(Stream(running)) as one, closing(Stream(running)) as other:
        assert next(one.ticks())["summary"]["state"] == "open"
        began = time.monotonic()
        running.signal(SIGTERM)
        running.end()
        assert time.monotonic() - began < STREAM_SECONDS + 2
        assert list(other.ticks()) != []
