"""The pattern that `with_executor.py` replaces: one `asyncio.Queue`, and one worker task in the lifespan.

Its weaknesses are listed in `docs/from-asyncio-queue.md`, and shown by `tests/test_examples.py`.
Run it with `uvicorn asyncio_queue:app`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException

stored: list[int] = []


async def store(score: int) -> None:
    if score < 0:
        raise ValueError(f"invalid score: {score}")
    stored.append(score)


async def work(queue: asyncio.Queue[int]) -> None:
    while True:
        score = await queue.get()
        try:
            await store(score)
        finally:
            queue.task_done()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.queue = asyncio.Queue(maxsize=1000)
    worker = asyncio.create_task(work(app.state.queue))
    yield
    worker.cancel()


app = FastAPI(lifespan=lifespan)


@app.post("/scores/{score}", status_code=202)
async def push(score: int) -> None:
    try:
        app.state.queue.put_nowait(score)
    except asyncio.QueueFull:
        raise HTTPException(503, headers={"Retry-After": "1"}) from None


@app.post("/scores/{score}/wait", status_code=202)
async def push_or_wait(score: int) -> None:
    await app.state.queue.put(score)


@app.get("/scores")
async def scores() -> list[int]:
    await app.state.queue.join()
    return stored


@app.get("/waiting")
async def waiting() -> int:
    return app.state.queue.qsize()
