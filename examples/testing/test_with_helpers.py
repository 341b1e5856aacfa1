import httpx
import main
import pytest
from starlette.testclient import TestClient

from fifo_background.testing import drained, recorded


@pytest.fixture(autouse=True)
def nothing_is_stored() -> None:
    main.stored.clear()


def test_wait_for_all_tasks() -> None:
    with TestClient(main.app) as client:
        for score in range(5):
            client.post(f"/scores/{score}/detached")
        client.portal.call(drained, main.app)
        assert main.stored == [0, 1, 2, 3, 4]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_wait_for_all_tasks_in_an_async_test(anyio_backend: str) -> None:
    transport = httpx.ASGITransport(app=main.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for score in range(5):
            await client.post(f"/scores/{score}/detached")
        await drained(main.app)
    assert main.stored == [0, 1, 2, 3, 4]


def test_record_instead_of_run() -> None:
    with recorded(main.app) as tasks, TestClient(main.app) as client:
        client.post("/scores/1")
        client.post("/scores/-1")  # its task would fail
    assert [(task.function, task.args) for task in tasks] == [(main.store, (1,)), (main.store, (-1,))]
    assert [(task.kwargs, task.lane) for task in tasks] == [({}, None), ({}, None)]
    assert main.stored == []
