import httpx
import main
import pytest
from starlette.testclient import TestClient


def test_both(drained, recorded) -> None:
    tasks = recorded(main.app)
    with TestClient(main.app) as client:
        client.post("/scores/1/detached")
        drained(client)
        assert tasks == [(main.store, (1,), {}, None)]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_both_in_an_async_test(anyio_backend: str, drained, recorded) -> None:
    tasks = recorded(main.app)
    transport = httpx.ASGITransport(app=main.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        await client.post("/scores/1/detached")
        await drained(main.app)
    assert tasks == [(main.store, (1,), {}, None)]
