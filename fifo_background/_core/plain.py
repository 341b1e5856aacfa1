"""Values of users' code in terms of JSON: bounded, and whatever they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

__all__ = ("LONGEST_TEXT", "as_plain", "on_one_line", "text_of", "type_name")

# Characters of a name, a message or a note that are kept.
LONGEST_TEXT = 500

# Bytes that one value may take, and values that may be in it: to copy it, or to write it as JSON, takes the
# event loop a few ms.
_MOST_BYTES, _MOST_VALUES = 1_000_000, 5_000

# What a value takes beside its text, about, in bytes.
_ENTRY = 64

# Characters that are shown of a text that is too large.
_BEGINNING = 100

# Types whose text says all.
_AS_TEXT = (UUID, datetime, date, time, timedelta, Decimal)

# Larger numbers cannot be written as text (`sys.set_int_max_str_digits`), nor read by most JSON readers.
_LONGEST_INT = 4096  # bits


class _CannotKeepError(Exception):
    """Why a value is not kept."""


class _TooLargeError(_CannotKeepError):
    pass


_QUALNAME: Callable[[type], str] = vars(type)["__qualname__"].__get__


def type_name(value: object) -> str:
    """The qualified name of a value's type. Runs nothing, whatever its metaclass is."""
    return str.__str__(_QUALNAME(type(value)))


def text_of(value: object) -> str:
    """`str`, of an object that may not have one; at most `LONGEST_TEXT` characters."""
    try:
        return str.__str__(str(value))[:LONGEST_TEXT]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        return f"<{type_name(value)}>"


def on_one_line(text: str) -> str:
    """A client's text, for logs: it forges no line there, and gives a terminal no orders."""
    return text if text.isprintable() else repr(text)[1:-1]


def as_plain(value: object, limit: int) -> tuple[Any, int, str | None]:
    """A copy of a value in terms of JSON, how many bytes it takes, about, and why there is none.

    `limit`: how many bytes it may take, at most a million. Nothing is called but what the types of the
    standard library have, whatever a subclass has.
    """
    budget = [min(limit, _MOST_BYTES), _MOST_VALUES]
    start = budget[0]
    try:
        copy = _copy(value, budget, 0)
    except _TooLargeError:
        return None, 0, f"it is too large{_described(value)}"
    except _CannotKeepError as error:
        return None, 0, str(error)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a property of an Enum may do anything
        return None, 0, f"reading it raised {type_name(error)}"
    return copy, start - budget[0], None


def _spend(budget: list[int], size: int, values: int = 0) -> None:
    budget[0] -= size
    budget[1] -= values
    if budget[0] < 0 or budget[1] < 0:
        raise _TooLargeError


def _described(value: object) -> str:
    """What is known of a value that is too large, without looking at all of it."""
    if isinstance(value, str):
        return f": {str.__len__(value):,} characters, which begin with {str.__str__(value)[:_BEGINNING]!r}"
    kind: Any
    for kind in (dict, list, tuple, set, frozenset):
        if isinstance(value, kind):
            return f": a {kind.__name__} of {kind.__len__(value):,}"
    return ""  # a number, or an Enum


def _copy(value: Any, budget: list[int], depth: int) -> Any:
    if depth > 50:
        raise _CannotKeepError("it is nested too deeply")
    _spend(budget, _ENTRY)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(str.__str__(value), budget)
    if isinstance(value, int):
        number = int.__int__(value)
        _check_length(number)
        _spend(budget, number.bit_length() // 8)
        return number
    if isinstance(value, float):
        fraction = float.__float__(value)
        if not math.isfinite(fraction):
            raise _CannotKeepError("JSON has no nan and no infinity")
        return fraction
    if isinstance(value, dict):
        items = dict.items(value)
        _spend(budget, len(items) * _ENTRY, len(items))  # before a copy of it is made
        copy: dict[str, Any] = {}
        for key, one in list(items):
            name = _key(key, budget)
            if name in copy:
                raise _CannotKeepError("two of its keys are the same text")
            copy[name] = _copy(one, budget, depth + 1)
        return copy
    kind: Any
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            _spend(budget, kind.__len__(value) * _ENTRY, kind.__len__(value))
            return [_copy(one, budget, depth + 1) for one in list(kind.__iter__(value))]
    if isinstance(value, Enum):
        return _copy(value.value, budget, depth + 1)
    if isinstance(value, _AS_TEXT):
        return _text(str.__str__(str(value)), budget)
    raise _CannotKeepError(f"{type_name(value)} is not JSON: return a dict, a list or a str")


def _check_length(number: int) -> None:
    if int.bit_length(number) > _LONGEST_INT:
        raise _CannotKeepError("it has a number that is too large")


def _text(text: str, budget: list[int]) -> str:
    _spend(budget, len(text) if text.isascii() else 4 * len(text))
    return text


def _key(key: Hashable, budget: list[int]) -> str:
    if isinstance(key, Enum):
        key = key.value
    if isinstance(key, str):
        return _text(str.__str__(key), budget)
    if isinstance(key, int):
        _check_length(key)
    if key is None or isinstance(key, (int, float, *_AS_TEXT)):
        return _text(str.__str__(str(key)), budget)
    raise _CannotKeepError(f"a key of type {type_name(key)} is not JSON")
