"""Tasks in a module, as workers need them. What they do is told in `ran`; gates hold them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextvars import ContextVar
from enum import Enum, Flag, IntEnum
from typing import Any

import anyio
import pytest

from fifo_background import report

ran: list[Any] = []
gates: dict[Any, anyio.Event] = {}
thread_gates: dict[Any, threading.Event] = {}
app: Any = None  # of the test
tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
unset: ContextVar[str] = ContextVar("unset")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    ran.clear()
    gates.clear()
    thread_gates.clear()


def gate(n: Any) -> anyio.Event:
    return gates.setdefault(n, anyio.Event())


async def quick(n: Any) -> Any:
    ran.append(n)
    return n


def sync(n: Any) -> Any:
    ran.append(n)
    return n


async def gated(n: Any) -> Any:
    ran.append(f"start {n}")
    await gate(n).wait()
    ran.append(f"end {n}")
    return n


async def reports(n: Any) -> None:
    report(1, 1)
    await gate(n).wait()


def thread_gated(n: Any) -> Any:
    ran.append(f"start {n}")
    assert thread_gates.setdefault(n, threading.Event()).wait(10)
    ran.append(f"end {n}")
    return n


async def fails(n: Any) -> None:
    ran.append(n)
    raise ValueError(f"no {n}")


async def fails_at_gate(n: Any) -> None:
    await gate(n).wait()
    raise ValueError(f"no {n}")


async def fails_until(n: Any, runs: int) -> int:
    """Fails until it has run so often."""
    ran.append(n)
    if ran.count(n) < runs:
        raise ValueError(f"not yet {n}")
    return runs


class Color(Enum):
    RED = "red"
    ALSO_RED = "red"
    BLUE = ("b", 1)


class Word(str, Enum):
    YES = "yes"


class Level(IntEnum):
    LOW = 1


class Right(Flag):
    READ = 1
    WRITE = 2


class Mailer:
    """A class with functions of all kinds."""

    class Inner:
        @staticmethod
        def deep(n: Any) -> None: ...

    @staticmethod
    def static(n: Any) -> None: ...

    @classmethod
    def of_class(cls) -> None: ...

    def bound(self) -> None: ...

    def __call__(self) -> None: ...


def returns_object() -> object:
    return object()
