from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import httpx
import main
import pytest

from fifo_background import executor_of


@asynccontextmanager
async def open_client() -> AsyncIterator[httpx.AsyncClient]:
    main.stored.clear()
    transport = httpx.ASGITransport(app=main.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def test_a_request_waits_for_its_tasks() -> None:
    async def push() -> None:
        async with open_client() as client:
            await client.post("/scores/1")
            assert main.stored == [1]

    anyio.run(push)


def test_order() -> None:
    async def push_five() -> None:
        async with open_client() as client:
            for score in range(5):
                await client.post(f"/scores/{score}/detached")
            await executor_of(main.app).join()  # no lifespan runs that would drain the queue
            assert main.stored == [0, 1, 2, 3, 4]

    anyio.run(push_five)


def test_a_failure_is_raised() -> None:
    async def push_invalid() -> None:
        async with open_client() as client:
            with pytest.raises(ValueError, match="invalid score: -1"):
                await client.post("/scores/-1")

    anyio.run(push_invalid)
