from __future__ import annotations

import pytest
from starlette.background import BackgroundTask

from fifo_background import Job, JobDropped, JobNotEnded, JobState
from fifo_background._job import TRANSITIONS, name_of


def make_job(state: JobState = JobState.PENDING, outcome: object = None) -> Job[object]:
    job: Job[object] = Job(BackgroundTask(print), None, None)
    job.state, job.outcome = state, outcome
    return job


@pytest.mark.parametrize("before", JobState)
@pytest.mark.parametrize("after", JobState)
def test_table(before: JobState, after: JobState) -> None:
    """A job goes where the table says; any other move raises and changes nothing."""
    job = make_job(before, "old")
    if after in TRANSITIONS[before]:
        job.move(after, "new")
        assert (job.state, job.outcome) == (after, "new")
    else:
        with pytest.raises(RuntimeError, match=f"from {before.value} to {after.value}"):
            job.move(after, "new")
        assert (job.state, job.outcome) == (before, "old")


def test_ended_states() -> None:
    """A job that has ended stays as it is."""
    assert {state for state in JobState if state.ended} == {
        JobState.SUCCEEDED,
        JobState.FAILED,
        JobState.SKIPPED,
        JobState.CANCELLED,
        JobState.SUPERSEDED,
        JobState.DROPPED,
    }


def test_outcomes() -> None:
    """A job tells its result, its error, or that it has none."""
    error = ValueError("x")
    assert make_job(JobState.SUCCEEDED, 3).result() == 3
    assert make_job(JobState.SUCCEEDED, 3).exception() is None
    with pytest.raises(ValueError, match="x"):
        make_job(JobState.FAILED, error).result()
    assert make_job(JobState.FAILED, error).exception() is error
    with pytest.raises(JobDropped, match="print has no result: it was dropped"):
        make_job(JobState.DROPPED).result()
    assert make_job(JobState.SKIPPED).exception() is None
    for ask in (make_job().result, make_job().exception):
        with pytest.raises(JobNotEnded, match=r"`await job.wait\(\)` first"):
            ask()


def test_names() -> None:
    """A task is called by its function's qualified name, or its class's."""
    from functools import partial

    class Callable:
        def __call__(self) -> None: ...

    assert name_of(test_names) == "test_names"
    assert name_of(partial(partial(test_names))) == "test_names"
    assert name_of(Callable()) == "test_names.<locals>.Callable"
    assert repr(make_job()) == "<Job print pending>"
