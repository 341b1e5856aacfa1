"""What users can set, with defaults for a small app, checked where it is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from starlette.types import Scope

__all__ = ("AfterFailure", "Keep", "OnError", "Options", "Order", "Settings", "check_key")

Order = Literal["added", "arrived", "responded"]
OnError = Literal["skip_rest", "run_all"]
AfterFailure = Literal["next", "stop"]
Keep = Literal["all", "latest"]


def _check_choice(name: str, value: Any, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name}={value!r}: use one of {', '.join(map(repr, get_args(choices)))}")


def _check_seconds(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}={value!r}: give a number of seconds, such as 5.0")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}={value!r}: give a finite number of seconds, 0 or more")


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r}: give a whole number, such as 100")
    if value < 1:
        raise ValueError(f"{name}={value!r}: give 1 or more")


def _check_function(name: str, value: Any) -> None:
    if not callable(value):
        raise TypeError(f"{name}={value!r}: give a function of the ASGI scope")


def check_key(key: Any) -> None:
    """Raise TypeError for what cannot be the key of a lane."""
    try:
        hash(key)
    except TypeError:
        raise TypeError(
            f"the key of a lane has to be hashable, got {key!r}: use a str, an int or a tuple of them"
        ) from None


@dataclass(frozen=True, slots=True)
class Options:
    """What can differ from task to task of one app."""

    timeout: float | None = None
    after_failure: AfterFailure = "next"
    keep: Keep = "all"
    max_pending: int | None = None  # in its lane

    def __post_init__(self) -> None:
        if self.timeout is not None:
            _check_seconds("timeout", self.timeout)
        _check_choice("after_failure", self.after_failure, AfterFailure)
        _check_choice("keep", self.keep, Keep)
        if self.max_pending is not None:
            _check_count("max_pending", self.max_pending)

    def but(self, **changes: Any) -> Options:
        """With those changes that are not None."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})


@dataclass(frozen=True, slots=True)
class Settings:
    """One app's settings; `OrderedBackgroundMiddleware` documents them."""

    order: Order = "added"
    hold: float = 5.0
    wait: bool = True
    on_error: OnError = "skip_rest"
    after_failure: AfterFailure = "next"
    lane: Callable[[Scope], Hashable] | None = None
    arrives: Callable[[Scope], bool] | None = None
    max_lanes_running: int = 16
    max_pending: int | None = None
    timeout: float | None = None
    drain_timeout: float = 30.0
    options: Options = field(init=False, repr=False)
    """The options of a task that has none of its own."""

    def __post_init__(self) -> None:
        _check_choice("order", self.order, Order)
        _check_choice("on_error", self.on_error, OnError)
        _check_seconds("hold", self.hold)
        _check_seconds("drain_timeout", self.drain_timeout)
        _check_count("max_lanes_running", self.max_lanes_running)
        if self.max_pending is not None:
            _check_count("max_pending", self.max_pending)
        if not isinstance(self.wait, bool):
            raise TypeError(f"wait={self.wait!r}: give True or False")
        if self.lane is not None:
            _check_function("lane", self.lane)
        if self.arrives is not None:
            _check_function("arrives", self.arrives)
            if self.order != "arrived":
                raise ValueError(f'arrives= is for order="arrived", the order is {self.order!r}')
        options = Options(timeout=self.timeout, after_failure=self.after_failure)
        object.__setattr__(self, "options", options)
