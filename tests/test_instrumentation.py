"""OpenTelemetry contrib and logfire replace `BackgroundTask.__call__`: their spans are those of the tasks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import anyio
import pytest
import starlette.background

from fifo_background import (
    BackgroundTasks,
    Job,
    JobState,
    OrderedBackgroundMiddleware,
    _background,
)
from tests.support.apps import app_of
from tests.support.asgi import get

pytest.importorskip("fastapi")
pytest.importorskip("opentelemetry.sdk")

from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

Instrument = Callable[[FastAPI, InMemorySpanExporter], AbstractContextManager[None]]


@contextmanager
def contrib(app: FastAPI, exporter: InMemorySpanExporter) -> Iterator[None]:
    instrumentation = pytest.importorskip("opentelemetry.instrumentation.fastapi")
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentation.FastAPIInstrumentor.instrument_app(app, tracer_provider=provider)
    try:
        yield
    finally:
        instrumentation.FastAPIInstrumentor.uninstrument_app(app)


@contextmanager
def logfire(app: FastAPI, exporter: InMemorySpanExporter) -> Iterator[None]:
    logfire = pytest.importorskip("logfire")
    instance = logfire.configure(
        local=True,
        send_to_logfire=False,
        console=False,
        metrics=False,
        inspect_arguments=False,
        additional_span_processors=[SimpleSpanProcessor(exporter)],
    )
    with instance.instrument_fastapi(app):
        yield


@pytest.fixture(params=[contrib, logfire])
def instrument(request: pytest.FixtureRequest) -> Instrument:
    return request.param


@pytest.fixture(params=[False, True], ids=["default executor", "middleware"])
def middleware(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def task_spans(exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    return [
        span
        for span in exporter.get_finished_spans()
        if span.name.startswith("BackgroundTask ")
        and (span.attributes or {}).get("logfire.span_type") != "pending_span"
    ]


def app_with(middleware: bool) -> FastAPI:
    app = FastAPI(openapi_url=None)
    if middleware:
        app.add_middleware(OrderedBackgroundMiddleware)
    return app


async def test_a_span_for_each_task(
    instrument: Instrument, middleware: bool, exporter: InMemorySpanExporter, events: list[Any]
) -> None:
    """Each task has one span, named after the user's function and current inside the task, sync or async."""
    app = app_with(middleware)
    jobs: list[Job[Any]] = []

    def sync_task(number: int, *, twice: bool) -> int:
        events.append(trace.get_current_span().get_span_context())
        return number * (1 + twice)

    async def async_task(number: int, *, twice: bool) -> int:
        events.append(trace.get_current_span().get_span_context())
        return number * (1 + twice)

    @app.get("/")
    async def endpoint(tasks: BackgroundTasks) -> None:
        for number, task in enumerate((sync_task, async_task, async_task, sync_task, sync_task)):
            jobs.append(tasks.add_task(task, number, twice=True))

    with instrument(app, exporter):
        assert (await get(app)).status == 200

    spans = task_spans(exporter)
    kinds = ["sync", "async", "async", "sync", "sync"]
    assert [span.name for span in spans] == [f"BackgroundTask {kind}_task" for kind in kinds]
    assert [span.context for span in spans] == events
    assert len({span.context.span_id for span in spans if span.context}) == 5
    assert [job.state for job in jobs] == [JobState.SUCCEEDED] * 5
    assert [job.result() for job in jobs] == [0, 2, 4, 6, 8]


async def test_spans_belong_to_their_request(
    instrument: Instrument, middleware: bool, exporter: InMemorySpanExporter
) -> None:
    """The span of a task is in the trace of the request that added it, not of one before it in the queue."""
    app = app_with(middleware)
    seen: list[tuple[str, int]] = []

    @app.get("/{name}")
    async def endpoint(name: str, tasks: BackgroundTasks) -> None:
        seen.append((name, trace.get_current_span().get_span_context().trace_id))

        def note() -> None:
            seen.append((name, trace.get_current_span().get_span_context().trace_id))

        tasks.add_task(note)

    with instrument(app, exporter):
        for name in ("a", "b"):
            assert (await get(app, f"/{name}")).status == 200

    assert [name for name, _ in seen] == ["a", "a", "b", "b"]
    traces = dict(seen)
    assert len(set(traces.values())) == 2
    assert set(seen) == set(traces.items())
    assert [span.context.trace_id for span in task_spans(exporter) if span.context] == [*traces.values()]


@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
async def test_a_failure_reaches_the_span_and_the_job(
    instrument: Instrument, middleware: bool, exporter: InMemorySpanExporter, sync: bool
) -> None:
    """A task's error is recorded on its span once, kept in its job, and skips the rest as without spans."""
    app = app_with(middleware)
    jobs: list[Job[Any]] = []
    error = ValueError("no")

    def sync_fail() -> None:
        raise error

    async def async_fail() -> None:
        raise error

    @app.get("/")
    async def endpoint(tasks: BackgroundTasks) -> None:
        jobs.append(tasks.add_task(sync_fail if sync else async_fail))
        jobs.append(tasks.add_task(print, "never"))

    with instrument(app, exporter):
        exchange = await get(app)

    assert exchange.status == 200
    assert exchange.error is error
    (span,) = task_spans(exporter)
    assert span.name == f"BackgroundTask {'sync' if sync else 'async'}_fail"
    assert span.status.status_code is trace.StatusCode.ERROR
    assert [event.name for event in span.events] == ["exception"]
    assert [job.state for job in jobs] == [JobState.FAILED, JobState.SKIPPED]
    assert jobs[0].exception() is error


async def test_uninstrumented_again(
    instrument: Instrument, middleware: bool, exporter: InMemorySpanExporter, events: list[Any]
) -> None:
    """When the instrumentation is taken back, tasks run as before, without spans."""
    app = app_with(middleware)

    @app.get("/")
    async def endpoint(tasks: BackgroundTasks) -> None:
        tasks.add_task(events.append, "sync")

    with instrument(app, exporter):
        assert (await get(app)).status == 200
    exporter.clear()
    assert (await get(app)).status == 200
    assert events == ["sync", "sync"]
    assert task_spans(exporter) == []


class _Wrapper:
    """As wrapt does it: every look at the attribute gives another object."""

    def __init__(self, wrapped: Any) -> None:
        self.wrapped = wrapped

    def __get__(self, instance: Any, owner: Any) -> Any:
        return _Wrapper(self.wrapped.__get__(instance, owner))

    def __call__(self, *args: Any) -> Any:
        return self.wrapped(*args)


async def test_wrapped_by_descriptors(events: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """An instrumentation that wraps `BackgroundTask.__call__` in a descriptor changes nothing."""
    task_class = starlette.background.BackgroundTask
    monkeypatch.setattr(task_class, "__call__", _Wrapper(task_class.__call__))
    started, go_on = threading.Event(), threading.Event()

    def sync() -> int:
        events.append("start")
        started.set()
        go_on.wait(5)
        events.append("end")
        return 1

    tasks = BackgroundTasks()
    first, second = tasks.add_task(sync), tasks.add_task(events.append, "second")
    async with anyio.create_task_group() as group:
        group.start_soon(tasks)
        while not started.is_set():
            await anyio.lowlevel.checkpoint()
        assert not first.cancel()
        limiter = anyio.to_thread.current_default_thread_limiter()
        assert limiter.borrowed_tokens == 0
        go_on.set()
    assert events == ["start", "end", "second"]
    assert (first.result(), second.state) == (1, JobState.SUCCEEDED)


async def test_around_a_retry(events: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What FastAPI opens around a task is there again when it is retried."""

    class Spans(starlette.background.BackgroundTasks):
        async def __call__(self) -> None:
            events.append("span")
            await super().__call__()

    async def work() -> None:
        events.append("work")
        if len(events) == 2:
            raise ValueError

    async def handle(path: str, respond: Any) -> None:
        tasks = BackgroundTasks()
        tasks.lane("a", after_failure="stop").add_task(work)
        await respond()
        await tasks()

    monkeypatch.setattr(_background, "around_here", lambda: Spans)
    app = app_of(handle)
    await get(app)
    app.executor.lane("a").retry_head()
    await app.executor.join()
    assert events == ["span", "work", "span", "work"]
