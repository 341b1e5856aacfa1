"""An app with its status at `/tasks`, for real servers."""

import anyio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from fifo_background import BackgroundTasks, OrderedBackgroundMiddleware
from fifo_background.status import StatusApp


async def task(seconds: float) -> float:
    await anyio.sleep(seconds)
    return seconds


async def root(request: Request) -> Response:
    return JSONResponse({})


async def add(request: Request) -> Response:
    """Adds tasks; the response names the jobs."""
    tasks, query = BackgroundTasks(), request.query_params
    jobs = [tasks.add_task(task, float(query["seconds"])) for _ in range(int(query["count"]))]
    return JSONResponse([job.id for job in jobs], background=tasks)


app = Starlette(
    routes=[
        Route("/", root),
        Route("/add", add, methods=["POST"]),
        Mount("/tasks", StatusApp(stream_seconds=2.0, show_results=True)),
    ],
    middleware=[Middleware(OrderedBackgroundMiddleware, wait=False, results=True)],
)
