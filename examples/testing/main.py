import anyio
from fastapi import FastAPI

from fifo_background import BackgroundTasks, OrderedBackgroundMiddleware

app = FastAPI()
app.add_middleware(OrderedBackgroundMiddleware)

stored: list[int] = []


async def store(score: int) -> None:
    if score < 0:
        raise ValueError(f"invalid score: {score}")
    for _ in range(10 - score):  # the first scores take longest
        await anyio.sleep(0)
    stored.append(score)


@app.post("/scores/{score}", status_code=202)
async def push(score: int, background_tasks: BackgroundTasks) -> None:
    background_tasks.add_task(store, score)


@app.post("/scores/{score}/detached", status_code=202)
async def push_detached(score: int, background_tasks: BackgroundTasks) -> None:
    background_tasks.options(wait=False).add_task(store, score)
