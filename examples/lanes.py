"""Lanes: the results of each player in order, and no player waits for another one.

It takes a while to store a result of ann, and no time to store one of bob. In one queue bob waits for ann.
With a lane for each player he does not, and each player's results are still stored first in, first out.

`python examples/lanes.py` pushes the same results to both apps and prints the stored results, in order.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import fastapi
from stack_overflow import order_seen

from fifo_background import BackgroundTasks, OrderedBackgroundMiddleware

TAKES = {"ann": 0.2, "bob": 0.0}  # seconds to store one result
PUSHED = [("ann", 1), ("bob", 2), ("ann", 3), ("bob", 4)]


def make_app(**settings: Any) -> fastapi.FastAPI:
    """The app, with these settings of the middleware."""
    stored: list[tuple[str, int]] = []
    all_stored: list[anyio.Event] = []

    @asynccontextmanager
    async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[None]:
        all_stored.append(anyio.Event())
        yield

    app = fastapi.FastAPI(lifespan=lifespan)
    app.add_middleware(OrderedBackgroundMiddleware, **settings)

    async def store(player: str, score: int) -> None:
        await anyio.sleep(TAKES[player])
        stored.append((player, score))
        if len(stored) == len(PUSHED):
            all_stored[0].set()

    @app.post("/results/{player}/{score}", status_code=202)
    async def push(player: str, score: int, background_tasks: BackgroundTasks) -> int:
        """Returns the number of results that are already stored."""
        # `background_tasks.lane(player).add_task(...)` would choose the lane here
        background_tasks.add_task(store, player, score)
        return len(stored)

    @app.get("/stored")
    async def get_stored() -> list[tuple[str, int]]:
        """Returns the stored results, in order, once all are stored."""
        await all_stored[0].wait()
        return stored

    return app


def player_of(scope: Any) -> str:
    """The key of the lane for the tasks of a request."""
    player: str = scope["path_params"]["player"]
    return player


def main() -> None:
    for name, app in (("one queue", make_app()), ("lanes", make_app(lane_key=player_of))):
        seen = order_seen(app, [f"/results/{player}/{score}" for player, score in PUSHED])
        print(f"{name:9}", ", ".join(f"{player} {score}" for player, score in seen.order))


if __name__ == "__main__":
    main()
