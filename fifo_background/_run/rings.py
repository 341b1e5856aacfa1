"""Who waits for whom: noted for statistics, and to say which waits form a ring, and so never end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from fifo_background import _log
from fifo_background._core.job import Job
from fifo_background._core.state import RUNNING
from fifo_background._run.current import makers_of

if TYPE_CHECKING:
    from fifo_background._run.runner import Runner

__all__ = ("Rings", "blockers")


class Rings:
    """The waits of tasks and requests at one executor for the ends of jobs."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.of_jobs: dict[Any, dict[Job[Any], list[int]]] = {}  # who waits for what, with the waits' numbers
        self._numbers = itertools.count()

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
        makers = set() if isinstance(party, Job) else set(makers_of(party.origin))
        look: list[tuple[Any, int]] = [(party, -1)]
        came: dict[Any, tuple[Any, Job[Any], str]] = {
            party: (None, cast(Any, None), "")
        }  # from whom, and how
        while look:
            one, last = look.pop()
            for job, at in self._waits_of(one):
                for blocker, why in blockers(job):
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


def blockers(job: Job[Any]) -> Iterator[tuple[Any, str]]:
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


def _path(came: dict[Any, tuple[Any, Job[Any], str]], step: tuple[Any, Job[Any], str]) -> list[str]:
    """The steps that led to this one, in words."""
    said: list[str] = []
    while step[0] is not None:
        one, job, why = step
        said.insert(0, f"{_name(one)} waits for {job.name}{why}")
        step = came[one]
    return said


def _name(party: Any) -> str:
    return party.name if isinstance(party, Job) else str(party)
