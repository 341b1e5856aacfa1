"""Ordered background tasks for Starlette and FastAPI: swap the import, add one middleware."""

from importlib.util import find_spec as _find_spec

from fifo_background._adder import TaskAdder
from fifo_background._background import OrderedBackgroundTask, OrderedBackgroundTasks
from fifo_background._core.history import Timing
from fifo_background._core.job import Job
from fifo_background._core.job_record import Blocker, JobRecord, LaneName
from fifo_background._core.lane_picture import LaneList, LaneRecord
from fifo_background._core.special import Progress
from fifo_background._core.state import JobState
from fifo_background._core.statistics import BlockedBy, ExecutorStatistics, LaneStatistics
from fifo_background._executor import ExecutorLane, SerialExecutor, Submitter
from fifo_background._lookup import executor_of
from fifo_background._middleware import OrderedBackgroundMiddleware
from fifo_background._run.progress import report
from fifo_background.exceptions import (
    ExecutorClosed,
    JobNoResult,
    JobNotEnded,
    LaneStopped,
    OrderedBackgroundError,
    QueueFull,
    WouldDeadlock,
)

if _find_spec("fastapi") is not None:
    from fifo_background._fastapi.hook import install as _install

    _install()

BackgroundTask = OrderedBackgroundTask
BackgroundTasks = OrderedBackgroundTasks

__all__ = (
    "BackgroundTask",
    "BackgroundTasks",
    "BlockedBy",
    "Blocker",
    "ExecutorClosed",
    "ExecutorLane",
    "ExecutorStatistics",
    "Job",
    "JobNoResult",
    "JobNotEnded",
    "JobRecord",
    "JobState",
    "LaneList",
    "LaneName",
    "LaneRecord",
    "LaneStatistics",
    "LaneStopped",
    "OrderedBackgroundError",
    "OrderedBackgroundMiddleware",
    "OrderedBackgroundTask",
    "OrderedBackgroundTasks",
    "Progress",
    "QueueFull",
    "SerialExecutor",
    "Submitter",
    "TaskAdder",
    "Timing",
    "WouldDeadlock",
    "executor_of",
    "report",
)
__version__ = "0.1.0"
