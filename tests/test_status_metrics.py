"""Metrics and spans, as OpenTelemetry's SDK and a real Prometheus exporter give them."""

from __future__ import annotations

import gc
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.to_thread
import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.requests import Request
from starlette.responses import Response
from starlette.testclient import TestClient

from fifo_background import BackgroundTask, BackgroundTasks, OrderedBackgroundMiddleware, SerialExecutor
from fifo_background._run.call import own_class
from fifo_background._run.current import current
from fifo_background.status.metrics import BOUNDARIES, describe_spans, instrument
from tests.support.apps import Work, make_app
from tests.support.asgi import get


class Meters:
    """An SDK whose metrics a test collects in another thread, as the SDK does."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def collected(self) -> dict[str, Any]:
        """The points of each metric by their attributes, or the only one's value."""
        data = self.reader.get_metrics_data()
        found: dict[str, Any] = {}
        for resource in data.resource_metrics if data is not None else ():
            for scope in resource.scope_metrics:
                assert scope.scope.name == "fifo_background"
                for metric in scope.metrics:
                    name = metric.name.removeprefix("fifo_background.")
                    found[name, metric.unit] = {
                        tuple((point.attributes or {}).values()): getattr(point, "value", point)
                        for point in metric.data.data_points
                    }
        return found

    async def __call__(self) -> dict[str, Any]:
        return await anyio.to_thread.run_sync(self.collected)


@pytest.fixture
def meters() -> Iterator[Meters]:
    meters = Meters()
    yield meters
    meters.provider.shutdown()


def states(**ended: int) -> dict[Any, int]:
    every = ("succeeded", "failed", "skipped", "cancelled", "superseded", "dropped")
    return {(state,): ended.get(state, 0) for state in every}


async def fail() -> None:
    raise ValueError


@pytest.mark.virtual_clock
async def test_counts(events: list[Any], meters: Meters) -> None:
    """How many tasks wait, run and have ended, and the age of the oldest head; no lane is named."""
    work = Work(events)
    async with SerialExecutor() as executor:
        instrument(executor, meters.provider)
        empty = {
            ("jobs.waiting", "{job}"): {(): 0},
            ("jobs.running", "{job}"): {(): 0},
            ("head.age", "s"): {(): 0.0},
            ("jobs.ended", "{job}"): states(),
        }
        assert meters.collected() == empty
        executor.submit_nowait(work.gated, 1)
        await anyio.wait_all_tasks_blocked()
        executor.submit_nowait(work.quick, 2)
        await anyio.sleep(3)
        executor.lane("secret").pause()
        executor.lane("secret").submit_nowait(fail)
        await anyio.sleep(2)
        assert meters.collected() == {
            ("jobs.waiting", "{job}"): {(): 2},
            ("jobs.running", "{job}"): {(): 1},
            ("head.age", "s"): {(): pytest.approx(5)},
            ("jobs.ended", "{job}"): states(),
        }
        work.gate(1).set()
        executor.lane("secret").resume()
        await executor.join()
        ended = empty | {("jobs.ended", "{job}"): states(succeeded=2, failed=1)}
        assert meters.collected() == ended
    assert meters.collected() == ended


async def test_from_another_thread(events: list[Any], meters: Meters) -> None:
    """The SDK collects in a thread of its own; `name` tells executors apart."""
    async with SerialExecutor() as executor:
        instrument(executor, meters.provider, name="scores")
        executor.lane("a").pause()
        executor.lane("a").submit_nowait(Work(events).quick, 1)
        await anyio.wait_all_tasks_blocked()  # the loop takes it into its lane: a thread may be there before
        found = await meters()
        assert found["jobs.waiting", "{job}"] == {("scores",): 1}
        assert found["head.age", "s"][("scores",)] > 0
        executor.lane("a").resume()


@pytest.mark.virtual_clock
async def test_durations(events: list[Any], meters: Meters) -> None:
    """With `durations=True` each ended task is measured once, by its function and state."""

    async def slow() -> None:
        await anyio.sleep(3)

    async with SerialExecutor() as executor:
        instrument(executor, meters.provider, durations=True)
        executor.submit_nowait(slow)
        executor.submit_nowait(slow)
        executor.submit_nowait(fail)
        executor.submit_nowait(fail).cancel()
        await executor.join()
        for _ in range(2):
            found = meters.collected()
            ran = {key: (point.count, round(point.sum)) for key, point in found["job.ran", "s"].items()}
            waited = {key: (point.count, round(point.sum)) for key, point in found["job.waited", "s"].items()}
            name = "test_durations.<locals>.slow"
            assert ran == {(name, "succeeded"): (2, 6), ("fail", "failed"): (1, 0)}
            assert waited == {(name, "succeeded"): (2, 3), ("fail", "failed"): (1, 6)}
        assert found["job.ran", "s"][name, "succeeded"].explicit_bounds == BOUNDARIES
        assert found["jobs.unmeasured", "{job}"] == {(): 0}


async def test_forgotten(events: list[Any], meters: Meters) -> None:
    """What the history forgets between two collections is counted as not measured."""
    work = Work(events)
    async with SerialExecutor(history=3) as executor:
        instrument(executor, meters.provider, durations=True)
        meters.collected()
        for jobs in (2, 5):
            for n in range(jobs):
                executor.submit_nowait(work.quick, n)
            await executor.join()
            found = meters.collected()
        assert found["jobs.unmeasured", "{job}"] == {(): 2}
        assert found["job.ran", "s"]["Work.quick", "succeeded"].count == 5


async def test_no_history(events: list[Any], meters: Meters) -> None:
    """With `history=0` there is nothing to measure."""
    async with SerialExecutor(history=0) as executor:
        instrument(executor, meters.provider, durations=True)
        await executor.submit_nowait(Work(events).quick, 1)
        found = meters.collected()
    assert ("job.ran", "s") not in found
    assert found["jobs.ended", "{job}"] == states(succeeded=1)


def test_app(events: list[Any], meters: Meters) -> None:
    """An app may be instrumented before its start; what it did last can be read after its end."""
    work = Work(events)

    async def handler(request: Request) -> Response:
        return Response(background=BackgroundTask(work.quick, 1))

    app = make_app(handler)
    instrument(app, meters.provider, durations=True)
    assert meters.collected() == {}
    for _ in range(2):  # a fresh executor each time
        with TestClient(app) as client:
            client.get("/handler")
            ended = meters.collected()["jobs.ended", "{job}"]
            assert ended == states(succeeded=1)
        found = meters.collected()
        assert found["jobs.ended", "{job}"] == ended
    assert found["job.ran", "s"]["Work.quick", "succeeded"].count == 2


def points(found: dict[str, Any], metric: str) -> Any:
    return next(points for (name, _), points in found.items() if name == metric)


async def test_several(events: list[Any], meters: Meters) -> None:
    """Each of several executors of one process is reported, under its own name."""
    work = Work(events)
    async with SerialExecutor() as scores, SerialExecutor() as mails:
        instrument(scores, meters.provider, name="scores")
        instrument(mails, meters.provider, name="mails", durations=True)
        for n in range(3):
            scores.submit_nowait(work.quick, n)
        mails.lane("a").pause()
        mails.lane("a").submit_nowait(work.quick, 3)
        await mails.submit_nowait(work.quick, 4)
        await scores.join()
        found = meters.collected()
        assert points(found, "jobs.waiting") == {("scores",): 0, ("mails",): 1}
        assert points(found, "jobs.running") == {("scores",): 0, ("mails",): 0}
        assert points(found, "head.age").keys() == {("scores",), ("mails",)}
        ended = points(found, "jobs.ended")
        assert (ended["scores", "succeeded"], ended["mails", "succeeded"]) == (3, 1)
        assert {key[0]: point.count for key, point in points(found, "job.ran").items()} == {"mails": 1}
        instrument(scores, meters.provider, name="scores", durations=True)  # now these, too; it counts once
        found = meters.collected()
        assert points(found, "jobs.ended")["scores", "succeeded"] == 3
        assert {key[0]: point.count for key, point in points(found, "job.ran").items()} == {
            "mails": 1,
            "scores": 3,
        }
        mails.lane("a").resume()


async def test_one_after_the_other(events: list[Any], meters: Meters) -> None:
    """One that comes after another one is gone is reported, as where each test makes its app."""
    for _ in range(2):
        executor: Any = SerialExecutor()
        async with executor:
            instrument(executor, meters.provider, durations=True)
            await executor.submit_nowait(Work(events).quick, 1)
            found = meters.collected()
        assert points(found, "jobs.ended") == states(succeeded=1)
        del executor
        gc.collect()
    assert [point.count for point in points(found, "job.ran").values()] == [2]


GLOBAL = """
from opentelemetry.metrics import get_meter_provider, set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from fifo_background import SerialExecutor
from fifo_background.status.metrics import instrument

reader = InMemoryMetricReader()
executors = [SerialExecutor() for _ in range(3)]
instrument(executors[0], name="early")
set_meter_provider(MeterProvider([reader]))
instrument(executors[1], name="late")
instrument(executors[2], get_meter_provider(), name="named")
[waiting] = [
    metric
    for scope in reader.get_metrics_data().resource_metrics[0].scope_metrics
    for metric in scope.metrics
    if metric.name == "fifo_background.jobs.waiting"
]
print(sorted(point.attributes["fifo_background.executor.name"] for point in waiting.data.data_points))
"""


def test_the_global_provider() -> None:
    """All are reported, whether they came before the SDK or after it, and whoever names its provider."""
    done = subprocess.run([sys.executable, "-c", GLOBAL], capture_output=True, text=True, check=True)
    assert done.stdout == "['early', 'late', 'named']\n"


async def test_gone(meters: Meters) -> None:
    """The instruments keep no executor alive."""
    executor: Any = SerialExecutor()
    instrument(executor, meters.provider, durations=True)
    assert meters.collected()["jobs.waiting", "{job}"] == {(): 0}
    del executor
    meters.collected()
    gc.collect()
    assert meters.collected().get(("jobs.waiting", "{job}"), {}) == {}


def test_prometheus(events: list[Any]) -> None:
    """A real scrape over HTTP has the metrics, with units and states, and no key of a lane."""
    prometheus = pytest.importorskip("opentelemetry.exporter.prometheus")
    client = pytest.importorskip("prometheus_client")
    work = Work(events)

    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.lane("player-7741").add_task(work.quick, 1)
        tasks.lane("player-7741").add_task(work.sync, 2)
        return Response(background=tasks)

    reader = prometheus.PrometheusMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    app = make_app(handler)
    instrument(app, provider, durations=True)
    server, thread = client.start_http_server(0, addr="127.0.0.1")
    try:
        with TestClient(app) as http:
            http.get("/handler")
            url = f"http://127.0.0.1:{server.server_port}/metrics"
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(url, timeout=10) as answer:
                text = answer.read().decode()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        provider.shutdown()
    lines = [line for line in text.splitlines() if line.startswith("fifo_background_")]
    values = {}
    for line in lines:
        labels, _, value = line.rpartition(" ")
        values[labels.replace('otel_scope_name="fifo_background",', "")] = float(value)
    plain = {label.split("{")[0]: value for label, value in values.items()}
    assert plain["fifo_background_jobs_waiting"] == plain["fifo_background_jobs_running"] == 0
    assert plain["fifo_background_head_age_seconds"] == 0
    state = 'fifo_background_job_state="succeeded"'
    assert [value for label, value in values.items() if "jobs_ended_total" in label and state in label] == [2]
    counts = [value for label, value in values.items() if "job_ran_seconds_count" in label and state in label]
    assert counts == [1, 1]
    assert "player-7741" not in text


# -- spans ---------------------------------------------------------------------------------------------------


@pytest.fixture
def describes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether spans are described, which they are by default."""
    monkeypatch.setattr(own_class, "in_span", None)
    if getattr(request, "param", True):
        describe_spans()
        return True
    return False


def attributes_of(exporter: InMemorySpanExporter) -> list[dict[str, Any]]:
    return [
        {
            key.removeprefix("fifo_background."): value
            for key, value in (span.attributes or {}).items()
            if key.startswith("fifo_background.")
        }
        for span in exporter.get_finished_spans()
        if span.name.startswith(("BackgroundTask ", "fastapi.background_task", "background_task"))
    ]


def traced_app(kind: str, provider: TracerProvider, work: Work) -> Any:
    """An app with a span around each task, by FastAPI itself or by OpenTelemetry's instrumentation."""
    fastapi = pytest.importorskip("fastapi")
    if kind == "fastapi":
        pytest.importorskip("fastapi.telemetry")
        app = fastapi.FastAPI(openapi_url=None, telemetry={"tracer_provider": provider})
    else:
        instrumentation = pytest.importorskip("opentelemetry.instrumentation.fastapi")
        app = fastapi.FastAPI(openapi_url=None)
        instrumentation.FastAPIInstrumentor.instrument_app(app, tracer_provider=provider)
    app.add_middleware(OrderedBackgroundMiddleware)

    @app.get("/")
    async def endpoint(tasks: BackgroundTasks) -> None:
        tasks.add_task(work.quick, 1)
        tasks.lane("a").add_task(work.sync, 2)

    return app


@pytest.mark.parametrize("kind", ["fastapi", "contrib"])
@pytest.mark.parametrize("describes", [False, True], indirect=True)
async def test_spans(kind: str, describes: bool, events: list[Any]) -> None:
    """After `describe_spans()` a task's span has its lane and how long it has waited; else it has not."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = traced_app(kind, provider, Work(events))
    try:
        assert (await get(app)).status == 200
    finally:
        if kind == "contrib":
            sys.modules["opentelemetry.instrumentation.fastapi"].FastAPIInstrumentor.uninstrument_app(app)
    assert sorted(events) == [1, 2]
    found = attributes_of(exporter)
    assert len(found) == 2
    assert {one.get("lane.name") for one in found} == ({"default", "a"} if describes else {None})
    assert all((one.get("job.waited", -1) >= 0) is describes for one in found)


async def test_span_that_is_not_the_tasks(describes: bool, events: list[Any]) -> None:
    """The span of a request is not described, nor one that nobody records."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with SerialExecutor() as executor:
        with provider.get_tracer("test").start_as_current_span("BackgroundTask around"):
            await executor.options(timeout=100).submit_nowait(Work(events).quick, 1)
            own_class.in_span()  # type: ignore[misc]  # no task runs
    own_class.in_span()  # type: ignore[misc]
    assert attributes_of(exporter) == [{}]
    assert events == [1]


async def test_part_of_a_job(describes: bool, events: list[Any]) -> None:
    """A job without a position or a start has no attributes of them."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with SerialExecutor() as executor:
        job = executor.submit_nowait(Work(events).quick, 1)
        job.cancel()
        await executor.join()
        token = current.set(job)
        with provider.get_tracer("test").start_as_current_span("BackgroundTask ended"):
            own_class.in_span()  # type: ignore[misc]
        current.reset(token)
    assert attributes_of(exporter) == [{}]
