"""Fetches jobs and runs their tasks, one job of a lane at a time.

Which job is next is decided by procrastinate's fetch in the database alone. The tasks are run by an executor
in memory, as everywhere: there each job is a lane while it is here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import psycopg

from fifo_background import _log
from fifo_background._core.history import Timing
from fifo_background._core.job import Job
from fifo_background._core.plain import text_of, type_name
from fifo_background._core.state import CANCELLED, FAILED, SUCCEEDED, JobState
from fifo_background._executor import SerialExecutor
from fifo_background.engines.postgres._codec import Codec
from fifo_background.engines.postgres._database import Database
from fifo_background.engines.postgres._errors import WorkerLost
from fifo_background.engines.postgres._functions import Functions
from fifo_background.engines.postgres._heartbeat import Heartbeat
from fifo_background.engines.postgres._lease import Lease, Watchdog, now
from fifo_background.engines.postgres._measured import Measured
from fifo_background.engines.postgres._stored import Carried, Claim, Claimed, Running
from fifo_background.exceptions import counted

__all__ = ("Worker", "WorkerSettings")

# This part of `lost_after` before its lease ends, a worker cancels what it has in hand.
_GRACE = 1 / 6

# Between two tries of what the database did not answer, in seconds.
_AGAIN = 0.1

# After so many seconds it looks for jobs unasked: a pooler between may keep notifications back.
_UNASKED = 10.0


class WorkerSettings:
    """`concurrency`: how many jobs at once. `heartbeat` and `lost_after` are in seconds."""

    def __init__(
        self, concurrency: int, heartbeat: float, lost_after: float, most_crashes: int, results_bytes: int
    ) -> None:
        self.concurrency: int = concurrency
        self.heartbeat: float = heartbeat
        self.lost_after: float = lost_after
        self.most_crashes: int = most_crashes
        self.results_bytes: int = results_bytes


class _InHand:
    """A job of the database that this worker has, and the task of it that runs."""

    def __init__(self, claim: Claim) -> None:
        self.claim: Claim = claim
        self.task: Claimed | None = None
        self.job: Job[Any] | None = None
        self.cancelled: Job[Any] | None = None  # the job that somebody has asked to cancel
        self.running: Running | None = None
        self.gives_back: bool = False  # it is to run again, somewhere else
        self.told: Any = None  # the progress that the database knows


class Worker:
    """One of a queue's workers, in one event loop. All of it is that loop's alone."""

    def __init__(
        self,
        dsn: str,
        database: Database,
        functions: Functions,
        codec: Codec,
        carried: Carried,
        settings: WorkerSettings,
        changed: Callable[[], None],
        measured: Measured,
    ) -> None:
        self._dsn = dsn
        self._database = database
        self._functions = functions
        self._codec = codec
        self._carried = carried
        self._settings = settings
        self._changed = changed  # tells those who follow
        self._measured = measured
        # how many jobs are in hand is limited here: one that waits for another one lends its slot
        self._executor = SerialExecutor(max_lanes_running=1_000_000, history=0)
        self._watchdog = Watchdog.make()
        self._id: int = 0
        self._lease: Lease = Lease(0.0, None)
        # by the job and its attempts: a retry may be here before the run ahead of it has left
        self._in_hand: dict[tuple[int, int], _InHand] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self._free: asyncio.Event = asyncio.Event()  # a job has ended, and brought no other one
        self._wake: asyncio.Event = asyncio.Event()
        self._left: asyncio.Event = asyncio.Event()  # a lane is free, and this worker is full
        self._next_at: float | None = None  # when a retry is due
        self._asks: set[asyncio.Future[None]] = set()  # those under way that may hand a job to this worker
        self._stops: bool = False
        self._heartbeat: Heartbeat | None = None

    # -- what wakes it ---------------------------------------------------------------------------------------

    def heard(self, text: str) -> None:
        """A notification: somebody has stored a job, a lane is free, a task is to be cancelled."""
        what, _, id = text.partition(" ")
        if what == "cancel":
            self._cancel([id])
        elif what not in ("ended", "changed"):
            self._wake.set()

    def missed(self) -> None:
        """Notifications may have been lost."""
        self._wake.set()

    def _cancel(self, ids: list[str]) -> None:
        for one in self._in_hand.values():
            job = one.job
            if one.task is not None and one.task.id in ids and job is not None and job is not one.cancelled:
                one.cancelled = job  # once: its cleanup is not cancelled
                job.cancel()

    # -- its life --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until `stop`. Where it was lost, it drops what it had in hand and begins anew."""
        while not self._stops:
            try:
                await self._live()
            except WorkerLost as error:
                self._say(logging.WARNING, "a worker was lost and begins anew: %s", error)
                self._id = 0
                self._end_heartbeat()
                self._interrupt()
                await self._drained(None)  # a thread that runs on: the watchdog ends the process
            except psycopg.Error as error:
                self._say(logging.WARNING, "a worker cannot reach PostgreSQL and tries again: %s", error)
                await asyncio.sleep(_AGAIN)

    def _interrupt(self) -> None:
        """What is in hand is to run again somewhere else, unless it ends at this moment."""
        for one in self._in_hand.values():
            one.gives_back = True
            if one.job is not None:
                one.job.cancel()

    async def _live(self) -> None:
        settings = self._settings
        sent = now()
        self._id = await self._database.register(
            settings.lost_after, socket.gethostname(), os.getpid(), settings.concurrency
        )
        lease = self._lease = Lease(settings.lost_after - settings.heartbeat / 2, self._watchdog)
        lease.renew(sent)
        lost: asyncio.Event = asyncio.Event()
        self._heartbeat = Heartbeat(self._dsn, self._id, settings.heartbeat, lease, lost)
        self._heartbeat.start()
        self._wake.set()
        parts = self._serve, self._tell_others, self._look_after, self._tell_progress
        loops = [asyncio.ensure_future(part()) for part in parts]
        loops.append(asyncio.ensure_future(self._keep_lease(lease, lost)))
        try:
            await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in loops:
                task.cancel()
            await asyncio.wait(loops)
        for task in loops:
            if not task.cancelled():
                task.result()

    def _end_heartbeat(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.stop()

    async def _keep_lease(self, lease: Lease, lost: asyncio.Event) -> None:
        """Raises `WorkerLost` while there still is time to cancel what is in hand."""
        while True:
            left = lease.ends - _GRACE * self._settings.lost_after - now()
            if left <= 0:
                raise WorkerLost("its heartbeats did not reach PostgreSQL")
            try:
                await asyncio.wait_for(lost.wait(), left)
            except (TimeoutError, asyncio.TimeoutError):
                continue
            raise WorkerLost("others have taken over what it had in hand")

    async def _look_after(self) -> None:
        """With each heartbeat: lost workers, jobs that this one has without knowing it, and cancels."""
        while True:
            try:
                await self._database.recover(self._settings.most_crashes)
                await self._give_back_unknown()
                if self._measured.is_read:
                    self._measured.waiting, self._measured.oldest = await self._database.backlog()
                await self._look_for_cancels()
            except psycopg.Error:
                pass  # the next one comes
            await asyncio.sleep(self._settings.heartbeat)

    async def _give_back_unknown(self) -> None:
        """The answer that brought a job may be lost: then the database believes that this worker has it."""
        worker = self._id
        unknown = [key for key in await self._database.in_hand_of(worker) if key not in self._in_hand]
        if unknown and self._asks:
            await asyncio.wait(tuple(self._asks))  # what those bring is in hand then
        for key in unknown:
            if key not in self._in_hand:
                await self._database.give_back(worker, *key)

    async def _look_for_cancels(self) -> None:
        """Cancels are not heard while a task is on its way here, or the listener has no connection."""
        ids = [one.task.id for one in self._in_hand.values() if one.job is not None and one.task is not None]
        if ids:
            self._cancel(await self._database.cancelled(ids))

    @contextmanager
    def _asking(self) -> Iterator[None]:
        asks: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asks.add(asks)
        try:
            yield
        finally:
            self._asks.discard(asks)
            asks.set_result(None)

    # -- fetching --------------------------------------------------------------------------------------------

    @property
    def _is_full(self) -> bool:
        in_hand = self._in_hand.values()
        waiting = sum(1 for one in in_hand if one.running is not None and one.running.waits)
        return len(in_hand) - waiting >= self._settings.concurrency

    def _lend(self) -> None:
        """A task waits for another one, which needs a slot."""
        self._wake.set()
        self._free.set()

    async def _serve(self) -> None:
        while True:
            await self._woken()
            self._wake.clear()  # before the fetch: what comes meanwhile wakes it again
            while not self._is_full and not self._stops:
                try:
                    with self._asking():
                        fetched = await self._database.fetch(self._id)
                except psycopg.Error as error:
                    self._say(logging.WARNING, "a worker cannot reach PostgreSQL and tries again: %s", error)
                    self._next_at = now() + _AGAIN
                    break
                if "next_at" in fetched:
                    seconds = fetched["next_at"]
                    self._next_at = None if seconds is None else now() + max(float(seconds), 0.0) + 0.001
                    break
                claim = Claim.of(fetched)
                one = self._in_hand[claim.key] = _InHand(claim)
                self._changed()
                self._spawn(self._run(one))

    async def _woken(self) -> None:
        """Wait until there may be something to fetch, and a slot for it."""
        if self._is_full:
            self._free.clear()
            await self._free.wait()
            return  # when a retry is due was not heard of meanwhile
        left = _UNASKED if self._next_at is None else min(self._next_at - now(), _UNASKED)
        try:
            await asyncio.wait_for(self._wake.wait(), max(left, 0.0))
        except (TimeoutError, asyncio.TimeoutError):
            pass

    async def _tell_others(self) -> None:
        """Of lanes that this worker leaves while it is full; not each time: PostgreSQL commits what notifies
        one by one."""
        while True:
            await self._left.wait()
            self._left.clear()
            try:
                await self._database.notify("wake")
            except psycopg.Error:
                self._left.set()
            await asyncio.sleep(_AGAIN)

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)

    # -- running ---------------------------------------------------------------------------------------------

    async def _run(self, one: _InHand) -> None:
        """Run the tasks of a job; then of the one that its end has brought, in the same slot."""
        worker = self._id
        while True:
            answer = None
            try:
                answer = await self._run_job(one, worker)
            except Exception as error:  # nothing that we know of: the lane must not stand still
                self._say(logging.ERROR, "a worker could not run %s", one.claim.lock, error=error)
            del self._in_hand[one.claim.key]
            fetched = None if answer is None else answer["fetched"]
            if fetched is None or fetched.get("lock") != one.claim.lock:
                # the lane is free now: who looked while that was not committed yet has found it busy
                (self._left if self._is_full or self._stops else self._wake).set()
            if fetched is None or "next_at" in fetched:
                break
            claim = Claim.of(fetched)
            one = self._in_hand[claim.key] = _InHand(claim)
        self._free.set()

    async def _run_job(self, one: _InHand, worker: int) -> dict[str, Any] | None:
        """What the database has answered to the end of its last task; None where it is somebody else's."""
        claim, lease = one.claim, self._lease
        tasks = {task.id: task for task in claim.tasks}
        task = claim.tasks[0]
        while True:
            one.task = task
            if self._stops or worker != self._id or not lease.hold():
                await self._give_back(claim, worker)
                return None
            began = monotonic()
            self._measured.running += 1
            one.running = Running(self._database.queue, task.lane, task.id, task.name, self._lend)
            try:
                end = await self._run_task(one, task, one.running)
            finally:
                self._measured.running -= 1
                one.running.is_running = False
                one.job = one.running = None
                lease.let_go()
            ran = monotonic() - began
            if end is None:
                await self._give_back(claim, worker)
                return None
            answer = await self._tell_end(claim, worker, lease, end)
            self._changed()
            if answer is not None and "retry_in" not in end:
                waited = task.age + began - claim.fetched_at
                self._measured.ended(Timing(task.name, JobState(end["state"]), waited, ran))
            if answer is None or "next" not in answer:
                return answer
            task = tasks[answer["next"]]

    async def _run_task(self, one: _InHand, task: Claimed, running: Running) -> dict[str, Any] | None:
        """Run it, and say how it ended; None where it was interrupted, and is to run again."""
        try:
            function, args, kwargs = task.call(self._functions, self._codec)
            context = self._carried.context(task.carried, running)
        except Exception as unreadable:
            self._say(logging.ERROR, "%s cannot be called", task.function, error=unreadable)
            return self._failure(task, unreadable)
        submitter = self._executor.lane(one.claim.job).options(timeout=task.options.get("timeout"))
        one.job = job = context.run(submitter.submit_nowait, function, *args, **kwargs)
        state = await job.wait()
        if state is SUCCEEDED:
            return {"id": task.id, "state": state.value, **self._result(job.result())}
        if state is not FAILED:
            return None if one.gives_back else {"id": task.id, "state": CANCELLED.value}
        error: Any = job.exception()
        seconds = None if task.retry is None else task.retry.seconds_after(task.attempts)
        if seconds is None:
            return self._failure(task, error)
        self._say(logging.WARNING, "%s is run again in %g s", task.name, seconds)
        return {**self._failure(task, error), "retry_in": seconds}

    def _failure(self, task: Claimed, error: BaseException) -> dict[str, Any]:
        return {
            "id": task.id,
            "state": FAILED.value,
            "error_type": _clean(type_name(error)),
            "error": _clean(text_of(error)),
            "skip": task.options.get("rest") != "run",
            "stop": task.options.get("after_failure") == "stop",
        }

    def _result(self, value: Any) -> dict[str, Any]:
        try:
            text = self._codec.write(value)
        except (TypeError, RecursionError) as error:
            return {"result_omitted": str(error)}
        most = self._settings.results_bytes
        if len(text) > most:
            return {"result_omitted": f"it takes {len(text)} bytes, and results_bytes is {most}"}
        return {"result": text}

    async def _tell_end(self, claim: Claim, worker: int, lease: Lease, end: dict[str, Any]) -> Any:
        """Until the database has heard of it, or the worker has lost its lease."""
        was_told = False  # perhaps
        while True:
            fetches = not self._stops and worker == self._id
            told = {**end, "fetch": fetches}
            try:
                with self._asking():
                    answer = await self._database.end(worker, claim.job, claim.attempts, told)
            except psycopg.Error as error:
                was_told = True
                self._say(logging.WARNING, "the end of a task is told again: %s", error)
            else:
                if answer is None and not was_told:
                    self._say(logging.WARNING, "%s was taken over before its end was told", claim.lock)
                return answer
            if worker != self._id or now() >= lease.ends:
                return None
            await asyncio.sleep(_AGAIN)

    async def _give_back(self, claim: Claim, worker: int) -> None:
        try:
            await self._database.give_back(worker, claim.job, claim.attempts)
        except psycopg.Error:
            pass  # it is recovered as that of a lost worker

    async def _tell_progress(self) -> None:
        version = 0
        while True:
            version = await self._executor.changed(version)
            for one in tuple(self._in_hand.values()):
                progress = None if one.job is None else one.job.progress
                if progress is not None and progress != one.told and one.task is not None:
                    one.told = progress
                    try:
                        await self._database.progress(one.task.id, progress._asdict())
                        self._changed()
                    except psycopg.Error:
                        pass
            await asyncio.sleep(self._settings.heartbeat)

    # -- the end ---------------------------------------------------------------------------------------------

    async def stop(self, seconds: float) -> None:
        """Fetch no more, and let what runs end; after `seconds` what can be cancelled is given back.

        A `def` task cannot be cancelled: while its thread runs on, this waits. Its lease is not renewed
        anymore, so that the watchdog ends the process before another worker runs the task.
        """
        self._stops = True
        if self._asks:
            await asyncio.wait(tuple(self._asks), timeout=seconds)  # what they bring is given back
        if self._in_hand:
            self._say(
                logging.INFO,
                "shutdown: %s in hand, for at most %g s",
                counted(len(self._in_hand), "job is", "jobs are"),
                seconds,
            )
        await self._drained(seconds)
        self._interrupt()
        await self._drained(1.0)
        if self._in_hand and self._watchdog is not None:
            self._say(logging.WARNING, "shutdown: a def task runs on, so the process is ended")
            self._end_heartbeat()
        await self._drained(None)
        self._end_heartbeat()
        if self._id:
            try:
                await self._database.unregister(self._id)
                await self._database.notify("wake")
            except psycopg.Error:
                pass  # its heartbeats end
        await self._executor.aclose()

    async def _drained(self, seconds: float | None) -> None:
        """Until nothing is in hand, or for so long."""
        if self._jobs:
            await asyncio.wait(tuple(self._jobs), timeout=seconds)

    def _say(self, level: int, text: str, *facts: object, error: BaseException | None = None) -> None:
        _log.say(level, text, *facts, error=error)


def _clean(text: str) -> str:
    """Text that PostgreSQL takes."""
    return text.replace("\0", "�").encode("utf-8", "replace").decode()
