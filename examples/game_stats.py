"""The story of a game plugin that pushes its results quickly: old data must not overwrite newer data.

It takes a while to store a result, and the first results take longest. With plain `BackgroundTasks` an old
score stays. With `fifo_background.BackgroundTasks` the newest score always stays.

`python examples/game_stats.py` pushes eight results of two players to both apps. It prints the stored
results, in order, and the score that each player sees in the end.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import fastapi
from stack_overflow import order_seen

import fifo_background

SLOW = 0.02  # seconds that storing takes, for each result that comes after
PUSHED = [("ann" if score % 2 == 0 else "bob", score) for score in range(8)]


def make_app(tasks_class: Any) -> fastapi.FastAPI:
    """The app of the plugin."""
    stored: list[tuple[str, int]] = []
    all_pushed: list[anyio.Event] = []
    all_stored: list[anyio.Event] = []

    @asynccontextmanager
    async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[None]:
        all_pushed.append(anyio.Event())
        all_stored.append(anyio.Event())
        yield

    app = fastapi.FastAPI(lifespan=lifespan)
    if tasks_class is fifo_background.BackgroundTasks:
        app.add_middleware(fifo_background.OrderedBackgroundMiddleware)

    async def store(player: str, score: int) -> None:
        await all_pushed[0].wait()  # however long a busy machine takes to push
        await anyio.sleep(SLOW * (len(PUSHED) - score))
        stored.append((player, score))
        if len(stored) == len(PUSHED):
            all_stored[0].set()

    @app.post("/results/{player}/{score}", status_code=202)
    async def push(player: str, score: int, background_tasks: tasks_class) -> int:  # type: ignore[valid-type]
        """Returns the number of results that are already stored."""
        background_tasks.add_task(store, player, score)
        if score == PUSHED[-1][1]:
            all_pushed[0].set()
        return len(stored)

    @app.get("/stored")
    async def get_stored() -> list[tuple[str, int]]:
        """Returns the stored results, in order, once all are stored."""
        await all_stored[0].wait()
        return stored

    return app


def main() -> None:
    for name, tasks_class in (
        ("plain", fastapi.BackgroundTasks),
        ("ordered", fifo_background.BackgroundTasks),
    ):
        seen = order_seen(make_app(tasks_class), [f"/results/{player}/{score}" for player, score in PUSHED])
        last = dict(seen.order)  # a later one overwrites an earlier one
        scores = " ".join(str(score) for _, score in seen.order)
        print(f"{name:8}stored {scores}; ann sees {last['ann']}, bob sees {last['bob']}")


if __name__ == "__main__":
    main()
