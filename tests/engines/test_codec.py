"""Arguments, results and keys as text, and back."""

from __future__ import annotations

import http
import math
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fifo_background.engines.postgres._codec import Codec
from fifo_background.engines.postgres._functions import Functions, NotAllowedError
from tests.engines import work

CODEC = Codec(Functions(["tests"]))

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
ZONES = st.one_of(
    st.none(),
    st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23))),
    st.sampled_from([timezone.utc, ZoneInfo("Europe/Berlin"), ZoneInfo("UTC")]),
)
SINGLE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    TEXT,
    st.uuids(),
    st.datetimes(timezones=ZONES, allow_imaginary=True),
    st.decimals(allow_nan=False),
    st.sampled_from([*work.Color, *work.Word, work.Right.READ, work.Right.READ | work.Right.WRITE]),
)
KEYS = st.recursive(SINGLE, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=5)
VALUES = st.recursive(
    SINGLE,
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.dictionaries(TEXT, inner),
        st.dictionaries(KEYS, inner),
    ),
    max_leaves=20,
)


def typed(value: Any) -> Any:
    """The value with the types of all of its parts, and what equality does not see."""
    kind = type(value)
    if kind in (list, tuple):
        return kind, [typed(one) for one in value]
    if kind is dict:
        return kind, [(typed(key), typed(one)) for key, one in value.items()]
    if kind is datetime:
        return kind, value.replace(tzinfo=None), value.fold, value.utcoffset(), type(value.tzinfo)
    if kind is float:
        return kind, value, math.copysign(1, value)
    if kind is Decimal:
        return kind, str(value)
    return kind, value


@settings(deadline=None, max_examples=50)
@given(VALUES)
def test_round_trip(value: Any) -> None:
    """What comes back is equal, and of the same type, in all of its parts."""
    again = CODEC.read(CODEC.write(value))
    assert typed(again) == typed(value)


@settings(deadline=None, max_examples=50)
@given(st.lists(VALUES, max_size=3), st.dictionaries(TEXT, VALUES, max_size=3))
def test_arguments_round_trip(args: list[Any], kwargs: dict[str, Any]) -> None:
    """The arguments of a call come back, also those whose names look like a tag."""

    def function(*given: Any, **named: Any) -> None: ...

    read_args, read_kwargs = CODEC.read_arguments(CODEC.arguments(function, tuple(args), kwargs))
    assert (typed(read_args), typed(read_kwargs)) == (typed(args), typed(kwargs))


@pytest.mark.parametrize(
    "value",
    [{"$uuid": "x"}, {"$": 1}, {"$tuple": [1]}, {1: "a", "1": "b"}, 1e22, -0.0, 10**1000, {}, (), [()], ""],
)
def test_examples(value: Any) -> None:
    """Dicts that look like a tag, keys of several types, large and negative zero numbers round-trip."""
    assert typed(CODEC.read(CODEC.write(value))) == typed(value)


class Model:
    def model_dump(self) -> None: ...


class MyInt(int): ...


def ring() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


REFUSED = {
    "an object": (object(), "an object cannot be stored.*Pass an id"),
    "a model": (Model(), "model_dump"),
    "a set": ({1}, "sorted"),
    "bytes": (b"x", "pass where to find it"),
    "a subclass": (MyInt(1), "convert it first"),
    "a date": (date(2026, 1, 1), "a date cannot"),
    "a type": (int, "a type cannot"),
    "a ring": (ring(), "contains itself"),
    "NUL": ("a\0b", "NUL"),
    "NUL in a key": ({"a\0": 1}, "NUL"),
    "a lone surrogate": ("\ud800", "lone surrogate"),
    "nan": (math.nan, "nan is not a number"),
    "infinity": (math.inf, "inf is not a number"),
    "Decimal nan": (Decimal("NaN"), "not equal to itself"),
    "Decimal snan": (Decimal("sNaN"), "not equal to itself"),
    "a huge int": (10**4500, "too large"),
    "a foreign Enum": (http.HTTPStatus.OK, "Allow its package"),
    "a time": (datetime(2026, 1, 1).time(), "a time cannot"),
    "deep inside": ({"a": [({"b": {object()}},)]}, "a set cannot"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals(what: str) -> None:
    """What cannot be stored is refused, by an error that names the argument and says what works."""
    value, text = REFUSED[what]

    def function(first: Any, *others: Any, named: Any = None) -> None: ...

    for args, kwargs, name in (
        ((value,), {}, "first"),
        ((1, 2, value), {}, r"\*others\[1\]"),
        ((1,), {"named": value}, "named"),
    ):
        with pytest.raises(
            TypeError, match=rf"(?s)the argument '{name}' of .*function cannot be stored.*{text}"
        ):
            CODEC.arguments(function, args, kwargs)


def test_refused_names() -> None:
    """The name of a keyword is text, too; a function without a signature has numbers for names."""
    with pytest.raises(TypeError, match="NUL"):
        CODEC.arguments(print, (), {"a\0": 1})
    with pytest.raises(TypeError, match="the argument 'value' of"):
        CODEC.arguments(dict.fromkeys, (1, object(), 3), {})
    with pytest.raises(TypeError, match="the argument '0' of"):
        CODEC.arguments(type("Odd", (), {"__signature__": 1})(), (object(),), {})


def test_refused_zones() -> None:
    """A time zone that cannot be found by its name is refused."""

    class Odd(ZoneInfo):
        @property
        def key(self) -> Any:
            return None

    with pytest.raises(TypeError, match="without a key"):
        CODEC.write(datetime(2026, 1, 1, tzinfo=Odd.no_cache("UTC")))

    from datetime import tzinfo

    class Mine(tzinfo):
        def utcoffset(self, moment: datetime | None) -> timedelta: ...

    with pytest.raises(TypeError, match="Mine cannot be stored: use datetime"):
        CODEC.write(datetime(2026, 1, 1, tzinfo=Mine()))


@pytest.mark.parametrize(
    "text",
    [
        '{"$enum":["http:HTTPStatus","OK"]}',
        '{"$enum":["tests.engines.work:Mailer","RED"]}',
        '{"$enum":["tests.engines.work:sync","RED"]}',
        '{"$flag":["os:system",1]}',
        '{"$enum":["tests.engines.work:nothing","RED"]}',
    ],
)
def test_hostile_text(text: str) -> None:
    """A row cannot make a worker import or call what is not an Enum of the app."""
    with pytest.raises(NotAllowedError):
        CODEC.read(text)


def test_unknown_tags_are_dicts() -> None:
    """A dict with an unknown tag, which this version has not written, is a dict."""
    assert CODEC.read('{"$later":[1]}') == {"$later": [1]}
    assert CODEC.read('{"$uuid":"00000000000000000000000000000001"}') == UUID(int=1)
