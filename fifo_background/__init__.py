"""Ordered background tasks for Starlette and FastAPI: swap the import, add one middleware."""

from importlib.util import find_spec as _find_spec

from fifo_background._job import Job, JobState
from fifo_background._middleware import OrderedBackgroundMiddleware, executor_of
from fifo_background._serial import ExecutorLane, SerialExecutor, Submitter
from fifo_background._statistics import ExecutorStatistics, LaneStatistics, WaitsFor
from fifo_background._tasks import OrderedBackgroundTask, OrderedBackgroundTasks, TaskAdder
from fifo_background.exceptions import (
    ExecutorClosed,
    JobDropped,
    JobNotEnded,
    LaneStopped,
    OrderedBackgroundError,
    QueueFull,
    WouldDeadlock,
)

if _find_spec("fastapi") is not None:
    from fifo_background import _fastapi

    _fastapi.install()

BackgroundTask = OrderedBackgroundTask
BackgroundTasks = OrderedBackgroundTasks

__all__ = (
    "BackgroundTask",
    "BackgroundTasks",
    "ExecutorClosed",
    "ExecutorLane",
    "ExecutorStatistics",
    "Job",
    "JobDropped",
    "JobNotEnded",
    "JobState",
    "LaneStatistics",
    "LaneStopped",
    "OrderedBackgroundError",
    "OrderedBackgroundMiddleware",
    "OrderedBackgroundTask",
    "OrderedBackgroundTasks",
    "QueueFull",
    "SerialExecutor",
    "Submitter",
    "TaskAdder",
    "WaitsFor",
    "WouldDeadlock",
    "executor_of",
)
__version__ = "0.1.0"
