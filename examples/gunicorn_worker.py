"""A worker for gunicorn: the lifespan is on, and waiting for open requests has a limit.

Run it with `gunicorn main:app -k gunicorn_worker.Worker --graceful-timeout 30`.
"""

from uvicorn_worker import UvicornWorker


class Worker(UvicornWorker):
    CONFIG_KWARGS = UvicornWorker.CONFIG_KWARGS | {"lifespan": "on", "timeout_graceful_shutdown": 10}
