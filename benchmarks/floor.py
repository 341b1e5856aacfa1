"""The floor: the barest code that keeps the guarantees for the one case that `per_task.py` measures.

One lane, one task a request, no failures, no cancels, no limits, no log, no shutdown. What is left: each
request watched for the end of its response, a place taken when the task is added, a handle with state and
outcome, a copy of the request's context, a task of its own (a cancelled request does not take it along),
the request waiting for it, sync tasks one after the other in one stay in a thread, each outcome told at
once. What this costs, no implementation in Python of these guarantees goes below.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import deque
from contextvars import Context, ContextVar, copy_context
from typing import Any

import anyio.to_thread
from starlette.background import BackgroundTask, BackgroundTasks

from fifo_background._run.call import make_task

current: ContextVar[Any] = ContextVar("current", default=None)


class Job:
    __slots__ = ("ended", "outcome", "request", "state", "task", "waiter")

    def __init__(self, task: BackgroundTask, request: Request) -> None:
        self.task = task
        self.request = request
        self.state = "pending"
        self.outcome: Any = None
        self.waiter: asyncio.Future[None] | None = None


class Request:
    __slots__ = ("_send", "context", "responded", "token")

    def __init__(self, send: Any) -> None:
        self._send = send
        self.token: Any = None
        self.responded = False
        self.context: Context | None = None  # it leads back here: gone when the task has ended

    def send(self, message: Any) -> Any:
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            return self._send_last(message)
        return self._send(message)

    async def _send_last(self, message: Any) -> None:
        current.reset(self.token)  # a server's timers shall not keep the request
        await self._send(message)
        self.token = current.set(self)
        self.responded = True


class Floor:
    """A middleware and the class of tasks that goes with it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.line: deque[Job] = deque()
        self.busy = False
        self.ended: list[Job] = []
        self.told = False
        self.limiter: anyio.CapacityLimiter | None = None
        floor = self

        class Tasks(BackgroundTasks):
            def __init__(self) -> None:
                super().__init__()
                self.jobs: list[Job] = []

            def add_task(self, func: Any, *args: Any, **kwargs: Any) -> Any:
                task = make_task("add_task", BackgroundTask, func, args, kwargs)
                job = Job(task, current.get())
                with floor.lock:
                    floor.line.append(job)
                self.tasks.append(task)
                self.jobs.append(job)
                return job

            async def __call__(self) -> None:
                request: Request = current.get()
                assert request.responded
                request.context = copy_context()
                with floor.lock:
                    for job in self.jobs:
                        job.state = "queued"
                if not floor.busy:
                    floor.start(request, self.tasks[0].is_async)
                for job in self.jobs:
                    if job.state != "ended":
                        job.waiter = asyncio.get_running_loop().create_future()
                        await job.waiter

        self.tasks_class = Tasks

    def middleware(self, app: Any) -> Any:
        async def watched(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            request = Request(send)
            request.token = current.set(request)
            try:
                await app(scope, receive, request.send)
            finally:
                current.reset(request.token)

        return watched

    def start(self, request: Request, is_async: bool) -> None:
        loop = asyncio.get_running_loop()
        if sys.version_info >= (3, 12):
            run = self.run_async() if is_async else self.run_sync(loop)
            self.runner = asyncio.Task(run, loop=loop, context=request.context, eager_start=True)
        else:
            run = self.run_async() if is_async else self.run_sync(loop)
            self.runner = request.context.run(loop.create_task, run)
        self.busy = not self.runner.done()

    def next(self) -> Job | None:
        if self.line and self.line[0].state == "queued":
            job = self.line.popleft()
            job.state = "running"
            return job
        return None

    async def run_async(self) -> None:
        with self.lock:
            job = self.next()
        while job is not None:
            current.set(job)
            job.outcome = await job.task.func(*job.task.args, **job.task.kwargs)
            job.request.context = None
            with self.lock:
                job.state = "ended"
                if job.waiter is not None:
                    job.waiter.set_result(None)
                job = self.next()
        self.busy = False

    async def run_sync(self, loop: asyncio.AbstractEventLoop) -> None:
        self.limiter = self.limiter or anyio.CapacityLimiter(float("inf"))
        while self.line and self.line[0].state == "queued":
            await anyio.to_thread.run_sync(self.work, loop, limiter=self.limiter)
        self.busy = False

    def work(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread."""
        with self.lock:
            job = self.next()
        while job is not None:
            job.outcome = job.request.context.copy().run(call, job)  # type: ignore[union-attr]
            job.request.context = None
            with self.lock:
                self.ended.append(job)
                job = self.next()
            if not self.told:
                self.told = True
                loop.call_soon_threadsafe(self.tell)

    def tell(self) -> None:
        self.told = False
        with self.lock:
            ended, self.ended = self.ended, []
        for job in ended:
            job.state = "ended"
            if job.waiter is not None:
                job.waiter.set_result(None)


def call(job: Job) -> Any:
    current.set(job)
    return job.task.func(*job.task.args, **job.task.kwargs)
