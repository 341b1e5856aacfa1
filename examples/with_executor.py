"""The app of `asyncio_queue.py` with `fifo_background`: results, reported failures, and a clean end.

Run it with `uvicorn with_executor:app --lifespan on`.
"""

from typing import Annotated

from fastapi import Depends, FastAPI

from fifo_background import Job, OrderedBackgroundMiddleware, SerialExecutor, executor_of

stored: list[int] = []
jobs: dict[int, Job[None]] = {}


async def store(score: int) -> None:
    if score < 0:
        raise ValueError(f"invalid score: {score}")
    stored.append(score)


app = FastAPI()
app.add_middleware(OrderedBackgroundMiddleware, max_waiting=1000, drain_timeout=30.0)

Executor = Annotated[SerialExecutor, Depends(executor_of)]


@app.post("/scores/{score}", status_code=202)
async def push(score: int, executor: Executor) -> None:
    jobs[score] = executor.submit_nowait(store, score)


@app.post("/scores/{score}/wait", status_code=202)
async def push_or_wait(score: int, executor: Executor) -> None:
    jobs[score] = await executor.submit(store, score)


@app.get("/scores")
async def scores(executor: Executor) -> list[int]:
    await executor.join()
    return stored


@app.get("/scores/{score}/state")
async def state(score: int) -> str:
    return jobs[score].state.value


@app.get("/waiting")
async def waiting(executor: Executor) -> int:
    return executor.statistics().waiting
