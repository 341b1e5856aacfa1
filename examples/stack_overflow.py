"""The story of Stack Overflow 77237123: "FastAPI background tasks run in a random order".

The app gives anyio's worker threads one token, hoping that this makes background tasks serial. Each request
adds two tasks: `process_request`, a `def` task that needs the thread, and `store_result`, an `async` one.
With plain `BackgroundTasks` results are stored out of order, on every version of anyio. With
`fifo_background.BackgroundTasks` they are stored in the order of the requests.

`python examples/stack_overflow.py` starts the app with uvicorn on loopback, sends it eight requests, and
prints the order in which their results were stored.
"""

import json
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.client import HTTPConnection
from typing import Any, NamedTuple

import anyio
import anyio.to_thread
import fastapi
import uvicorn

import fifo_background

WORK = 0.01  # seconds in the thread, for each request
STORE = 0.025  # seconds that storing takes, for each request that comes after


def make_app(tasks_class: Any, total: int) -> fastapi.FastAPI:
    """The app. Only `tasks_class` differs, and the middleware that belongs to `fifo_background`'s class."""
    stored: list[int] = []
    all_stored: list[anyio.Event] = []

    @asynccontextmanager
    async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[None]:
        # The story has RunVar("_default_thread_limiter").set(CapacityLimiter(1)). That sets the limiter on
        # anyio 3 and does nothing on anyio 4.16. This line has the same effect, and works on both.
        anyio.to_thread.current_default_thread_limiter().total_tokens = 1
        all_stored.append(anyio.Event())
        yield

    app = fastapi.FastAPI(lifespan=lifespan)
    if tasks_class is fifo_background.BackgroundTasks:
        app.add_middleware(fifo_background.OrderedBackgroundMiddleware)

    def process_request(n: int) -> None:
        time.sleep(WORK)

    async def store_result(n: int) -> None:
        await anyio.sleep(STORE * (total - n))  # the first results are the largest
        stored.append(n)
        if len(stored) == total:
            all_stored[0].set()

    @app.post("/request/{n}", status_code=202)
    async def request_api(n: int, background_tasks: tasks_class) -> int:  # type: ignore[valid-type]
        """Returns the number of results that are already stored."""
        background_tasks.add_task(process_request, n)
        background_tasks.add_task(store_result, n)
        return len(stored)

    @app.get("/stored")
    async def get_stored() -> list[int]:
        """Returns the results in the order in which they were stored, once all are stored."""
        await all_stored[0].wait()
        return stored

    return app


class Seen(NamedTuple):
    """What a client saw: a result of `order_seen`."""

    order: list[Any]
    answered: float  # seconds until the last request was answered
    stored_by_then: int  # results that were stored when the last request was answered


def order_seen(app: fastapi.FastAPI, paths: list[str]) -> Seen:
    """Run the app, post to each path without a pause, and wait for the order in which it stored them."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            begin = time.perf_counter()
            answers = [_ask(port, "POST", path) for path in paths]
            answered = time.perf_counter() - begin
            return Seen(_ask(port, "GET", "/stored"), answered, max(answers))
        finally:
            server.should_exit = True
            thread.join()


def _ask(port: int, method: str, path: str) -> Any:
    """One request in a connection of its own: in a kept one, a server waits for the tasks before it."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        body = response.read()
        if response.status >= 300:
            raise RuntimeError(f"{method} {path} was answered with {response.status}: {body!r}")
        return json.loads(body)
    finally:
        connection.close()


def main(total: int = 8) -> None:
    app = make_app(fifo_background.BackgroundTasks, total)
    seen = order_seen(app, [f"/request/{n}" for n in range(total)])
    print(*seen.order)
    work = total * WORK + STORE * total * (total + 1) / 2
    print(f"all {total} requests were answered after {seen.answered:.2f} s; their tasks take {work:.2f} s")
    print(f"results stored when the last request was answered: {seen.stored_by_then}")


if __name__ == "__main__":
    main()
