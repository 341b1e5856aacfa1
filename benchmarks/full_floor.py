"""The full floor: the barest code with every look and count that the guarantees need in this one case.

What `per_task.py` measures, with the package's own data (`Job`, `Place`, `Lane`, ...), written straight into
a few long functions, without calls from file to file. Any other case (a second task, a failure, a cancel, a
pause, a limit, another lane) raises. `floor.py` leaves out what most guarantees need: no Python goes below
that. This is what the guarantees cost at least with this data.
"""

from __future__ import annotations

import asyncio
import sys
import time
from asyncio import _get_running_loop
from contextvars import copy_context
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
from starlette.background import BackgroundTasks

from fifo_background import _call
from fifo_background._executor import current, here
from fifo_background._job import PENDING, QUEUED, RUNNING, SUCCEEDED, Batch, Job
from fifo_background._lane import GONE, IN_LINE, NOTHING, OUTSIDE, Lane, Place, Runner
from fifo_background._line import OPEN, Line
from fifo_background._request import ENDED, HANDLING, JOB, TrackedRequest
from fifo_background._settings import Settings
from fifo_background._sniffio import set_library


class Tasks(BackgroundTasks):
    floor: FullFloor
    _request: TrackedRequest | None = None
    _awaited: Any = None
    _spans = True

    def __init__(self) -> None:
        super().__init__()
        request = here()
        if isinstance(request, TrackedRequest):  # a request's objects share its places
            self._request = request

    def add_task(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        if not callable(func) or BackgroundTasks.add_task is not _call.STARLETTES_ADD:
            raise NotImplementedError
        task = _call.make_task(func, args, kwargs)
        request, batch = (self._request, None) if self._awaited is None else self._awaited
        line = self.floor.line
        if _get_running_loop() is not self.floor.loop:  # threads may add, other loops may not
            raise NotImplementedError
        settings = request.settings
        job: Job[Any] = Job(task, None, settings.options)
        line.lock.acquire()
        try:
            if request.stage is ENDED or batch is not None:  # it would never run
                raise NotImplementedError
            key = request._key
            place = request.places.get(key)  # at most one per lane
            if place is None or place.state is GONE:
                place = request.places[key] = Place(key, request)
            if line.state is not OPEN:  # a clean end
                raise NotImplementedError
            if line.room.limit is not None or job.options.max_pending is not None:  # a bounded line
                raise NotImplementedError
            job.place = place
            lane = place.lane = line.lanes.get(key)
            lane.waiting += 1
            line.waiting += 1
            line.unfinished += 1
            if place.state is OUTSIDE and (
                request.stage is not HANDLING
                or (settings.order != "responded" and request.scope["type"] != "websocket")
            ):  # first in: the named moment, and the time from which `hold` counts
                place.state = IN_LINE
                place.taken = line.clock()
                place.number = lane.number = lane.number + 1
                if lane.last is None:
                    lane.first = place
                else:
                    lane.last.behind = place
                lane.last = place
            if place.added:  # it holds the place
                place.added.append(job)
            else:
                place.added = [job]
        finally:
            line.lock.release()
        setattr(task, JOB, job)
        self.tasks.append(task)
        return job

    async def __call__(self) -> None:
        around = _call.around_here() if self._spans else None  # FastAPI's span
        party = here()
        if isinstance(party, Job):  # tasks inside tasks
            raise NotImplementedError
        request: Any = party or self._request
        floor, line = self.floor, self.floor.line
        if _get_running_loop() is not floor.loop or request.stage is HANDLING:
            raise NotImplementedError
        batch = Batch(request.settings.wait)
        runner = None
        line.lock.acquire()
        try:
            jobs = []
            for task in self.tasks:
                job = getattr(task, JOB, None)
                if job is None or job.batch is not None or job.state is not PENDING:
                    raise NotImplementedError  # did not come through `add_task`, runs again, was cancelled
                delattr(task, JOB)
                if job.place is not request.places.get(job.place.key):
                    raise NotImplementedError
                job.batch = batch
                job.around = around
                jobs.append(job)
            batch.left = len(jobs)
            self._awaited = request, batch
            place = job.place
            place.context = copy_context()  # the request's context
            if place.state is not IN_LINE:
                raise NotImplementedError
            lane = place.lane
            if len(jobs) > 1 or lane.failed is not None:
                raise NotImplementedError
            task = job.task
            if type(task).__call__ is not _call.STARLETTES_CALL or job.options.keep == "latest":
                raise NotImplementedError
            job.on_loop = task.is_async
            job.direct = job.around is None and (not job.on_loop or job.options.timeout is None)
            if place.added == jobs:  # ready: they do not hold the place any more
                place.added = NOTHING
            line.ready += 1
            if (
                lane.first is place
                and lane.runner is None
                and not (lane.queued or lane.paused or line.turns or line.slots <= 0)
            ):  # nothing is before it
                runner = lane.runner = Runner(lane, place if job.on_loop else None, job)
                line.slots -= 1
                floor.starts(lane, runner, job)
            else:
                job.move(QUEUED)
                if place.last is None:
                    place.first = job
                else:
                    place.last.behind = job
                place.last = job
                lane.queued += 1
                if lane.runner is None and not lane.in_turn:
                    lane.in_turn = True
                    line.turns.append(lane)
        finally:
            line.lock.release()
        if runner is not None:
            floor.start(runner)
        if line.turns or line.woken or line.effects:
            floor.settle()
        if batch is not request.handed_over and request.settings.wait:  # attached
            if batch.left:
                line.lock.acquire()
                try:
                    if batch.left:
                        batch.waiter = asyncio.get_running_loop().create_future()
                finally:
                    line.lock.release()
                if batch.waiter is not None:
                    await batch.waiter
            if batch.error is not None or batch.stopped is not None:
                raise NotImplementedError


class FullFloor:
    """A middleware and the class of tasks that goes with it, as `floor.Floor`."""

    def __init__(self) -> None:
        self.settings = Settings()
        self.line = Line(self.settings)
        self.loop: Any = None
        self.runners: set[Any] = set()
        self.asked = False
        self.limiter: anyio.CapacityLimiter | None = None
        self.tasks_class = type("Tasks", (Tasks,), {"floor": self})

    def middleware(self, app: Any) -> Any:
        line = self.line

        async def watched(scope: Any, receive: Any, send: Any) -> None:
            kind = scope["type"]
            if kind not in ("http", "websocket"):
                await app(scope, receive, send)
                return
            if scope.get("fifo_background") is not None:  # a second middleware
                raise NotImplementedError
            if _get_running_loop() is not self.loop:
                self.loop = asyncio.get_running_loop()
                self.line.clock = time.monotonic
            request: Any = TrackedRequest(self, self.settings, scope, send)  # type: ignore[arg-type]
            scope["fifo_background"] = request
            request.token = current.set(request)
            try:
                await app(scope, receive, request.send)  # sees the response end
            finally:
                current.reset(request.token)
                scope.pop("fifo_background", None)
            if request.handed_over is not None:
                raise NotImplementedError
            line.lock.acquire()
            try:
                request.stage = ENDED
                for place in request.places.values():
                    if place.arriving or place.added:  # to be dropped
                        raise NotImplementedError
            finally:
                line.lock.release()
            if line.woken:
                self.settle()

        return watched

    def starts(self, lane: Lane, runner: Runner, job: Job[Any]) -> None:
        """Under the lock."""
        line = self.line
        lane.waiting -= 1
        line.waiting -= 1
        job.move(RUNNING)
        runner.job = job
        runner.since = line.clock()
        if lane.latest is not None or job.options.timeout is not None or line.room.wanted or lane.wanted:
            raise NotImplementedError

    def take_out(self, lane: Lane, place: Any) -> None:
        """Under the lock: the first job of the head leaves."""
        place.first = place.first.behind
        if place.first is None:
            place.last = None
        lane.queued -= 1

    def start(self, runner: Runner) -> None:
        """A task of its own, so that a cancelled request does not take it along."""
        run = self.run_async(runner) if runner.place is not None else self.run_sync(runner)
        context = copy_context() if runner.place is None else runner.place.context
        assert context is not None
        loop = asyncio.get_running_loop()
        if sys.version_info >= (3, 12) and loop.get_task_factory() is None:
            task: Any = asyncio.Task(run, loop=loop, context=context, eager_start=True)
        else:
            task = context.run(loop.create_task, run)
        if not task.done():
            self.runners.add(task)
            task.add_done_callback(self.runners.discard)

    async def run_async(self, runner: Runner) -> None:
        line = self.line
        job: Job[Any] | None = runner.job
        while job is not None:
            current.set(job)
            task = job.task
            try:
                if not job.direct:
                    raise NotImplementedError
                outcome = await task.func(*task.args, **task.kwargs)
            except BaseException:  # recorded, and skips the rest
                raise
            line.lock.acquire()
            try:
                job = self.ends(job, outcome, runner)
            finally:
                line.lock.release()
            if line.woken or (job is None and line.turns):
                self.settle()

    async def run_sync(self, runner: Runner) -> None:
        self.limiter = self.limiter or anyio.CapacityLimiter(float("inf"))
        await anyio.to_thread.run_sync(partial(self.work, runner), limiter=self.limiter)
        self.settle()

    def work(self, runner: Runner) -> None:
        """In a thread."""
        line = self.line
        job: Job[Any] | None = runner.job
        while job is not None:
            outcome = job.place.context.copy().run(call_sync, job)  # type: ignore[union-attr]
            line.lock.acquire()
            try:
                job = self.ends(job, outcome, runner)
            finally:
                line.lock.release()
            if job is not None and line.woken and not self.asked:
                self.asked = True
                self.loop.call_soon_threadsafe(self.settle)

    def settle(self) -> None:
        line = self.line
        self.asked = False
        while line.turns:  # the next place of the lane, whose context is another
            line.lock.acquire()
            try:
                lane = line.turns.popleft()
                lane.in_turn = False
                job = None if lane.first is None else lane.first.first
                if job is not None:
                    self.take_out(lane, job.place)
                    runner = lane.runner = Runner(lane, job.place if job.on_loop else None, job)
                    line.slots -= 1
                    self.starts(lane, runner, job)
            finally:
                line.lock.release()
            if job is not None:
                self.start(runner)
        line.lock.acquire()
        try:
            woken: list[Any] = line.woken
            line.woken = []
        finally:
            line.lock.release()
        for waiter in woken:
            if not waiter.done():
                waiter.set_result(None)

    def ends(self, job: Job[Any], outcome: Any, runner: Runner) -> Job[Any] | None:
        """Under the lock: the job has succeeded; what this runner runs next."""
        line = self.line
        job.move(SUCCEEDED, outcome)
        line.ready -= 1
        line.unfinished -= 1
        assert job.place is not None
        if job.place.added or job.watchers:
            raise NotImplementedError
        batch = job.batch
        if batch is not None:
            batch.left -= 1
            if not batch.left and batch.waiter is not None:
                line.woken.append(batch.waiter)
        if (not line.unfinished and line.joiners) or (not line.ready and line.drainers):
            raise NotImplementedError
        lane = runner.lane
        if lane is None:
            raise NotImplementedError
        while (place := lane.first) is not None:
            following = place.first
            if following is not None:
                if following.state is not QUEUED:
                    raise NotImplementedError
                if runner.place is not (following.place if following.on_loop else None):
                    break
                if line.turns or runner.stopped or runner.lent or lane.paused or lane.failed:
                    raise NotImplementedError
                self.take_out(lane, place)
                self.starts(lane, runner, following)
                return following
            if place.added or place.arriving:  # a held head
                break
            lane.first = place.behind
            if lane.first is None:
                lane.last = None
            place.state = GONE
            place.context = place.owner = None
        runner.lane = None
        lane.runner = None
        if runner.lent or line.returning or lane.key is not None:
            raise NotImplementedError
        line.slots += 1
        if lane.first is not None and not lane.in_turn:
            lane.in_turn = True
            line.turns.append(lane)
        return None


def call_sync(job: Job[Any]) -> Any:
    set_library(None)
    current.set(job)
    if not job.direct:
        raise NotImplementedError
    return job.task.func(*job.task.args, **job.task.kwargs)
