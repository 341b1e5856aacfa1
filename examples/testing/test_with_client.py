from collections.abc import Iterator

import main
import pytest
from starlette.testclient import TestClient

from fifo_background import executor_of


@pytest.fixture
def client() -> Iterator[TestClient]:
    main.stored.clear()
    with TestClient(main.app) as client:
        yield client


async def all_tasks_have_ended() -> None:
    await executor_of(main.app).join()


def test_a_request_waits_for_its_tasks(client: TestClient) -> None:
    client.post("/scores/1")
    assert main.stored == [1]


def test_order(client: TestClient) -> None:
    for score in range(5):
        client.post(f"/scores/{score}/detached")
    client.portal.call(all_tasks_have_ended)
    assert main.stored == [0, 1, 2, 3, 4]


def test_a_failure_is_raised(client: TestClient) -> None:
    with pytest.raises(ValueError, match="invalid score: -1"):
        client.post("/scores/-1")


def test_what_the_user_sees_of_a_failure() -> None:
    with TestClient(main.app, raise_server_exceptions=False) as client:
        assert client.post("/scores/-1").status_code == 202


def test_a_detached_failure_is_logged(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    client.post("/scores/-1/detached")
    client.portal.call(all_tasks_have_ended)
    assert [(record.name, record.levelname) for record in caplog.records] == [("fifo_background", "ERROR")]
    assert "ValueError: invalid score: -1" in caplog.text
