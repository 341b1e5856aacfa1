"""Values of users' code in terms of JSON: bounded, and whatever they are."""

from __future__ import annotations

import math
from collections.abc import Hashable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

__all__ = ("LONGEST_TEXT", "as_plain", "text_of")

# Characters of a name, a message or a note that are kept.
LONGEST_TEXT = 500

# What a list entry or key takes beside its text, about, in bytes.
_ENTRY = 8

# Types whose text says all.
_AS_TEXT = (UUID, datetime, date, time, timedelta, Decimal)

# Larger numbers cannot be written as text (`sys.set_int_max_str_digits`), nor read by most JSON readers.
_LONGEST_INT = 4096  # bits


class _CannotKeepError(Exception):
    """Why a value is not kept."""


def text_of(value: object) -> str:
    """`str`, of an object that may not have one; at most `LONGEST_TEXT` characters."""
    try:
        return str(value)[:LONGEST_TEXT]
    except Exception:
        return f"<{type(value).__name__}>"


def as_plain(value: object, limit: int) -> tuple[Any, int, str | None]:
    """A copy of a value in terms of JSON, how many bytes it takes, about, and why there is none.

    `limit`: how many bytes it may take. Nothing is called but what the types of the standard library have.
    """
    budget = [limit]
    try:
        copy = _copy(value, budget, 0)
    except _CannotKeepError as error:
        return None, 0, str(error)
    except Exception as error:  # a subclass of a standard type may do anything
        return None, 0, f"reading it raised {type(error).__name__}"
    return copy, limit - budget[0], None


def _spend(budget: list[int], size: int) -> None:
    budget[0] -= size
    if budget[0] < 0:
        raise _CannotKeepError("it is too large")


def _copy(value: Any, budget: list[int], depth: int) -> Any:
    if depth > 50:
        raise _CannotKeepError("it is nested too deeply")
    if isinstance(value, Enum):
        value = value.value
    _spend(budget, _ENTRY)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        _spend(budget, len(value))
        return str(value)
    if isinstance(value, int):
        if value.bit_length() > _LONGEST_INT:
            raise _CannotKeepError("it has a number that is too large")
        _spend(budget, value.bit_length() // 8)
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _CannotKeepError("JSON has no nan and no infinity")
        return float(value)
    if isinstance(value, dict):
        return {_key(key, budget): _copy(one, budget, depth + 1) for key, one in list(value.items())}
    if isinstance(value, (list, tuple, set, frozenset)):
        _spend(budget, len(value) * _ENTRY)  # before a copy of it is made
        return [_copy(one, budget, depth + 1) for one in list(value)]
    if isinstance(value, _AS_TEXT):
        return text_of(value)
    raise _CannotKeepError(f"{type(value).__qualname__} is not JSON: return a dict, a list or a str")


def _key(key: Hashable, budget: list[int]) -> str:
    if isinstance(key, Enum):
        key = key.value
    if key is None or isinstance(key, (str, int, float, *_AS_TEXT)):
        text = text_of(key)
        _spend(budget, len(text))
        return text
    raise _CannotKeepError(f"a key of type {type(key).__qualname__} is not JSON")
