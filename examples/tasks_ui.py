"""Tasks with results, a JSON API and a live page.

Run it with `uvicorn tasks_ui:app`, and open http://127.0.0.1:8000/tasks/. Then run `python tasks_client.py`.
"""

import asyncio
import random

from fastapi import FastAPI
from pydantic import BaseModel, Field

from fifo_background import BackgroundTasks, OrderedBackgroundMiddleware, report
from fifo_background.status import StatusApp

app = FastAPI()
app.mount("/tasks", StatusApp(show_results=True), name="tasks")
app.add_middleware(OrderedBackgroundMiddleware, results=True, wait=False)

LANES = ["emails", "reports", "thumbnails"]


class Order(BaseModel):
    count: int = Field(ge=1, le=100)


async def create_task(seconds: int) -> dict[str, int]:
    for second in range(1, seconds + 1):
        await asyncio.sleep(1)
        report(second, seconds, "seconds slept")
    return {"slept": seconds}


async def charge(amount: int) -> str:
    await asyncio.sleep(1)
    if random.random() < 0.5:
        raise ConnectionError("the bank does not answer")
    return f"charged {amount}"


@app.post("/task", status_code=201)
async def task(order: Order, background_tasks: BackgroundTasks) -> dict[str, object]:
    jobs = []
    for number in range(order.count):
        lane = background_tasks.lane(LANES[number % len(LANES)])
        jobs.append(lane.add_task(create_task, random.randint(1, 10)))
    return {"queued": order.count, "jobs": [job.id for job in jobs]}


@app.post("/payments/{amount}", status_code=201)
async def pay(amount: int, background_tasks: BackgroundTasks) -> dict[str, str]:
    # Half of the payments fail. The lane then stops, and the page offers Retry and Skip.
    job = background_tasks.lane("payments", after_failure="stop").add_task(charge, amount)
    return {"job": job.id}
