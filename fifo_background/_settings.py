"""What users can set, with defaults for a small app, checked where it is given."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Final, Literal, get_args

from starlette.types import Scope

__all__ = (
    "NOT_GIVEN",
    "PLAIN",
    "AfterFailure",
    "Keep",
    "NotGiven",
    "Options",
    "Order",
    "RestAfterFailure",
    "Retry",
    "Settings",
    "check_bool",
    "check_count",
    "check_engine",
    "check_key",
    "check_seconds",
)

Order = Literal["added", "arrived", "responded"]
RestAfterFailure = Literal["skip", "run"]
AfterFailure = Literal["continue", "stop"]
Keep = Literal["all", "latest"]

# The longest time that every event loop and thread can wait for, in seconds: some hundred years.
LONGEST = threading.TIMEOUT_MAX


class NotGiven(Enum):
    """The type of `NOT_GIVEN`, the default of what has a default of its own, so that None can be given."""

    NOT_GIVEN = "not given"

    def __repr__(self) -> str:
        return "NOT_GIVEN"


NOT_GIVEN: Final = NotGiven.NOT_GIVEN


def _check_choice(name: str, value: Any, choices: Any) -> None:
    if not isinstance(value, str) or value not in get_args(choices):
        raise ValueError(f"{name}={value!r}: use one of {', '.join(map(repr, get_args(choices)))}")


def check_seconds(name: str, value: Any, *, hint: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}={value!r}: give a number of seconds, such as 5.0{hint}")
    if not 0 <= value <= LONGEST:  # also false for nan
        raise ValueError(f"{name}={_short(value)}: give a finite number of seconds, 0 or more{hint}")


def _check_timeout(value: Any) -> None:
    check_seconds("timeout", value, hint=", or None for no limit")
    if value == 0:
        raise ValueError("timeout=0: give more than 0 seconds, or None for no limit")


def check_count(name: str, value: Any, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r}: give a whole number, such as 100")
    if value < least:
        raise ValueError(f"{name}={_short(value)}: give {least} or more")


def check_bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: give True or False")


def _check_function(name: str, value: Any) -> None:
    if not callable(value):
        raise TypeError(f"{name}={value!r}: give a function of the ASGI scope")
    if inspect.iscoroutinefunction(value):
        raise TypeError(f"{name}={value!r}: give a plain function of the ASGI scope, not an async one")


def check_engine(value: Any) -> None:
    if isinstance(value, type) or not hasattr(value, "bind"):
        given = "a class" if isinstance(value, type) else f"a value of type {type(value).__name__}"
        # the value itself may be a DSN with a password
        raise TypeError(f"engine=: give an engine, such as PostgresEngine(dsn), not {given}")


def _short(value: float) -> str:
    """A number for an error; `repr` of a very large int raises."""
    return repr(value) if abs(value) < 1e30 or value != value or isinstance(value, float) else "a huge number"


def check_key(key: Any) -> None:
    """Raise TypeError for a lane key that is not hashable."""
    if inspect.isawaitable(key):
        raise TypeError(
            f"the key of a lane must be a value, got {key!r}: give a plain function, not an async one"
        )
    try:
        hash(key)
    except TypeError:
        raise TypeError(
            f"the key of a lane must be hashable, got {key!r}: use a str, an int or a tuple of them"
        ) from None


@dataclass(frozen=True, slots=True)
class Retry:
    """How often, and when, a task that fails is run again; its lane waits meanwhile.

    `attempts`: how often it is run at most, the first one included. `wait` (seconds): before the second run;
    each later one waits twice as long as the one before it, at most `wait_max` (seconds).
    """

    attempts: int = 3
    wait: float = 1.0
    wait_max: float = 60.0

    def __post_init__(self) -> None:
        check_count("attempts", self.attempts)
        check_seconds("wait", self.wait)
        check_seconds("wait_max", self.wait_max)

    def seconds_after(self, attempt: int) -> float | None:
        """How long to wait after the run with this number; None if it was the last one."""
        if attempt >= self.attempts:
            return None
        return min(self.wait * 2.0 ** min(attempt - 1, 50), self.wait_max)

    @classmethod
    def of(cls, given: Any) -> Retry:
        """What `retry=` was given. Raises TypeError or ValueError for what is none."""
        if isinstance(given, cls):
            return given
        if isinstance(given, bool) or not isinstance(given, int):
            raise TypeError(f"retry={given!r}: give a number of attempts, or a Retry(...)")
        return cls(attempts=given)


@dataclass(frozen=True, slots=True)
class Options:
    """What can differ from task to task of one app."""

    timeout: float | None = None
    after_failure: AfterFailure = "continue"
    keep: Keep = "all"
    max_waiting: int | None = None  # in its lane
    wait: bool = True
    retry: int | Retry | None = None  # with an engine

    def __post_init__(self) -> None:
        if self.retry is not None:
            Retry.of(self.retry)
        if self.timeout is not None:
            _check_timeout(self.timeout)
        _check_choice("after_failure", self.after_failure, AfterFailure)
        _check_choice("keep", self.keep, Keep)
        if self.max_waiting is not None:
            check_count("max_waiting", self.max_waiting)
        check_bool("wait", self.wait)

    def replace(self, **changes: Any) -> Options:
        """With those changes that are given. Raises ValueError or TypeError for an invalid one."""
        given = {name: value for name, value in changes.items() if value is not NOT_GIVEN}
        return replace(self, **given) if given else self


# The options of a task that no executor knows yet.
PLAIN = Options()


@dataclass(frozen=True, slots=True)
class Settings:
    """One app's settings; `OrderedBackgroundMiddleware` documents them."""

    order: Order = "added"
    hold_timeout: float = 5.0
    wait: bool = True
    rest_after_failure: RestAfterFailure = "skip"
    lane_after_failure: AfterFailure = "continue"
    lane_key: Callable[[Scope], Hashable] | None = None
    may_add_tasks: Callable[[Scope], bool] | None = None
    max_lanes_running: int = 16
    max_waiting: int | None = None
    timeout: float | None = None
    drain_timeout: float = 30.0
    history: int = 1000
    history_seconds: float = 86_400.0
    results: bool = False
    results_bytes: int = 10_000_000
    log_arguments: bool = False
    options: Options = field(init=False, repr=False)
    """The options of a task that has none of its own."""

    def __post_init__(self) -> None:
        _check_choice("order", self.order, Order)
        _check_choice("rest_after_failure", self.rest_after_failure, RestAfterFailure)
        _check_choice("lane_after_failure", self.lane_after_failure, AfterFailure)
        check_seconds("hold_timeout", self.hold_timeout)
        check_seconds(
            "drain_timeout",
            self.drain_timeout,
            hint=". A drain always has an end: for a long one write drain_timeout=3600.0",
        )
        check_count("max_lanes_running", self.max_lanes_running)
        if self.max_waiting is not None:
            check_count("max_waiting", self.max_waiting)
        check_bool("wait", self.wait)
        check_count("history", self.history, least=0)
        check_seconds("history_seconds", self.history_seconds)
        check_bool("results", self.results)
        check_count("results_bytes", self.results_bytes)
        check_bool("log_arguments", self.log_arguments)
        if self.results and not self.history:
            raise ValueError("results=True needs a history: leave history=0 out, or results=True")
        if self.lane_key is not None:
            _check_function("lane_key", self.lane_key)
        if self.may_add_tasks is not None:
            _check_function("may_add_tasks", self.may_add_tasks)
            if self.order != "arrived":
                raise ValueError(
                    f'may_add_tasks= is only for order="arrived", and the order is {self.order!r}: '
                    'write order="arrived", or leave may_add_tasks out'
                )
        options = Options(timeout=self.timeout, after_failure=self.lane_after_failure, wait=self.wait)
        object.__setattr__(self, "options", options)

    def key_for(self, scope: Scope) -> Hashable:
        """What `lane_key`, which is given, returns for a request. Raises what it raises."""
        assert self.lane_key is not None
        try:
            key = self.lane_key(scope)
        except KeyError as error:
            if error.args == ("path_params",) and self.order == "arrived":
                raise KeyError(
                    'path_params: with order="arrived" lane_key is asked before routing, when '
                    'scope["path_params"] is not there. Take the key from scope["path"] or a header'
                ) from error
            raise
        check_key(key)
        return key
