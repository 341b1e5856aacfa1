"""What is said: no error of a logging handler or filter reaches a task, a request or the queue."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from fifo_background import SerialExecutor
from fifo_background._core.job import name_of, safe_repr
from tests.support.apps import Work, check_idle
from tests.support.log import Log


@pytest.fixture
def raising_filter() -> Iterator[None]:
    """A filter of the logger that raises for every record."""

    def raises(record: logging.LogRecord) -> bool:
        raise ZeroDivisionError("of the filter")

    logger = logging.getLogger("fifo_background")
    logger.addFilter(raises)
    yield
    logger.removeFilter(raises)


class BrokenStream:
    def write(self, text: str) -> None:
        raise OSError("no space left")

    def flush(self) -> None: ...


@pytest.mark.parametrize("stderr", ["works", "broken", "none", "not wanted"])
async def test_filter_that_raises(
    stderr: str,
    raising_filter: None,
    events: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What a logging filter raises is printed, as `logging` does, where it can be, and stops nothing."""

    def fail() -> None:
        raise ValueError("of the task")

    if stderr == "broken":
        monkeypatch.setattr(sys, "stderr", BrokenStream())
    elif stderr == "none":
        monkeypatch.setattr(sys, "stderr", None)
    elif stderr == "not wanted":
        monkeypatch.setattr(logging, "raiseExceptions", False)
    async with SerialExecutor() as executor:
        jobs = [executor.submit_nowait(fail), executor.submit_nowait(Work(events).quick, 1)]
        assert await jobs[1] == 1
        check_idle(executor)
    assert isinstance(jobs[0].exception(), ValueError)
    assert events == [1]
    assert ("ZeroDivisionError: of the filter" in capsys.readouterr().err) is (stderr == "works")


async def test_names_that_raise(log: Log) -> None:
    """A function whose attributes or `repr` raise is called, and named by its class."""

    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise ZeroDivisionError(name)

        def __repr__(self) -> str:
            raise ZeroDivisionError

        def __call__(self, job: Any) -> None:
            called.set()
            raise ValueError

    called = anyio.Event()
    broken = Broken()
    name = "test_names_that_raise.<locals>.Broken"
    assert name_of(broken) == name
    assert safe_repr(broken) == "<Broken>"
    async with SerialExecutor() as executor:
        job = executor.submit_nowait(Work([]).quick, 1)
        job.add_done_callback(broken)
        await called.wait()
        assert await job == 1
    assert log == ["ERROR a done callback of Work.quick failed: <Broken>"]
