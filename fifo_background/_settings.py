"""What users can set, with defaults for a small app, checked where it is given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

__all__ = ("OnError", "Order", "Settings")

Order = Literal["added", "responded"]
OnError = Literal["skip_rest", "run_all"]


def _check_choice(name: str, value: Any, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name}={value!r}: use one of {', '.join(map(repr, get_args(choices)))}")


def _check_seconds(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}={value!r}: give a number of seconds, such as 5.0")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}={value!r}: give a finite number of seconds, 0 or more")


@dataclass(frozen=True)
class Settings:
    """One app's settings; `OrderedBackgroundMiddleware` documents them."""

    order: Order = "added"
    hold: float = 5.0
    wait: bool = True
    on_error: OnError = "skip_rest"
    drain_timeout: float = 30.0

    def __post_init__(self) -> None:
        _check_choice("order", self.order, Order)
        _check_choice("on_error", self.on_error, OnError)
        _check_seconds("hold", self.hold)
        _check_seconds("drain_timeout", self.drain_timeout)
        if not isinstance(self.wait, bool):
            raise TypeError(f"wait={self.wait!r}: give True or False")
