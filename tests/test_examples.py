"""The examples, run as a reader runs them."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.to_thread
import pytest
from starlette.testclient import TestClient

from fifo_background import QueueFull, SerialExecutor
from tests.support.log import Log

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
ROOT = Path(__file__).parent.parent


def run(*args: str, says: str = "") -> list[str]:
    """The lines that a Python command prints, run from the root of the checkout; `says` is its stderr."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *args],
        cwd=ROOT,
        # a plugin of pydantic, which some of our stacks have, takes a second to import
        env={**os.environ, "PYTHONPATH": path, "PYDANTIC_DISABLE_PLUGINS": "__all__"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, says)
    return done.stdout.splitlines()


@pytest.mark.version_free
def test_stack_overflow() -> None:
    """The first story: all requests are answered before a result is stored, and then in their order."""
    order, answered, stored_by_then = run("examples/stack_overflow.py")
    assert order == "0 1 2 3 4 5 6 7"
    assert answered.startswith("all 8 requests were answered after ")
    assert stored_by_then == "results stored when the last request was answered: 0"


def test_client_ignores_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo asks its own server, whatever proxy the environment names."""
    from fifo_background import BackgroundTasks
    from fifo_background.__main__ import _load_example

    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    example = _load_example()
    seen = example.order_seen(example.make_app(BackgroundTasks, 3), [f"/request/{n}" for n in range(3)])
    assert seen.order == [0, 1, 2]


def test_one_thread_token() -> None:
    """The app of the first story has one thread token, on every version of anyio."""
    from fifo_background import BackgroundTasks
    from fifo_background.__main__ import _load_example

    app = _load_example().make_app(BackgroundTasks, 1)

    @app.get("/tokens")
    async def tokens() -> float:
        return anyio.to_thread.current_default_thread_limiter().total_tokens

    with TestClient(app) as client:
        assert client.get("/tokens").json() == 1


@pytest.mark.version_free
def test_game_stats() -> None:
    """The second story: with ours each player's newest score stays, with plain tasks an old one."""
    assert run("examples/game_stats.py") == GAME_STATS


GAME_STATS = [
    "plain   stored 7 6 5 4 3 2 1 0; ann sees 0, bob sees 1",
    "ordered stored 0 1 2 3 4 5 6 7; ann sees 6, bob sees 7",
]
SLOWLY = """
import sys, time
sys.path.insert(0, "examples")
import game_stats, stack_overflow
ask = stack_overflow._ask
stack_overflow._ask = lambda *args: time.sleep(2 * game_stats.SLOW) or ask(*args)
game_stats.main()
"""


@pytest.mark.version_free
def test_game_stats_under_load() -> None:
    """The second story ends the same on a busy machine, where a push takes longer than to store a result."""
    assert run("-c", SLOWLY) == GAME_STATS


@pytest.mark.version_free
def test_lanes() -> None:
    """In one queue bob waits for ann, with lanes he does not; each player's results stay in order."""
    assert run("examples/lanes.py") == [
        "one queue ann 1, bob 2, ann 3, bob 4",
        "lanes     bob 2, bob 4, ann 1, ann 3",
    ]


@pytest.mark.version_free
def test_retries() -> None:
    """A retry holds the lane: `0 0 1 2 3`."""
    assert run("examples/retries.py", says="stamina.retry_scheduled\n") == ["0 0 1 2 3"]


def load(name: str) -> dict[str, Any]:
    """The names of an example, which its functions see as their globals."""
    names: dict[str, Any] = {"__name__": name}
    source = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    exec(compile(source.replace("=1000", "=2"), name, "exec", dont_inherit=True), names)
    return names


class StoresAtShutdown:
    """An example whose `store` waits until the app is told to shut down."""

    def __init__(self, name: str) -> None:
        names = load(name)
        names["store"] = self.store
        self.app = names["app"]
        self.stored: list[int] = []

    async def store(self, score: int) -> None:
        await self.gate.wait()
        self.stored.append(score)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def receive_and_open() -> Any:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                self.gate.set()
            return message

        if scope["type"] == "lifespan":
            self.gate = anyio.Event()
        await self.app(scope, receive_and_open, send)


@pytest.mark.parametrize("name", ["asyncio_queue", "with_executor"])
def test_queue_in_order(name: str) -> None:
    """Both apps of `docs/from-asyncio-queue.md` store scores in order."""
    names = load(name)
    with TestClient(names["app"]) as client:
        for path in ("/scores/1", "/scores/2/wait", "/scores/3"):
            assert client.post(path).status_code == 202
        assert client.get("/scores").json() == [1, 2, 3]
        assert client.get("/waiting").json() == 0


def test_an_exception_ends_the_worker() -> None:
    """With a queue and a worker, nothing is stored after an exception."""
    names = load("asyncio_queue")
    with TestClient(names["app"]) as client:
        for score in (1, -1, 2):
            assert client.post(f"/scores/{score}").status_code == 202
        assert client.get("/waiting").json() == 1
    assert names["stored"] == [1]


def test_an_exception_ends_one_task(log: Log) -> None:
    """With an executor, a failure is logged, its state can be asked for, and the next task runs."""
    with TestClient(load("with_executor")["app"]) as client:
        for score in (1, -1, 2):
            assert client.post(f"/scores/{score}").status_code == 202
        assert client.get("/scores").json() == [1, 2]
        assert [client.get(f"/scores/{score}/state").json() for score in (-1, 2)] == ["failed", "succeeded"]
    assert log == ["ERROR store failed"]


@pytest.mark.parametrize(("name", "stored"), [("asyncio_queue", []), ("with_executor", [0, 1, 2])])
def test_shutdown_with_a_full_queue(name: str, stored: list[int]) -> None:
    """A full queue means 503 with both. At shutdown a queue loses its items, and an executor runs them."""
    app = StoresAtShutdown(name)
    with TestClient(app) as client:
        answers = [client.post(f"/scores/{score}") for score in range(4)]
    assert [answer.status_code for answer in answers] == [202, 202, 202, 503]
    assert answers[-1].headers["Retry-After"] == "1"
    assert app.stored == stored


def test_put_nowait_overtakes() -> None:
    """A bounded `asyncio.Queue` lets `put_nowait` overtake a `put` that waits."""

    async def overtake() -> list[str]:
        queue: asyncio.Queue[str] = asyncio.Queue(maxsize=1)
        await queue.put("first")
        waiting = asyncio.create_task(queue.put("waiting"))
        await asyncio.sleep(0)
        seen = [queue.get_nowait()]
        queue.put_nowait("late")
        while not waiting.done() or not queue.empty():
            seen.append(await queue.get())
        return seen

    assert asyncio.run(overtake()) == ["first", "late", "waiting"]


async def test_submit_nowait_does_not_overtake(events: list[Any]) -> None:
    """While a `submit` waits for capacity, `submit_nowait` does not overtake it."""
    async with SerialExecutor(max_waiting=1) as executor, anyio.create_task_group() as group:
        gate = anyio.Event()
        executor.submit_nowait(gate.wait)
        await anyio.wait_all_tasks_blocked()
        first = executor.submit_nowait(events.append, "first")
        group.start_soon(executor.submit, events.append, "waiting")
        await anyio.wait_all_tasks_blocked()
        gate.set()
        await first.wait()
        with pytest.raises(QueueFull):
            executor.submit_nowait(events.append, "late")
    assert events == ["first", "waiting"]


def test_gunicorn_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the worker class for gunicorn sets, uvicorn takes."""
    import uvicorn

    plain = SimpleNamespace(UvicornWorker=type("UvicornWorker", (), {"CONFIG_KWARGS": {"loop": "auto"}}))
    monkeypatch.setitem(sys.modules, "uvicorn_worker", plain)
    config = uvicorn.Config("main:app", **load("gunicorn_worker")["Worker"].CONFIG_KWARGS)
    assert (config.lifespan, config.timeout_graceful_shutdown) == ("on", 10)


class TasksUI:
    """`tasks_ui.py` on loopback under uvicorn; its tasks take no time, and the first payment fails."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """A request, and its answer's status and JSON."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
            is_json = "json" in response.getheader("Content-Type", "")
            return response.status, json.loads(text) if is_json else text.decode()
        finally:
            connection.close()


@pytest.fixture
def tasks_ui() -> Iterator[TasksUI]:
    import uvicorn

    names, draws = load("tasks_ui"), iter([0.1, 0.9])
    names["asyncio"] = SimpleNamespace(sleep=lambda seconds: anyio.sleep(0))
    names["random"] = SimpleNamespace(randint=lambda least, most: most, random=lambda: next(draws))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        server = uvicorn.Server(uvicorn.Config(names["app"], log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield TasksUI(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()


@pytest.mark.version_free
def test_tasks_client(tasks_ui: TasksUI) -> None:
    """The client of `tasks_ui.py` follows each job to its result."""
    queued, *ended = run("examples/tasks_client.py", "5", f"http://127.0.0.1:{tasks_ui.port}")
    assert queued == "queued 5"
    lanes = ["emails", "reports", "thumbnails", "emails", "reports"]
    assert sorted(ended) == [
        f"{number} {lane} succeeded {{'slept': 10}}" for number, lane in enumerate(lanes, 1)
    ]


def test_tasks_ui(tasks_ui: TasksUI) -> None:
    """`tasks_ui.py` takes 1 to 100 tasks, and its page is there."""
    for count in (0, 101):
        assert tasks_ui.ask("POST", "/task", {"count": count})[0] == 422
    status, answer = tasks_ui.ask("POST", "/task", {"count": 100})
    assert (status, answer["queued"], len(set(answer["jobs"]))) == (201, 100, 100)
    status, job = tasks_ui.ask("GET", f"/tasks/jobs/{answer['jobs'][-1]}?wait=20")
    assert (status, job["state"], job["result"]) == (200, "succeeded", {"slept": 10})
    assert job["progress"] == {"done": 10, "total": 10, "note": "seconds slept"}
    status, page = tasks_ui.ask("GET", "/tasks/")
    assert (status, "<title>Tasks</title>" in page) == (200, True)


def test_tasks_ui_retries(tasks_ui: TasksUI) -> None:
    """A failed payment of `tasks_ui.py` stops its lane, and a retry lets the lane go on."""
    _, paid = tasks_ui.ask("POST", "/payments/5", {})
    _, failed = tasks_ui.ask("GET", f"/tasks/jobs/{paid['job']}?wait=20")
    assert failed["error"] == {"type": "ConnectionError", "message": "the bank does not answer"}
    retry = f"/tasks/lanes/{failed['lane']['id']}/retry"
    assert tasks_ui.ask("POST", retry, {"head": failed["id"]})[0] == 200
    _, found = tasks_ui.ask("GET", "/tasks/jobs?limit=1")
    _, again = tasks_ui.ask("GET", f"/tasks/jobs/{found['items'][0]['id']}?wait=20")
    assert (again["retry_of"], again["result"]) == (failed["id"], "charged 5")


@pytest.mark.version_free
def test_tests_of_an_app(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test files of `docs/test-an-app.md` pass, with anyio's own pytest plugin."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # it takes seconds to import others
    folder = "examples/testing"
    plugins = ["-p", "anyio", "-p", "no:cacheprovider"]
    *_, last = run("-m", "pytest", "-q", *plugins, "-c", os.devnull, "--rootdir", folder, folder)
    assert last.startswith("23 passed")


def test_demo() -> None:
    """`python -m fifo_background` shows both orders; ours is that of the requests, the plain one is not."""
    title, plain, ordered = run("-m", "fifo_background")
    assert title.startswith("10 requests")
    assert "out of order; all answered after" in plain
    assert "ordered: 0 1 2 3 4 5 6 7 8 9   in order; all answered after" in ordered


def test_demo_in_process(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo ends with 0 if our order was kept, 1 if not, and 2 if something is missing."""
    from fifo_background import __main__ as demo

    assert demo.main() == 0
    assert "in order" in capsys.readouterr().out

    class Broken:
        make_app = staticmethod(lambda tasks_class, total: None)
        order_seen = staticmethod(lambda app, paths: ([1, 0], 0.0, 0))

    with monkeypatch.context() as patch:
        patch.setattr(demo, "_load_example", lambda: Broken)
        assert demo.main() == 1
    assert "please report this" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert demo.main() == 2
    assert "pip install 'fifo-background[demo]'" in capsys.readouterr().err
    monkeypatch.setattr(demo, "__file__", "/nowhere/fifo_background/__main__.py")
    with pytest.raises(SystemExit, match=r"stack_overflow.py is neither in"):
        demo._load_example()
