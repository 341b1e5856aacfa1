from collections.abc import AsyncIterator

import anyio
import httpx
import main
import pytest

from fifo_background import executor_of

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
async def client(anyio_backend: str) -> AsyncIterator[httpx.AsyncClient]:
    main.stored.clear()
    transport = httpx.ASGITransport(app=main.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def test_a_request_waits_for_its_tasks(client: httpx.AsyncClient) -> None:
    await client.post("/scores/1")
    assert main.stored == [1]


async def test_order(client: httpx.AsyncClient) -> None:
    for score in range(5):
        await client.post(f"/scores/{score}/detached")
    await executor_of(main.app).join()
    assert main.stored == [0, 1, 2, 3, 4]


async def test_requests_at_the_same_time(client: httpx.AsyncClient) -> None:
    async with anyio.create_task_group() as group:
        for score in range(5):
            group.start_soon(client.post, f"/scores/{score}")
    assert sorted(main.stored) == [0, 1, 2, 3, 4]  # trio starts tasks in any order


async def test_a_failure_is_raised(client: httpx.AsyncClient) -> None:
    with pytest.raises(ValueError, match="invalid score: -1"):
        await client.post("/scores/-1")
