"""What APM agents report of background tasks is the same with ours as with Starlette's and FastAPI's own.

Run it with `python -m nox -s agents`. The same app (app.py) runs under the same agent (watch.py) in a process
of its own for each side, and all that the agent would have sent is compared: what there is of spans,
transactions and events, their names, parents and status, what is current inside the tasks, and how often a
failure is reported.
"""

from __future__ import annotations

import difflib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
# what an agent needs besides itself
MODULES = {
    "sentry": ("sentry_sdk",),
    "ddtrace": ("ddtrace",),
    "newrelic": ("newrelic",),
    "opentelemetry": ("opentelemetry.instrumentation.fastapi", "opentelemetry.instrumentation.starlette"),
    "fastapi": ("fastapi.telemetry", "opentelemetry.sdk"),
    "logfire": ("logfire", "opentelemetry.instrumentation.starlette"),
    "scout": ("scout_apm",),
}
PATHS = {
    f"/{name}{thread}"
    for name in ("sync", "async", "many", "sync_fails", "async_fails", "nested", "given")
    for thread in ("", "/thread")
} | {"/crowd", "/single"}
FAILS = {path for path in PATHS if "fails" in path}
# started after the imports as well: the others want to be first, or are given the app itself
LATE = ("sentry", "ddtrace")
RUNS = [
    (agent, when, framework)
    for agent in MODULES
    for when in (("early", "late") if agent in LATE else ("early",))
    for framework in (("fastapi",) if agent == "fastapi" else ("fastapi", "starlette"))
]
# Ours is one class for FastAPI's, which opens a span around each task but takes no list for an entry, and for
# Starlette's, which takes one but opens no spans.
NO_COUNTERPART = {("fastapi", path) for path in ("/nested", "/nested/thread")}
# what an agent can't tell: Sentry names no tasks, ddtrace knows only those of `add_task`
UNSEEN = {
    **{("sentry", "renamed", path): "no names" for path in PATHS},
    **{
        ("ddtrace", side, path): "not by add_task"
        for side in ("lost", "renamed")
        for path in ("/given", "/given/thread", "/single")
    },
    **{
        ("fastapi", "renamed", path): "Starlette's class" for path in ("/nested", "/nested/thread", "/single")
    },
}


def seen(agent: str, when: str, framework: str, side: str) -> dict[str, Any]:
    """What the agent saw, by path."""
    command = [sys.executable, "-m", "tests.agents.app", agent, when, framework, side]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == PATHS
    return result


def skip_without(agent: str) -> None:
    for module in MODULES[agent]:
        pytest.importorskip(module)


def difference(plain: Any, other: Any) -> str:
    texts = [json.dumps(one, indent=1).splitlines() for one in (plain, other)]
    return "\n".join(difflib.unified_diff(*texts, lineterm=""))


@pytest.mark.parametrize(("agent", "when", "framework"), RUNS)
def test_sees_the_same(agent: str, when: str, framework: str) -> None:
    """With nothing changed but the import, and with our middleware too, an agent sees what it saw before."""
    skip_without(agent)
    plain = seen(agent, when, framework, "plain")
    assert all(plain[path]["agent"] for path in PATHS)
    assert all(plain[path]["logged"] == (path in FAILS) for path in PATHS)
    different = []
    for side in ("swapped", "ordered"):
        ours = seen(agent, when, framework, side)
        different += [
            f"{side} {path}\n{difference(plain[path], ours[path])}"
            for path in sorted(PATHS)
            if plain[path] != ours[path] and (agent, path) not in NO_COUNTERPART
        ]
    assert not different, "\n\n".join(different)


@pytest.mark.parametrize("agent", MODULES)
def test_a_difference_is_seen(agent: str) -> None:
    """The comparison fails where a task is not what it was: see the sides in app.py."""
    skip_without(agent)
    plain = seen(agent, "early", "fastapi", "plain")
    for side in ("lost", "skipped", "renamed", "reported"):
        broken = seen(agent, "early", "fastapi", side)
        paths = FAILS if side == "reported" else PATHS
        expected = {path for path in paths if (agent, side, path) not in UNSEEN}
        assert {path for path in PATHS if plain[path] != broken[path]} == expected, side
