"""What `PostgresEngine` takes."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import pytest

from fifo_background.engines.postgres import PostgresEngine, Retry, TaskFailed
from tests.engines import work

DSN = "postgresql://host/database"

WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"dsn": 1}, TypeError, "dsn=1: give a str"),
    ({"dsn": "pass word"}, ValueError, "dsn: "),
    ({"packages": "myapp"}, TypeError, r"\['myapp'\]"),
    ({"queue": ""}, ValueError, "queue=''"),
    ({"queue": "x" * 41}, ValueError, "at most 40 bytes"),
    ({"queue": "é" * 21}, ValueError, "at most 40 bytes"),
    ({"queue": "\udc80"}, ValueError, "queue="),
    ({"queue": "a\0"}, ValueError, "queue="),
    ({"queue": 1}, ValueError, "queue=1"),
    ({"worker": 1}, TypeError, "worker=1: give True or False"),
    ({"migrate": None}, TypeError, "migrate=None"),
    ({"concurrency": 0}, ValueError, "concurrency=0"),
    ({"concurrency": True}, TypeError, "concurrency=True"),
    ({"most_crashes": 0}, ValueError, "most_crashes=0"),
    ({"results_bytes": -1}, ValueError, "results_bytes=-1"),
    ({"keep_ended": -1.0}, ValueError, "keep_ended=-1.0"),
    ({"keep_ended": 0}, ValueError, "keep_ended=0: give more than 0"),
    ({"store_timeout": "2"}, TypeError, "store_timeout='2'"),
    ({"heartbeat": "1"}, TypeError, "heartbeat='1'"),
    ({"lost_after": None}, TypeError, "lost_after=None"),
    ({"heartbeat": 0.0}, ValueError, "heartbeat=0.0"),
    ({"heartbeat": 3.0}, ValueError, "at most a third of lost_after"),
    ({"carry": {"tenant": "x"}}, TypeError, "carry="),
    ({"carry": {1: work.tenant}}, TypeError, "carry="),
]


@pytest.mark.parametrize(("setting", "error", "text"), WRONG)
def test_wrong(setting: dict[str, Any], error: type[Exception], text: str) -> None:
    """A wrong setting is refused where it is given, by an error that names it."""
    with pytest.raises(error, match=text):
        PostgresEngine(**{"dsn": DSN, **setting})


@pytest.mark.parametrize("setting", [{"attempts": 0}, {"wait": -1.0}, {"wait_max": float("inf")}])
def test_wrong_retry(setting: dict[str, Any]) -> None:
    """A wrong setting of `Retry` is refused where it is given."""
    with pytest.raises(ValueError, match=next(iter(setting))):
        Retry(**setting)


def test_without_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a package is missing, the import says what to install."""
    monkeypatch.delitem(sys.modules, "fifo_background.engines.postgres")
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ModuleNotFoundError, match=r"psycopg.*pip install 'fifo-background\[") as error:
        import_module("fifo_background.engines.postgres")
    assert error.value.name == "psycopg"


def test_backoff() -> None:
    """Each wait of a `Retry` is twice the one before it, at most `wait_max`; after the last run is none."""
    retry = Retry(5, wait=1.0, wait_max=5.0)
    assert [retry.seconds_after(run) for run in range(1, 7)] == [1.0, 2.0, 4.0, 5.0, None, None]
    assert Retry(10_000).seconds_after(5000) == 60.0


def test_packages() -> None:
    """By default the package of the module that makes the engine is allowed; a program has none."""
    assert PostgresEngine(DSN).functions.packages == {"tests"}
    program: dict[str, Any] = {"__name__": "__main__", "PostgresEngine": PostgresEngine}
    assert eval(f"PostgresEngine({DSN!r})", program).functions.packages == frozenset()


def test_task_failed() -> None:
    """`TaskFailed` can be pickled, as any error."""
    import pickle

    again = pickle.loads(pickle.dumps(TaskFailed("store", "ValueError", "no")))
    assert (str(again), again.type) == ("store failed with ValueError: no", "ValueError")
