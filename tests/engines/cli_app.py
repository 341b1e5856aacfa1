"""An app that `fifo-background worker` runs: its DSN and its queue come from the environment."""

from __future__ import annotations

import os
import threading

import anyio
from starlette.applications import Starlette
from starlette.middleware import Middleware

from fifo_background import OrderedBackgroundMiddleware
from fifo_background.engines.postgres import PostgresEngine

waits = threading.Event()


def note(what: str) -> None:
    print(what, flush=True)


def fail() -> None:
    raise ValueError("no")


async def wait() -> None:
    """Until it is cancelled, or its process is ended."""
    print("waits", flush=True)
    waits.set()
    await anyio.sleep_forever()


def make_app(dsn: str | None = None, queue: str | None = None) -> Starlette:
    engine = PostgresEngine(
        dsn or os.environ["FIFO_BACKGROUND_DSN"],
        queue=queue or os.environ["QUEUE"],
        packages=["tests"],
        worker=False,
    )
    return Starlette(middleware=[Middleware(OrderedBackgroundMiddleware, engine=engine)])
