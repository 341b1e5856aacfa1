"""The story of Stack Overflow 77237123: "FastAPI background tasks run in a random order".

The app gives anyio's worker threads one token, hoping that this makes background tasks serial. Each request
adds two tasks: `process_request`, a `def` task that needs the thread, and `store_result`, an `async` one.
With plain `BackgroundTasks` results are stored out of order, on every version of anyio. With ours they are
stored in the order of the requests.

`python examples/stack_overflow.py` starts the app with uvicorn on loopback, sends it eight requests, and
prints the order in which their results were stored.
"""

import json
import socket
import threading
import time
import urllib.request
from typing import Any

import anyio
import fastapi
import uvicorn
from anyio.lowlevel import RunVar

import fifo_background

WORK = 0.02  # seconds in the thread, for each request
STORE = 0.03  # seconds that storing takes, for each request that comes after


def make_app(tasks_class: Any, total: int) -> fastapi.FastAPI:
    """The app; `tasks_class` is the only thing that differs, and the middleware that comes with ours."""
    app = fastapi.FastAPI()
    stored: list[int] = []
    all_stored = threading.Event()
    if tasks_class is fifo_background.BackgroundTasks:
        app.add_middleware(fifo_background.OrderedBackgroundMiddleware)

    def process_request(n: int) -> None:
        time.sleep(WORK)

    async def store_result(n: int) -> None:
        await anyio.sleep(STORE * (total - n))  # the first results are the largest
        stored.append(n)
        if len(stored) == total:
            all_stored.set()

    @app.post("/request/{n}", status_code=202)
    async def request_api(n: int, background_tasks: tasks_class) -> dict[str, int]:  # type: ignore[valid-type]
        RunVar[Any]("_default_thread_limiter").set(anyio.CapacityLimiter(1))
        background_tasks.add_task(process_request, n)
        background_tasks.add_task(store_result, n)
        return {"accepted": n}

    @app.get("/stored")
    async def get_stored() -> list[int]:
        """The order in which results were stored; answers when all are."""
        while not all_stored.is_set():
            await anyio.sleep(0.01)
        return stored

    return app


def order_seen(app: fastapi.FastAPI, total: int) -> tuple[list[int], float]:
    """Run the app, send it `total` requests, and return the order seen and how long the answers took."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            begin = time.perf_counter()
            for n in range(total):
                _ask(urllib.request.Request(f"{url}/request/{n}", method="POST"))
            answered = time.perf_counter() - begin
            return _ask(urllib.request.Request(f"{url}/stored")), answered
        finally:
            server.should_exit = True
            thread.join()


def _ask(request: urllib.request.Request) -> Any:
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def main(total: int = 8) -> None:
    order, answered = order_seen(make_app(fifo_background.BackgroundTasks, total), total)
    print(*order)
    work = total * WORK + STORE * total * (total + 1) / 2
    print(f"all {total} requests were answered after {answered:.2f} s; their tasks take {work:.2f} s")


if __name__ == "__main__":
    main()
