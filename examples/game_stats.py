"""The story of a game plugin that pushes its results quickly: old data must not overwrite newer data.

Storing a result takes a while, and the first results take longest. With plain `BackgroundTasks` the value
that stays is an old one; with ours it is always the newest.

`python examples/game_stats.py` pushes eight results to both apps and prints what was stored, in order.
"""

from typing import Any

import anyio
import fastapi
from stack_overflow import order_seen

import fifo_background

SLOW = 0.02  # seconds that storing takes, for each result that comes after


def make_app(tasks_class: Any, total: int) -> fastapi.FastAPI:
    """The app of the plugin; `stored[-1]` is the value that its players see."""
    app = fastapi.FastAPI()
    stored: list[int] = []
    if tasks_class is fifo_background.BackgroundTasks:
        app.add_middleware(fifo_background.OrderedBackgroundMiddleware)

    async def store(score: int) -> None:
        await anyio.sleep(SLOW * (total - score))
        stored.append(score)

    @app.post("/request/{score}", status_code=202)
    async def push(score: int, background_tasks: tasks_class) -> None:  # type: ignore[valid-type]
        background_tasks.add_task(store, score)

    @app.get("/stored")
    async def get_stored() -> list[int]:
        """What was stored, in order; answers when all results are."""
        while len(stored) < total:
            await anyio.sleep(0.01)
        return stored

    return app


def main(total: int = 8) -> None:
    for name, tasks_class in (
        ("plain", fastapi.BackgroundTasks),
        ("ordered", fifo_background.BackgroundTasks),
    ):
        stored, _ = order_seen(make_app(tasks_class, total), total)
        print(f"{name:8}stored {' '.join(map(str, stored))}; the players see {stored[-1]}")


if __name__ == "__main__":
    main()
