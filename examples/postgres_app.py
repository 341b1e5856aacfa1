"""An app whose tasks run in order over several processes: PostgreSQL keeps them.

The orders of one customer are booked one after the other, in the order in which they came. It does not matter
which process has answered them, and which worker books them.

    export FIFO_BACKGROUND_DSN=postgresql://user@host/database
    fifo-background migrate
    uvicorn postgres_app:app --workers 2
    fifo-background worker postgres_app:app

Run the last line in other terminals, and on other hosts, for more workers.
"""

import os
import time

from fastapi import FastAPI

from fifo_background import BackgroundTasks, OrderedBackgroundMiddleware
from fifo_background.engines.postgres import PostgresEngine

BOOKS = os.environ.get("BOOKS", "books.txt")

# worker=False: the processes that answer requests only store tasks
engine: PostgresEngine = PostgresEngine(os.environ["FIFO_BACKGROUND_DSN"], worker=False, concurrency=4)
app: FastAPI = FastAPI()
app.add_middleware(OrderedBackgroundMiddleware, engine=engine)


@app.post("/orders/{customer}/{number}", status_code=202)
async def order(customer: str, number: int, tasks: BackgroundTasks) -> dict[str, str]:
    job = tasks.lane(customer).add_task(book, customer, number)
    return {"job": job.id}


def book(customer: str, number: int) -> None:
    """It may run twice, if its worker dies: so it writes when it begins and when it has ended."""
    write("begins", customer, number)
    time.sleep(0.05)
    write("ends", customer, number)


def write(what: str, customer: str, number: int) -> None:
    with open(BOOKS, "a") as books:
        books.write(f"{time.time():.6f} {os.getpid()} {what} {customer} {number}\n")
