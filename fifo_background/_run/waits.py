"""What others wait for at an executor: the end of a job, capacity, nothing being unfinished. Runs nothing.

Each wait is the same: a waiter is put where its condition is told, and taken away when the wait ends, however
it ends. Nothing is awaited while a cancelled wait leaves.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from fifo_background import _log
from fifo_background._core.job import RAISES, TOLD, Job
from fifo_background._core.lane import Lane, Wanted, plain_key
from fifo_background._core.position import Position
from fifo_background._core.state import CANCELLED, FAILED, RUNNING
from fifo_background._run.current import Waiting, alive, current_party
from fifo_background.exceptions import LaneStopped, QueueFull, WouldDeadlock

if TYPE_CHECKING:
    from fifo_background._run.runner import Runner

__all__ = ("AwaitedJobs", "HeldBack", "Waits")


class AwaitedJobs(list[Job[Any]]):
    """The jobs of an object that was awaited in a request, in order. Any thread appends."""

    __slots__ = ("waited",)

    waited: bool
    """Whether the request waits for those that are attached, and raises their failures."""

    def go_on(self) -> None:
        """The request waits again: also for those that were added while it did not."""
        if not self.waited:
            self.waited = True
            for job in self:
                job._attached = job._options.wait and (job._attached or not job.done())

    are_ready = True
    """Whether they were handed over, or are in this moment: one more is handed over by who adds it."""

    def __init__(self, jobs: Iterable[Job[Any]] = ()) -> None:
        super().__init__(jobs)
        self.waited = False


class HeldBack(AwaitedJobs):
    """The jobs that were awaited before the response of their request had ended: it hands them over later."""

    __slots__ = ("are_ready",)

    def __init__(self) -> None:
        super().__init__()
        self.are_ready = False

    def leave_out(self, jobs: Sequence[Job[Any]]) -> None:
        """One that was added since the last await stands where this await puts it."""
        again, known = set(jobs), len(self)
        self[:known] = [job for job in self[:known] if job not in again]


class Waits:
    """The waits at one executor."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        # What tasks and requests wait for, with the numbers of these waits: for statistics and rings.
        self.of_jobs: dict[Any, dict[Job[Any], list[int]]] = {}
        self._numbers = itertools.count()

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
            async with nullcontext() if party is None else _Noted(runner.waits, runner, party, job):
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
            while (job := _last_unfinished(jobs) or _last_look(jobs)) is not None:
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
            if isinstance(party, Job) or (party is not None and party.has_unfinished):
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
        if party is not None and party.has_unfinished:
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

    # -- rings -----------------------------------------------------------------------------------------------

    def begin(self, party: Any, job: Job[Any]) -> int:
        """Note that a task or request waits for a job. Returns the number of the wait."""
        number = next(self._numbers)
        self.of_jobs.setdefault(party, {}).setdefault(job, []).append(number)
        return number

    def end(self, party: Any, job: Job[Any], number: int) -> None:
        noted = self.of_jobs[party]
        noted[job].remove(number)
        if not noted[job]:
            del noted[job]
        if not noted:
            del self.of_jobs[party]

    def tell_ring(self, party: Any, number: int) -> None:
        """After `hold_timeout`: if those who wait form a ring, the wait that closed it says so."""
        makers = _makers(party)
        look: list[tuple[Any, int]] = [(party, -1)]
        came: dict[Any, tuple[Any, Job[Any], str]] = {
            party: (None, cast(Any, None), "")
        }  # from whom, and how
        while look:
            one, last = look.pop()
            for job, at in self._waits_of(one):
                for blocker, why in _blockers(job):
                    if blocker in makers or (blocker is party and max(last, at) == number):
                        said = _path(came, (one, job, why))
                        if blocker in makers:
                            said.append(f"{_name(blocker)} made {party}")
                        _log.waits_in_a_ring("; ".join(said), self._runner.settings.hold_timeout)
                        return
                    if blocker not in came:
                        came[blocker] = (one, job, why)
                        look.append((blocker, max(last, at)))

    def _waits_of(self, party: Any) -> list[tuple[Job[Any], int]]:
        """The jobs that a task or request waits for, with the numbers of the waits, or -1."""
        waits = [(job, numbers[-1]) for job, numbers in self.of_jobs.get(party, {}).items()]
        if not isinstance(party, Job):
            waits += [(job, -1) for job in party.awaits if not job.done()]
        return waits


class _Noted:
    """A task or request waits for a job: the wait is noted, and the task lends the slot of its lane."""

    def __init__(self, waits: Waits, runner: Runner, party: Any, job: Job[Any]) -> None:
        self._waits, self._runner, self._party, self._job = waits, runner, party, job
        position = party._position if isinstance(party, Job) else None
        self._lane: Lane | None = None if position is None else position.lane

    async def __aenter__(self) -> None:
        runner, waits, party = self._runner, self._waits, self._party
        number = self._number = waits.begin(party, self._job)
        delay = runner.settings.hold_timeout
        self._timer = runner.backend.later(delay, lambda: waits.tell_ring(party, number))
        if self._lane is not None:
            runner.scheduler.slots.lend(self._lane)
            runner.pump()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        self._waits.end(self._party, self._job, self._number)
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
        same_lane = job._position is not None and job._position.lane is party._position.lane  # type: ignore[union-attr]
        if same_lane and job._own_state is None:
            raise WouldDeadlock(party.name, f"{job.name} stands behind it in its lane")
        return
    position = job._position
    if position is None or job._own_state is not None:
        return
    if position.owner is party and not job._queued:
        raise WouldDeadlock(str(party), f"{job.name} is its own task, and starts after its response")
    held = party.held_position(position.lane)
    if (
        held is not None
        and held is not position
        and held.number
        and (not position.number or held.number < position.number)
    ):
        raise WouldDeadlock(str(party), f"{job.name} stands behind the position that it holds")


def _check_lane(job: Job[Any]) -> None:
    position = job._position
    stopped = None if position is None else position.lane.stopped
    if stopped is not None and job._own_state is None and job._queued:
        raise LaneStopped(plain_key(stopped.lane.key), stopped.added[0].name)


def _blockers(job: Job[Any]) -> Iterator[tuple[Any, str]]:
    """The running tasks and the requests before whose end, or response, the job cannot end."""
    job = job._outermost
    position = job._position
    if job._own_state is RUNNING:
        yield job, ""
    elif position is not None:
        running, head = position.lane.running, position.lane.first
        if position.owner is not None and not job._queued:
            yield position.owner, f", a task of {position.owner}, which has not responded"
        if running is not None and running is not job:
            yield running, f", which is behind {running.name}"
        if head is not None and head.owner is not None and head.held:
            yield head.owner, f", which is behind {head.owner}"


def _last_unfinished(jobs: AwaitedJobs) -> Job[Any] | None:
    """Jobs of one position end in order: the wait for the last one is mostly the only one."""
    for job in reversed(jobs):
        if job._attached and not job.done():
            return job
    return None


def _last_look(jobs: AwaitedJobs) -> Job[Any] | None:
    """For a job that a thread adds just now: see `TrackedRequest.join`."""
    jobs.waited = False
    return _last_unfinished(jobs)


def _path(came: dict[Any, tuple[Any, Job[Any], str]], step: tuple[Any, Job[Any], str]) -> list[str]:
    """The steps that led to this one, in words."""
    said: list[str] = []
    while step[0] is not None:
        one, job, why = step
        said.insert(0, f"{_name(one)} waits for {job.name}{why}")
        step = came[one]
    return said


def _makers(party: Any) -> set[Any]:
    """The tasks and requests that made a request, in this process: they may wait for its response."""
    makers: set[Any] = set()
    origin = None if isinstance(party, Job) else alive(party.origin.made_by)
    while origin is not None:
        makers.add(origin())
        origin = alive(origin.made_by)
    return makers


def _number(job: Job[Any]) -> int:
    number: int = job._outcome.number
    return number


def _name(party: Any) -> str:
    return party.name if isinstance(party, Job) else str(party)
