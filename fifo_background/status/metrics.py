"""OpenTelemetry's instruments: read when somebody collects, so that a task costs nothing."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from opentelemetry.metrics import (
    CallbackOptions,
    Histogram,
    Meter,
    MeterProvider,
    NoOpMeterProvider,
    Observation,
    get_meter,
    get_meter_provider,
)

from fifo_background import JobState, SerialExecutor, Timing, __version__, executor_of
from fifo_background._run.spans import describe_spans

__all__ = ("describe_spans", "instrument")

# Boundaries of the histograms' buckets, in seconds.
BOUNDARIES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)

Callback = Callable[[CallbackOptions], Iterable[Observation]]


def instrument(
    app_or_executor: Any,
    meter_provider: MeterProvider | None = None,
    *,
    durations: bool = False,
    name: str | None = None,
) -> None:
    """Report an app's tasks, or those of a `SerialExecutor`, as metrics.

    The app need not have been started. `meter_provider`: default is the global one. `durations`: whether to
    measure how long tasks wait and run, from the history of ended jobs. `name`: tells several apps of one
    process apart; it is the attribute `fifo_background.executor.name`.
    """
    is_global = meter_provider is None or meter_provider is get_meter_provider()
    provider: Any = _GLOBAL if is_global else meter_provider
    meter = get_meter("fifo_background", __version__, meter_provider)
    instruments = _instruments.get(provider)
    if instruments is None:
        instruments = _instruments[provider] = _Instruments(meter)
    if durations:
        instruments.make_histograms(meter)
    attributes = {} if name is None else {"fifo_background.executor.name": name}
    instruments.watch(app_or_executor, attributes, durations)


class _Instruments:
    """The instruments of one meter provider, for all that it reports.

    An SDK has one instrument of a name, and asks only the callbacks with which it was made first.
    """

    def __init__(self, meter: Meter) -> None:
        self._watched: tuple[_Watched, ...] = ()  # replaced, never changed: the SDK's threads read it
        self._histograms: tuple[Histogram, ...] = ()
        meter.create_observable_up_down_counter(
            "fifo_background.jobs.waiting",
            [self._all(lambda one: one.count("waiting"))],
            unit="{job}",
            description="Tasks that were added and have not started",
        )
        meter.create_observable_up_down_counter(
            "fifo_background.jobs.running",
            [self._all(lambda one: one.count("running"))],
            unit="{job}",
            description="Tasks that run",
        )
        meter.create_observable_gauge(
            "fifo_background.head.age",
            [self._all(_Watched.age)],
            unit="s",
            description="For how long the first task of a lane has waited, at most",
        )
        meter.create_observable_counter(
            "fifo_background.jobs.ended",
            [self._all(_Watched.ended)],
            unit="{job}",
            description="Tasks that have ended, by state",
        )

    def make_histograms(self, meter: Meter) -> None:
        if self._histograms:
            return
        self._histograms = tuple(
            meter.create_histogram(
                f"fifo_background.job.{what}",
                unit="s",
                description=description,
                explicit_bucket_boundaries_advisory=BOUNDARIES,
            )
            for what, description in (
                ("waited", "From the adding of a task to its start"),
                ("ran", "From the start of a task to its end"),
            )
        )
        meter.create_observable_counter(
            "fifo_background.jobs.unmeasured",
            [self._all(lambda one: one.unmeasured(self._histograms))],
            unit="{job}",
            description="Ended tasks that the history had forgotten before they were measured",
        )

    def _all(self, read: Callable[[_Watched], Iterable[Observation]]) -> Callback:
        return lambda options: [found for one in self._watched for found in read(one)]

    def watch(self, app_or_executor: Any, attributes: dict[str, str], durations: bool) -> None:
        """From here on. Who is watched already counts once."""
        others = [one for one in self._watched if one.target() is not None]
        for one in others:
            if one.target() is app_or_executor and one.attributes == attributes:
                one.durations = one.durations or durations
                return
        self._watched = (*others, _Watched(app_or_executor, attributes, durations))


# The instruments of each meter provider. The global one has an entry of its own, as it may be set later.
_instruments: weakref.WeakKeyDictionary[Any, _Instruments] = weakref.WeakKeyDictionary()
_GLOBAL = NoOpMeterProvider()


class Measured(Protocol):
    """What metrics need of an executor, from any thread."""

    def counts(self) -> dict[str, Any]: ...

    def oldest_head(self) -> float | None: ...

    def timings(self, after: int = ...) -> tuple[list[Timing], int]: ...


def measured(executor: Any) -> Measured:
    """What `executor_of` gives, as metrics need it: an engine's executor offers what this process runs."""
    return executor if isinstance(executor, SerialExecutor) else executor.measured


class _Watched:
    """One that is reported. Its methods are called in threads of the SDK, one at a time, and only read."""

    def __init__(self, app_or_executor: Any, attributes: dict[str, str], durations: bool) -> None:
        self.target = weakref.ref(app_or_executor)  # a meter keeps its instruments for good
        self.attributes = attributes
        self.durations = durations
        self._executor: Measured | None = None  # the app's last one
        self._seen = self._missed = 0

    def _found(self) -> Measured | None:
        """The executor now; after the app's end still the last one, for what is collected then."""
        target = self.target()
        if target is None:
            self._executor = None
            return None
        if isinstance(target, SerialExecutor):
            return target
        try:
            found = measured(executor_of(target))
        except (LookupError, RuntimeError):  # not started, or over
            return self._executor
        if found is not self._executor:
            self._executor, self._seen = found, 0
        return found

    def count(self, what: str) -> Iterable[Observation]:
        executor = self._found()
        return [] if executor is None else [Observation(executor.counts()[what], self.attributes)]

    def age(self) -> Iterable[Observation]:
        executor = self._found()
        return [] if executor is None else [Observation(executor.oldest_head() or 0.0, self.attributes)]

    def ended(self) -> Iterable[Observation]:
        executor = self._found()
        if executor is None:
            return []
        counts = executor.counts()
        return [
            Observation(counts[state.value], {**self.attributes, "fifo_background.job.state": state.value})
            for state in JobState
            if state.ended
        ]

    def unmeasured(self, histograms: Iterable[Histogram]) -> Iterable[Observation]:
        """Also measures what has ended since the last time."""
        executor = self._found() if self.durations else None
        if executor is None:
            return []
        timings, ended = executor.timings(self._seen)
        self._missed += ended - self._seen - len(timings)
        self._seen = ended
        for name, state, waited, ran in timings:
            attributes = {
                **self.attributes,
                "code.function.name": name,
                "fifo_background.job.state": state.value,
            }
            for histogram, seconds in zip(histograms, (waited, ran), strict=True):
                if seconds is not None:
                    histogram.record(seconds, attributes)
        return [Observation(self._missed, self.attributes)]
