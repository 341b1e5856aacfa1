"""A client is never told of tasks that are not stored, wherever the connection to PostgreSQL ends."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from cluster import Postgres, cluster, wait_until
from faults_app import make_app
from proxy import Proxy

# For how many seconds PostgreSQL is down.
DOWN = float(os.environ.get("FAULTS_DOWN", "20"))


def rows(postgres: Postgres, ids: list[str]) -> int:
    found: int = postgres.ask("SELECT count(*) FROM fifo_background_tasks WHERE id = ANY(%s)", ids)
    return found


class Client:
    """Of an app in this process, which has no lifespan: each request makes a new connection."""

    def __init__(self, proxy: Proxy, **engine: Any) -> None:
        self.app = make_app(proxy.dsn(), {"worker": False, **engine}, {})
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://app")
        self._number = 0

    async def post(self) -> httpx.Response:
        self._number += 1
        return await self.http.post(f"/add/a/n{self._number}", params={"kinds": "waits,sleeps"})


def test_a_cut_at_each_byte_leaves_one_row_for_each_task(postgres: Postgres) -> None:
    """Trap 17: a connection that is lost at COMMIT leaves it open whether the tasks are stored."""

    async def run(proxy: Proxy) -> None:
        client = Client(proxy)
        for _ in range(2):  # the first one makes the tables
            assert (await client.post()).status_code == 200
            while not proxy.is_idle:
                await asyncio.sleep(0.001)
        whole = dict(proxy.passed)
        steps = {
            "to_server": [
                *range(1, whole["to_server"] - 40, 23),
                *range(whole["to_server"] - 40, whole["to_server"]),
            ],
            "from_server": range(1, whole["from_server"] + 1, 2),
        }
        for way, places in steps.items():
            for place in places:
                cuts = proxy.cuts
                setattr(proxy, way, place)
                asked = asyncio.ensure_future(client.post())
                while proxy.cuts == cuts and not asked.done():
                    await asyncio.sleep(0.001)
                setattr(proxy, way, None)  # the next connection is a whole one
                response = await asked
                assert proxy.cuts > cuts, (way, place)
                assert response.status_code == 200, (way, place)
                assert rows(postgres, response.json()["ids"]) == 2, (way, place)
        asked_ids = postgres.ask("SELECT count(*) FROM fifo_background_tasks")
        assert asked_ids == 2 * client._number
        assert postgres.ask("SELECT count(*) FROM procrastinate_jobs") == client._number

    with Proxy(postgres.socket) as proxy:
        asyncio.run(run(proxy))


@pytest.mark.parametrize("way", ["to_server", "from_server"])
def test_where_every_connection_is_cut_the_client_gets_503(postgres: Postgres, way: str) -> None:
    async def run(proxy: Proxy) -> None:
        client = Client(proxy, store_timeout=0.5)
        assert (await client.post()).status_code == 200
        assert (await client.post()).status_code == 200
        whole = proxy.passed[way]
        for place in (1, whole // 3, whole // 2, whole - 12, whole - 6):  # the last 5 say good-bye
            setattr(proxy, way, place)
            assert (await client.post()).status_code == 503, place
        setattr(proxy, way, None)
        assert (await client.post()).status_code == 200

    with Proxy(postgres.socket) as proxy:
        asyncio.run(run(proxy))


def test_a_server_that_does_not_answer_costs_three_seconds(postgres: Postgres) -> None:
    """Trap 16: a pool's own limits add up to more."""

    async def run(proxy: Proxy) -> None:
        client = Client(proxy)
        assert (await client.post()).status_code == 200
        for name in ("swallows", "refuses"):
            setattr(proxy, name, True)
            begun = time.monotonic()
            response = await client.post()
            assert response.status_code == 503
            assert time.monotonic() - begun < 3
            setattr(proxy, name, False)
            assert (await client.post()).status_code == 200

    with Proxy(postgres.socket) as proxy:
        asyncio.run(run(proxy))


def test_an_answer_that_came_late_does_not_make_a_second_row(postgres: Postgres) -> None:
    """With `max_waiting`, too: the tasks of the first try do not count against the second one."""

    async def run(proxy: Proxy) -> None:
        client = Client(proxy)
        client.app = make_app(proxy.dsn(), {"worker": False}, {"max_waiting": 2})
        client.http = httpx.AsyncClient(transport=httpx.ASGITransport(client.app), base_url="http://app")
        assert (await client.http.post("/add/a/x", params={"kinds": "waits"})).status_code == 200
        proxy.eats = b"SELECT 1"
        response = await client.post()
        assert response.status_code == 200
        assert proxy.cuts == 1
        assert rows(postgres, response.json()["ids"]) == 2
        assert (await client.post()).status_code == 503

    with Proxy(postgres.socket) as proxy:
        asyncio.run(run(proxy))


def test_postgres_is_down_for_a_while(postgres: Postgres, tmp_path: Path) -> None:
    """Traps 14 and 16: an app without a task in hand lives, and is served again at once."""
    with Proxy(postgres.socket) as proxy, cluster(tmp_path, proxy.dsn()) as one:
        app = one.app()
        http = httpx.Client(base_url=f"http://127.0.0.1:{app.port}", timeout=10)
        assert http.post("/add/a/before", params={"kinds": "waits"}).status_code == 200
        one.wait_for("end", "before.0")
        postgres.stop()
        try:
            up = time.monotonic() + DOWN
            while time.monotonic() < up:
                begun = time.monotonic()
                assert http.post("/add/a/meanwhile", params={"kinds": "waits"}).status_code == 503
                assert time.monotonic() - begun < 3
                time.sleep(0.5)
        finally:
            postgres.start()
        back = time.monotonic()
        assert http.post("/add/a/after", params={"kinds": "waits"}).status_code == 200
        assert time.monotonic() - back < 2
        one.wait_for("end", "after.0")
        assert app.runs
        assert not one.has("start", "meanwhile.0")
        # the worker has begun anew, and takes what it was before for lost
        wait_until(lambda: postgres.ask("SELECT count(*) FROM procrastinate_workers") == 1, 15)
        http.close()
        assert app.end() in (0, -signal.SIGTERM)  # which newer ones of uvicorn raise again at their end
        wait_until(lambda: postgres.ask("SELECT count(*) FROM procrastinate_workers") == 0, 5)
