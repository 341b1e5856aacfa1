"""Arguments, results and keys as text, and back: what comes back is equal, and of the same type.

JSON with tags: an object with one key that begins with "$" is what that tag says. The text is kept as text,
because PostgreSQL's `jsonb` would make an int of the float 1e22.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from datetime import datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, Flag
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from fifo_background._core.naming import name_of
from fifo_background._core.plain import type_name
from fifo_background.engines.postgres._functions import Functions

__all__ = ("Codec",)

_DEEPEST = 100
_LARGEST = 4096  # bits of an int: Python reads no more than 4,300 digits
_WORKS = "str, int, float, bool, None, list, dict, tuple, UUID, datetime, Decimal and Enum work"


class Codec:
    """Writes and reads the values of one app, whose Enums are in the packages that it allows."""

    def __init__(self, functions: Functions) -> None:
        self._functions = functions

    def arguments(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """The arguments of a call as text. Raises TypeError, naming the argument, for what cannot be."""
        names = None
        parts: list[Any] = []
        for place, value in enumerate(args):
            try:
                parts.append(self._write(value, 0))
            except TypeError as error:
                names = names or _names(func, args)
                raise _argument(func, names[place], error) from None
        by_name: dict[str, Any] = {}
        for name, value in kwargs.items():
            try:
                by_name[name] = self._write(value, 0)
                _check_text(name)
            except TypeError as error:
                raise _argument(func, name, error) from None
        return _text([parts, by_name])

    def read_arguments(self, text: str) -> tuple[list[Any], dict[str, Any]]:
        args, kwargs = json.loads(text)
        return [self._read(one) for one in args], {name: self._read(one) for name, one in kwargs.items()}

    def write(self, value: Any) -> str:
        """One value as text. Raises TypeError for what cannot be written."""
        return _text(self._write(value, 0))

    def read(self, text: str) -> Any:
        return self._read(json.loads(text))

    # -- writing ---------------------------------------------------------------------------------------------

    def _write(self, value: Any, depth: int) -> Any:
        if depth > _DEEPEST:
            raise TypeError("it is nested too deeply, or contains itself")
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is int:
            if value.bit_length() > _LARGEST:
                raise TypeError(f"an int of {value.bit_length()} bits is too large: pass it as text")
            return value
        if kind is str:
            return _check_text(value)
        if kind is float:
            if not math.isfinite(value):
                raise TypeError(f"{value} is not a number in JSON")
            return value
        if kind is list:
            return [self._write(one, depth + 1) for one in value]
        if kind is dict:
            if all(type(key) is str and key[:1] != "$" for key in value):
                return {_check_text(key): self._write(one, depth + 1) for key, one in value.items()}
            items = [[self._write(one, depth + 1) for one in item] for item in value.items()]
            return {"$dict": items}
        return self._tagged(value, kind, depth)

    def _tagged(self, value: Any, kind: type, depth: int) -> dict[str, Any]:
        if kind is tuple:
            return {"$tuple": [self._write(one, depth + 1) for one in value]}
        if kind is UUID:
            return {"$uuid": value.hex}
        if kind is datetime:
            return {"$datetime": _moment(value)}
        if kind is Decimal:
            if value.is_nan():
                raise TypeError(f"Decimal('{value}') is not equal to itself")
            return {"$decimal": str(value)}
        if issubclass(kind, Flag):
            return {"$flag": [self._functions.path_of_enum(kind), value.value]}
        if issubclass(kind, Enum):
            return {"$enum": [self._functions.path_of_enum(kind), value.name]}
        raise TypeError(f"{_a(type_name(value))} cannot be stored. {_WORKS}{_hint(value)}")

    # -- reading ---------------------------------------------------------------------------------------------

    def _read(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._read(one) for one in value]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            ((tag, inner),) = value.items()
            reader = _READERS.get(tag)
            if reader is not None:
                return reader(self, inner)
        return {key: self._read(one) for key, one in value.items()}


def _read_dict(codec: Codec, items: Any) -> Any:
    return {codec._read(key): codec._read(one) for key, one in items}


def _read_enum(codec: Codec, found: Any) -> Any:
    path, name = found
    return codec._functions.enum(path)[name]


def _read_flag(codec: Codec, found: Any) -> Any:
    path, number = found
    return codec._functions.enum(path)(number)


_READERS: dict[str, Callable[[Codec, Any], Any]] = {
    "$tuple": lambda codec, inner: tuple(codec._read(one) for one in inner),
    "$uuid": lambda _, inner: UUID(hex=inner),
    "$datetime": lambda _, inner: _read_moment(*inner),
    "$decimal": lambda _, inner: Decimal(inner),
    "$dict": _read_dict,
    "$enum": _read_enum,
    "$flag": _read_flag,
}


# made once: `json.dumps` would make one for each call
_text = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def _check_text(text: str) -> str:
    if "\0" in text:
        raise TypeError("a str with a NUL character cannot be stored in PostgreSQL")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise TypeError("a str with a lone surrogate is not text") from None
    return text


def _moment(moment: datetime) -> list[Any]:
    """A moment, its time zone's name or offset in microseconds, and which of two equal times it is."""
    zone: tzinfo | None = moment.tzinfo
    if isinstance(zone, ZoneInfo):
        if zone.key is None:
            raise TypeError("a ZoneInfo without a key cannot be stored")
        return [moment.replace(tzinfo=None).isoformat(), zone.key, moment.fold]
    if zone is not None and type(zone) is not timezone:
        raise TypeError(
            f"a datetime with a {type_name(zone)} cannot be stored: use datetime.timezone, or ZoneInfo"
        )
    # `fromisoformat` loses offsets of less than a second
    offset = None if zone is None else zone.utcoffset(None) // timedelta(microseconds=1)
    return [moment.replace(tzinfo=None).isoformat(), offset, moment.fold]


def _read_moment(text: str, zone: str | int | None, fold: int) -> datetime:
    moment = datetime.fromisoformat(text)
    found: tzinfo | None = None
    if isinstance(zone, str):
        found = ZoneInfo(zone)
    elif zone is not None:
        found = timezone(timedelta(microseconds=zone))
    return moment.replace(tzinfo=found, fold=fold)


def _names(func: Any, args: tuple[Any, ...]) -> list[str]:
    """How the arguments that are given by place are called."""
    names: list[str] = []
    try:
        for parameter in inspect.signature(func).parameters.values():
            if parameter.kind is parameter.VAR_POSITIONAL:
                names += [f"*{parameter.name}[{place}]" for place in range(len(args) - len(names))]
            elif parameter.kind is not parameter.KEYWORD_ONLY:
                names.append(parameter.name)
    except (TypeError, ValueError):
        pass
    return names + [str(place) for place in range(len(names), len(args))]


def _argument(func: Any, name: str, error: TypeError) -> TypeError:
    return TypeError(f"the argument {name!r} of {name_of(func)} cannot be stored: {error}")


def _a(name: str) -> str:
    return f"{'an' if name[:1] in 'aeiouAEIOU' else 'a'} {name}"


def _hint(value: object) -> str:
    if hasattr(type(value), "model_dump"):
        return ". For a pydantic model, pass `model.model_dump()`"
    if isinstance(value, (set, frozenset)):
        return ". For a set, pass `sorted(...)`"
    if isinstance(value, (bytes, bytearray)):
        return ". Large data belongs in a file or a table of its own: pass where to find it"
    if isinstance(value, (str, int, float, list, dict, tuple)):
        return ". Subclasses of them do not: convert it first"
    return ". Pass an id, and let the task look the object up"
