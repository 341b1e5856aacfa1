"""What is said: no error of a logging handler or filter reaches a task, a request or the queue."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fifo_background import BackgroundTasks, Job, JobState, LaneStopped, SerialExecutor, _log, executor_of
from fifo_background._core.naming import name_of
from fifo_background._settings import PLAIN
from fifo_background.exceptions import safe_repr
from tests.support.apps import Work, app_of, check_idle, make_app, until
from tests.support.asgi import get
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


class Detached:
    """A key as of an ORM: its `repr` needs what is not there anymore."""

    def __repr__(self) -> str:
        raise LookupError("detached")


async def test_lane_whose_key_has_no_repr(log: Log) -> None:
    """A lane is named by the class of its key where the key's `repr` raises: no record is lost for that."""
    key = Detached()
    executor = SerialExecutor(lane_after_failure="stop", drain_timeout=0)
    lane = executor.lane(key)
    async with executor:

        async def fail() -> None:
            raise ValueError

        assert await lane.submit_nowait(fail).wait() is JobState.FAILED
        lane.submit_nowait(store)
        lane.clear()
        assert await lane.submit_nowait(store) is None
        lane.pause()
        lane.submit_nowait(store)
    assert [(text.split()[0], text.count("lane <Detached>")) for text in log] == [
        ("ERROR", 0),
        *[("WARNING", 1)] * 3,
    ]
    assert str(LaneStopped(key, "store")).startswith("lane <Detached> has stopped")


def store(*args: Any, **kwargs: Any) -> None: ...


class Unprintable:
    def __repr__(self) -> str:
        raise ZeroDivisionError


async def test_percent(log: Log) -> None:
    """A path with a percent sign is in the log as it is."""

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(store, 1)
        await tasks()
        return Response()

    app = make_app()
    app.router.routes.append(Route("/100%s", handler))
    await get(app, "/100%s")
    assert log[0].startswith("WARNING GET /100%s: its tasks were awaited")


Unlikely = type("list", (), {"__iter__": None, "__module__": "builtins"})


@pytest.mark.parametrize("shows", [False, True])
async def test_what_was_lost(shows: bool, log: Log) -> None:
    """Each task that did not run is named with its id and lane, so that it can be done again.

    With `log_arguments=True` also with its arguments, shortened, whatever their `repr` does.
    """
    async with SerialExecutor(log_arguments=shows, drain_timeout=0) as executor:
        executor.lane("a").pause()
        for key, arguments in (("a", (1, "x" * 300)), ("a", (Unprintable(),)), ("b", ("Ann", Unlikely()))):
            executor.lane(key).pause()
            job = executor.lane(key).submit_nowait(store, *arguments, note=None)
        assert executor.job(job.id) is job
    short = re.compile(r" object at 0x[0-9a-f]+|Unprintable instance at 0x[0-9a-f]+")
    first, second, third = (
        ("(1, 'xx…xx', note=None)", "(<>, note=None)", "('Ann', <list>, note=None)")
        if shows
        else ("", "", "")
    )
    said = short.sub("", re.sub("x{3,}[.]{3}x{3,}", "xx…xx", log[0]))
    assert said == (
        "WARNING shutdown: dropped, as open requests or paused or stopped lanes held them: "
        f"2 tasks: store{first} 1-…, store{second} 2-… in lane 'a'; 1 task: store{third} 3-… in lane 'b'"
    )
    assert re.search(rf"store{re.escape(third)} {job.id} in lane 'b'", log.records[0].getMessage())


@pytest.mark.parametrize("shows", [False, True])
async def test_what_a_request_lost(shows: bool, log: Log) -> None:
    """What a request did not run is named by lane, with its id and, if asked for, its arguments."""

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(store, 1, text="é" * 250)
        tasks.lane("a").add_task(store, [b"x"])
        raise ValueError

    await get(make_app(handler, log_arguments=shows), "/handler")
    given = [f"(1, text='{'é' * 97}...{'é' * 98}')" if shows else "", "([b'x'])" if shows else ""]
    assert log == [
        f"WARNING GET /handler ended without running 1 task: store{given[0]} 1-… in the default lane; "
        f"1 task: store{given[1]} 2-… in lane 'a': it raised ValueError()"
    ]


async def test_a_path_forges_no_line(log: Log) -> None:
    """A client's path is on one line of the log, without orders to a terminal; other letters stay."""
    app = app_of(loses)
    for path in ("/söhne", "/a\nERROR forged\r\x1b[31m\u2028"):
        await get(app, path)
    assert [line.partition(" ended")[0] for line in log] == [
        "WARNING GET /söhne",
        r"WARNING GET /a\nERROR forged\r\x1b[31m\u2028",
    ]


async def loses(path: str, respond: Any) -> None:
    BackgroundTasks().add_task(store, 1)
    await respond()


@pytest.mark.parametrize("shows", [False, True])
async def test_what_was_cancelled_or_skipped(shows: bool, log: Log) -> None:
    """A task that was cancelled, skipped or cleared is named like one that was dropped."""
    running = anyio.Event()

    async def runs(number: int) -> None:
        running.set()
        await anyio.sleep_forever()

    async def fail() -> None:
        raise ValueError

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        lane = tasks.lane("a", after_failure="stop")
        lane.add_task(fail)
        for number in range(101):
            lane.add_task(store, number)
        return Response(background=tasks)

    app = make_app(handler, wait=False, log_arguments=shows)
    await get(app, "/handler")
    executor = executor_of(app)
    await until(lambda: executor.counts()["skipped"] == 101)
    job = executor.submit_nowait(runs, 7)
    await running.wait()
    job.cancel()
    await job.wait()
    executor.lane("a").submit_nowait(store, 8)
    executor.lane("a").clear()
    name = "test_what_was_cancelled_or_skipped.<locals>.fail"
    given = [f"({n})" if shows else "" for n in (*range(101), 7, 8)]
    skipped = ", ".join(f"store{given[n]} {n + 2}-…" for n in range(100))
    assert [line.replace(name, "fail") for line in log[1:]] == [
        f"WARNING fail failed (GET /handler); skipped after it: 100 tasks: {skipped} in lane 'a'; "
        "lane 'a' has stopped",
        f"WARNING fail failed (GET /handler); skipped after it: 1 task: store{given[100]} 102-… in lane 'a'",
        f"WARNING {name.replace('fail', 'runs')}{given[101]} 103-… in the default lane was cancelled",
        f"WARNING lane 'a' was cleared: cancelled 1 task: store{given[102]} 104-…",
    ]


async def test_many_are_lost(log: Log) -> None:
    """A record names a hundred tasks at most; all are named."""
    async with SerialExecutor() as executor:
        executor.lane("a").pause()
        for _ in range(201):
            executor.lane("a").submit_nowait(store)
    assert [re.findall(r"\d+ tasks?:", line) for line in log] == [["100 tasks:"], ["100 tasks:"], ["1 task:"]]
    assert [int(n) for line in log for n in re.findall(r"store (\d+)-…", line)] == list(range(1, 202))


async def test_what_cannot_be_told() -> None:
    """Where nothing is known of a task, its record says nothing of it."""
    assert list(_log._lost([Job(BackgroundTask(store), None, PLAIN, set())], {}, None)) == ["1 task: store"]
