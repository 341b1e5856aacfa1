"""What others wait for at an executor: the end of a job, capacity, nothing being unfinished. Runs nothing.

Each wait is the same: a waiter is put where its condition is told, and taken away when the wait ends, however
it ends. Nothing is awaited while a cancelled wait leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from fifo_background import _log
from fifo_background._core.job import RAISES, TOLD, Job
from fifo_background._core.lane import Lane, Wanted, plain_key
from fifo_background._core.position import IN_QUEUE, Position
from fifo_background._core.state import CANCELLED, FAILED, RUNNING
from fifo_background._run.awaited_jobs import AwaitedJobs
from fifo_background._run.current import Waiting, current_party
from fifo_background._run.rings import Rings
from fifo_background.exceptions import LaneStopped, QueueFull, WouldDeadlock

if TYPE_CHECKING:
    from fifo_background._run.runner import Runner

__all__ = ("Waits",)


class Waits:
    """The waits at one executor."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.rings: Rings = Rings(runner)

    def party(self) -> Waiting | Job[Any] | None:
        """The running task or the request in which the caller is, if it is of this executor."""
        party = current_party()
        if isinstance(party, Job):
            return party if party._runner is self._runner and party._own_state is RUNNING else None
        if party is None or party.runner is not self._runner or party.has_ended:
            return None
        found: Waiting = party
        return found

    # -- the end of a job ------------------------------------------------------------------------------------

    async def wait_for(self, job: Job[Any], raises: bool) -> None:
        """Wait until `job` has ended, however it ends. Raises WouldDeadlock."""
        runner = self._runner
        runner.check_in_loop()
        runner.scheduler.drain()
        if job.done():
            return
        party = self.party()
        if party is not None:
            _refuse_deadlock(party, job)
        else:  # perhaps a task of another executor: that one's slot is lent
            party = current_party()
            if isinstance(party, Job) and party._own_state is RUNNING and _is_of_this_loop(party):
                runner = cast("Runner", party._runner)
            else:
                party = None
        backend = self._runner.backend
        waiter = backend.waiter()
        job._wait_with(waiter, raises)  # until the wait is over: with its slot, too
        try:
            async with nullcontext() if party is None else _Noted(runner, party, job):
                while not job.done():  # a thread may have ended it since the look above
                    await waiter
                    if not job.done():  # woken as its lane has stopped
                        job._wait_no_more(waiter)
                        waiter = backend.waiter()
                        job._wait_with(waiter, raises)
        except BaseException:
            job._wait_no_more(waiter)
            if raises:
                self._log_unraised(job)
            raise
        job._wait_no_more(waiter)

    def _log_unraised(self, job: Job[Any], owner: Any = None) -> None:
        """A wait that had the job's failure leaves without raising it: log it, unless another raises it."""
        if job._own_state is FAILED and not job._outcome.reported and not job._handed_over:
            _log.failed(job, owner, None)

    async def attached(self, jobs: AwaitedJobs, owner: Waiting) -> None:
        """A request waits for its own tasks, and for those added to them meanwhile.

        Raises the first failure in time, and logs the others.
        """
        backend = self._runner.backend
        try:
            while (job := jobs.last_unfinished() or jobs.last_look()) is not None:
                jobs.go_on()
                waiter = backend.waiter()
                job._wait_with(waiter, TOLD)  # what is attached is raised here, while it is
                owner.awaits = jobs
                try:
                    _check_lane(job)
                    if not job.done():
                        await waiter
                finally:
                    owner.awaits = ()
                    job._wait_no_more(waiter)
        except BaseException as error:
            try:
                if isinstance(error, LaneStopped):
                    self._raise_first(jobs, owner)  # the request's own failure, if it has stopped the lane
            finally:
                self.leave(jobs, owner)
            raise
        self._raise_first(jobs, owner)

    def look_at(self, job: Job[Any], jobs: AwaitedJobs, owner: Waiting) -> None:
        """A thread has added a job while the wait for the others ended, or went on."""
        if jobs.waited:
            job._attached = job._options.wait and (job._attached or not job.done())
        else:
            job._attached = False
            self._log_unraised(job, owner)

    def leave(self, jobs: AwaitedJobs, owner: Waiting) -> None:
        """The request does not wait for these jobs anymore: whatever they fail with is logged."""
        jobs.waited = False
        for job in jobs:
            job._attached = False
            self._log_unraised(job, owner)

    def _raise_first(self, jobs: Sequence[Job[Any]], owner: Waiting) -> None:
        """Raise the first failure in time, and log the others, each with its traceback."""
        failed = [job for job in jobs if job._own_state is FAILED and job._attached]
        if not failed:
            return
        first = min(failed, key=_number)
        for job in failed:
            job._attached = job is first  # what another wait was handed is that wait's to tell from here on
            awaited = job._waiters is not None and RAISES in job._waiters.values()
            if job is not first and not (job._outcome.reported or awaited):
                _log.failed(job, owner, None)
        first._outcome.throw()

    # -- capacity --------------------------------------------------------------------------------------------

    async def wait_for_capacity(self, job: Job[Any], position: Position) -> None:
        """Submit a job as soon as there is capacity for it, in turn."""
        runner = self._runner
        scheduler = runner.scheduler
        scheduler.drain()
        try:
            runner.submit(job, position)
            return
        except QueueFull:
            party = self.party()
            if isinstance(party, Job) or (party is not None and _has_unfinished(party)):
                raise  # the wait could keep what it waits for from starting
        wanted = Wanted(job, position, runner.backend.waiter())
        scheduler.capacity.want(wanted)
        try:
            await wanted.waiter
            if wanted.error is not None:
                raise wanted.error
        except BaseException:
            if job in job._claims:
                if job._claim():
                    job._end(CANCELLED)
                    runner.post(job)
            elif job._own_state is None:
                scheduler.capacity.withdraw(wanted)
                runner.pump_soon()
            raise

    # -- nothing being unfinished ----------------------------------------------------------------------------

    async def join(self) -> None:
        runner = self._runner
        runner.check_in_loop()
        scheduler = runner.scheduler
        scheduler.drain()
        party = self.party()
        if isinstance(party, Job):
            raise WouldDeadlock(party.name, "it is one of the tasks that `join` waits for")
        if party is not None and _has_unfinished(party):
            raise WouldDeadlock(str(party), "its own tasks are among those that `join` waits for")
        if not scheduler.unfinished:
            return
        waiter = runner.backend.waiter()
        scheduler.joiners[waiter] = None
        runner.pump_soon()
        try:
            await waiter
        finally:
            scheduler.joiners.pop(waiter, None)


class _Noted:
    """A task or request waits for a job: the wait is noted, and the task lends the slot of its lane."""

    def __init__(self, runner: Runner, party: Any, job: Job[Any]) -> None:
        self._runner, self._party, self._job = runner, party, job
        position = party._position if isinstance(party, Job) else None
        self._lane: Lane | None = None if position is None else position.lane

    async def __aenter__(self) -> None:
        runner, rings, party = self._runner, self._runner.waits.rings, self._party
        number = self._number = rings.begin(party, self._job)
        delay = runner.settings.hold_timeout
        self._timer = runner.backend.later(delay, lambda: rings.tell_ring(party, number))
        if self._lane is not None:
            runner.scheduler.slots.lend(self._lane)
            runner.pump()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        self._runner.waits.rings.end(self._party, self._job, self._number)
        if self._lane is None:
            return
        runner, scheduler = self._runner, self._runner.scheduler
        waiter = runner.backend.waiter()
        if not scheduler.slots.take_back(self._lane, self._party, waiter):
            try:
                if error is None:
                    await waiter
            finally:
                scheduler.slots.took_back(self._lane, self._party, waiter)
                runner.pump_soon()


def _is_of_this_loop(job: Job[Any]) -> bool:
    runner: Any = job._runner
    return runner is not None and job._position is not None and bool(runner.is_current())


def _refuse_deadlock(party: Any, job: Job[Any]) -> None:
    """Raise WouldDeadlock where the job cannot end before the party: checks that take constant time."""
    part, job = job, job._outermost
    if isinstance(party, Job):
        if part is party:
            raise WouldDeadlock(party.name, "it would wait for itself")
        if job is party:
            raise WouldDeadlock(party.name, f"{part.name} is a part of it")
        its, mine = job._position, party._position
        same_lane = its is not None and mine is not None and its.lane is mine.lane
        if same_lane and job._own_state is None:
            raise WouldDeadlock(party.name, f"{job.name} stands behind it in its lane")
        return
    position = job._position
    if position is None or job._own_state is not None:
        return
    if position.owner is party and not job._queued:
        raise WouldDeadlock(str(party), f"{job.name} is its own task, and starts after its response")
    held = _held_position(party, position.lane)
    if (
        held is not None
        and held is not position
        and held.number
        and (not position.number or held.number < position.number)
    ):
        raise WouldDeadlock(str(party), f"{job.name} stands behind the position that it holds")


def _has_unfinished(request: Waiting) -> bool:
    """Whether a task of it has not ended."""
    return any(
        position.first is not None or bool(position.pending) or position.runs
        for position in tuple(request.positions.values())
    )


def _held_position(request: Waiting, lane: Lane) -> Position | None:
    """The position that it holds in a lane."""
    position = request.positions.get(lane.key)
    return position if position is not None and position.state is IN_QUEUE and position.held else None


def _check_lane(job: Job[Any]) -> None:
    position = job._position
    stopped = None if position is None else position.lane.stopped
    if stopped is not None and job._own_state is None and job._queued:
        raise LaneStopped(plain_key(stopped.lane.key), stopped.added[0].name)


def _number(job: Job[Any]) -> int:
    number: int = job._outcome.number
    return number
