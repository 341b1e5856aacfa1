"""Fetches jobs and runs their tasks, one job of a lane at a time.

Which job is next is decided by procrastinate's fetch in the database alone. The tasks are run by an executor
in memory, as everywhere: there each job is a lane while it is here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

import psycopg

from fifo_background import _log
from fifo_background._core.history import Timing
from fifo_background._core.state import JobState
from fifo_background.engines.postgres._care import Care
from fifo_background.engines.postgres._database import Database
from fifo_background.engines.postgres._errors import WorkerLost
from fifo_background.engines.postgres._heartbeat import Heartbeat
from fifo_background.engines.postgres._in_hand import Hand, InHand
from fifo_background.engines.postgres._lease import Lease, Watchdog, now
from fifo_background.engines.postgres._measured import Measured
from fifo_background.engines.postgres._stored import Claim, Running
from fifo_background.engines.postgres._tasks import Tasks
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

    def __init__(self, concurrency: int, heartbeat: float, lost_after: float, most_crashes: int) -> None:
        self.concurrency: int = concurrency
        self.heartbeat: float = heartbeat
        self.lost_after: float = lost_after
        self.most_crashes: int = most_crashes


class Worker:
    """One of a queue's workers, in one event loop. All of it is that loop's alone."""

    def __init__(
        self,
        dsn: str,
        database: Database,
        tasks: Tasks,
        settings: WorkerSettings,
        changed: Callable[[], None],
        measured: Measured,
    ) -> None:
        self._dsn = dsn
        self._database = database
        self._tasks = tasks
        self._settings = settings
        self._changed = changed  # tells those who follow
        self._measured = measured
        self._watchdog = Watchdog.make()
        self._id: int = 0
        self._lease: Lease = Lease(0.0, None)
        self._in_hand: Hand = Hand()
        self._runs: set[asyncio.Task[None]] = set()  # of what is in hand
        self._free: asyncio.Event = asyncio.Event()  # a job has ended, and brought no other one
        self._wake: asyncio.Event = asyncio.Event()
        self._left: asyncio.Event = asyncio.Event()  # a lane is free, and this worker is full
        self._next_at: float | None = None  # when a retry is due
        self._stops: bool = False
        self._heartbeat: Heartbeat | None = None

    # -- what wakes it ---------------------------------------------------------------------------------------

    def heard(self, text: str) -> None:
        """A notification: somebody has stored a job, a lane is free, a task is to be cancelled."""
        what, _, id = text.partition(" ")
        if what == "cancel":
            self._in_hand.cancel([id])
        elif what not in ("ended", "changed", "stopped"):
            self._wake.set()

    def missed(self) -> None:
        """Notifications may have been lost."""
        self._wake.set()

    # -- its life --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until `stop`. Where it was lost, it drops what it had in hand and begins anew."""
        while not self._stops:
            try:
                await self._live()
            except WorkerLost as error:
                _log.say(logging.WARNING, "a worker was lost and begins anew: %s", error)
                self._id = 0
                self._end_heartbeat()
                self._in_hand.interrupt()
                await self._drained(None)  # a thread that runs on: the watchdog ends the process
            except psycopg.Error as error:
                _log.say(logging.WARNING, "a worker cannot reach PostgreSQL and tries again: %s", error)
                await asyncio.sleep(_AGAIN)

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
        care = Care(
            self._database,
            self._in_hand,
            self._measured,
            settings.most_crashes,
            settings.heartbeat,
            self._changed,
        )
        parts = (
            self._serve(),
            self._tell_others(),
            self._keep_lease(lease, lost),
            care.look_after(self._id),
            care.tell_progress(self._tasks.executor),
        )
        loops = [asyncio.ensure_future(part) for part in parts]
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

    # -- fetching --------------------------------------------------------------------------------------------

    @property
    def _is_full(self) -> bool:
        return self._in_hand.slots >= self._settings.concurrency

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
                    with self._in_hand.asking():
                        fetched = await self._database.fetch(self._id)
                except psycopg.Error as error:
                    _log.say(logging.WARNING, "a worker cannot reach PostgreSQL and tries again: %s", error)
                    self._next_at = now() + _AGAIN
                    break
                if "next_at" in fetched:
                    seconds = fetched["next_at"]
                    self._next_at = None if seconds is None else now() + max(float(seconds), 0.0) + 0.001
                    break
                one = self._in_hand.take(Claim.of(fetched))
                self._changed()
                self._spawn(self._run(one))

    async def _woken(self) -> None:
        """Wait until there may be something to fetch, and a slot for it."""
        if self._is_full:
            self._free.clear()
            await self._free.wait()
            return  # when a retry is due was not heard of meanwhile
        left = _UNASKED if self._next_at is None else min(self._next_at - now(), _UNASKED)
        # `wait_for` of Python 3.10 and 3.11 swallows a cancel that comes with the event
        timer = asyncio.get_running_loop().call_later(max(left, 0.0), self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()

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
        self._runs.add(task)
        task.add_done_callback(self._runs.discard)

    # -- running ---------------------------------------------------------------------------------------------

    async def _run(self, one: InHand) -> None:
        """Run the tasks of a job; then of the one that its end has brought, in the same slot."""
        worker = self._id
        while True:
            answer = None
            try:
                answer = await self._run_job(one, worker)
            except Exception as error:  # nothing that we know of: the lane must not stand still
                _log.say(logging.ERROR, "a worker could not run %s", one.claim.lock, error=error)
                await self._could_not_run(one.claim, worker, error)
            self._in_hand.leave(one)
            fetched = None if answer is None else answer["fetched"]
            if fetched is None or fetched.get("lock") != one.claim.lock:
                # the lane is free now: who looked while that was not committed yet has found it busy
                (self._left if self._is_full or self._stops else self._wake).set()
            if fetched is None or "next_at" in fetched:
                break
            one = self._in_hand.take(Claim.of(fetched))
        self._free.set()

    async def _run_job(self, one: InHand, worker: int) -> dict[str, Any] | None:
        """What the database has answered to the end of its last task; None where it is somebody else's."""
        claim, lease = one.claim, self._lease
        tasks = {task.id: task for task in claim.tasks}
        task = claim.tasks[0]
        while True:
            if self._stops or worker != self._id or not lease.hold():
                await self._give_back(claim, worker)
                return None
            began = monotonic()
            self._measured.running += 1
            running = Running(self._database.queue, task.lane, task.id, task.name, self._lend)
            one.begin(task, running)
            try:
                end = await self._tasks.run(one, task, running)
            finally:
                self._measured.running -= 1
                one.end()
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

    async def _tell_end(self, claim: Claim, worker: int, lease: Lease, end: dict[str, Any]) -> Any:
        """Until the database has heard of it, or the worker has lost its lease."""
        was_told = False  # perhaps
        while True:
            # told again, without the fetch: that may be what fails
            fetches = not self._stops and worker == self._id and not was_told
            told = {**end, "fetch": fetches}
            try:
                with self._in_hand.asking():
                    answer = await self._database.end(worker, claim.job, claim.attempts, told)
            except psycopg.DataError:
                raise  # PostgreSQL does not take it: it would not the next time
            except psycopg.Error as error:
                was_told = True
                _log.say(logging.WARNING, "the end of a task is sent to PostgreSQL again: %s", error)
            else:
                if answer is None and not was_told:
                    _log.say(logging.WARNING, "%s was taken over before its end was stored", claim.lock)
                return answer
            if worker != self._id or now() >= lease.ends:
                return None
            await asyncio.sleep(_AGAIN)

    async def _could_not_run(self, claim: Claim, worker: int, error: Exception) -> None:
        most = self._settings.most_crashes
        with suppress(psycopg.Error):  # it is given back where its job is looked for, and does not count
            await self._database.could_not_run(worker, claim.job, claim.attempts, most, type(error).__name__)

    async def _give_back(self, claim: Claim, worker: int) -> None:
        with suppress(psycopg.Error):  # it is recovered as that of a lost worker
            await self._database.give_back(worker, claim.job, claim.attempts)

    # -- the end ---------------------------------------------------------------------------------------------

    async def stop(self, seconds: float) -> None:
        """Fetch no more, and let what runs end; after `seconds` what can be cancelled is given back.

        A `def` task cannot be cancelled: while its thread runs on, this waits. Its lease is not renewed
        anymore, so that the watchdog ends the process before another worker runs the task.
        """
        self._stops = True
        await self._in_hand.answered(seconds)  # what they bring is given back
        if self._in_hand:
            _log.say(
                logging.INFO,
                "shutdown: %s in hand, for at most %g s",
                counted(len(self._in_hand), "job is", "jobs are"),
                seconds,
            )
        await self._drained(seconds)
        self._in_hand.interrupt()
        await self._drained(1.0)
        if self._in_hand.running_ids and self._watchdog is not None:
            _log.say(logging.WARNING, "shutdown: a def task still runs, so this process is ended")
            self._end_heartbeat()
        await self._drained(None)
        self._end_heartbeat()
        if self._id:
            try:
                await self._database.unregister(self._id)
                await self._database.notify("wake")
            except psycopg.Error:
                pass  # its heartbeats end
        await self._tasks.executor.aclose()

    async def _drained(self, seconds: float | None) -> None:
        """Until nothing is in hand, or for so long."""
        if self._runs:
            await asyncio.wait(tuple(self._runs), timeout=seconds)
