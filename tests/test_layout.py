"""The package is built as CONTRIBUTING says: imports go one way, and public objects show public names."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

import fifo_background
from fifo_background import BackgroundTask, BackgroundTasks, OrderedBackgroundMiddleware, SerialExecutor

PACKAGE = Path(fifo_background.__file__).parent
ROOT = Path(__file__).parent.parent
# the wheel brings the demo's example along
FILES = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "examples"]
MODULES = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in FILES}

# From the bottom to the top: a layer imports only itself and what is before it.
LAYERS = (
    ("exceptions", "_settings"),
    ("_core",),
    ("_log", "_arguments", "_processes"),
    ("_run",),
    ("_entries", "_adder", "_object_state", "_parts"),
    ("_awaited", "_engine", "_request"),
    ("_background", "_executor", "_replaced", "_submitter"),
    ("_fastapi",),
    ("_middleware", "_notices", "_refused", "_with_engine"),
    ("_lookup",),
    ("",),
    ("engines",),
    ("cli",),
    ("__main__",),
    ("status",),
    ("testing",),
)
# What `status` uses of the package beside its public names: a request of it takes no position.
# `describe_spans` is public, and knows the running job.
STATUS_USES = {"", "_request", "_run.spans"}
# `spans.py` is the one file of `_fastapi` that works without FastAPI: it then finds no spans.
EXCEPTIONS = {("_background", "_fastapi.spans")}

# Modules that know each other's types.
CYCLES = [
    # a job knows its position, which knows its lane; when it has ended, it knows its record
    {"_core.history", "_core.job", "_core.job_record", "_core.lane", "_core.position", "_core.special"},
    {  # what one event loop has of an engine: its parts know their session
        "engines.postgres._engine",
        "engines.postgres._executor",
        "engines.postgres._jobs",
        "engines.postgres._request",
        "engines.postgres._session",
        "engines.postgres._shown",
    },
    # parts of a scheduler
    {"_core.capacity", "_core.names", "_core.scheduler", "_core.slots", "_core.turns"},
    {"_run.backends.api", "_run.backends.asyncio", "_run.backends.trio"},  # one protocol, and who has it
    {  # parts of a runner
        "_run.changes",
        "_run.closing",
        "_run.dispatch",
        "_run.in_threads",
        "_run.loop_calls",
        "_run.on_loop",
        "_run.overview",
        "_run.parking",
        "_run.rings",
        "_run.runner",
        "_run.waits",
    },
]


def imported(path: Path, *, types: bool) -> Iterator[str]:
    """The package's modules that a module imports; with `types` also those for types alone."""
    look: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while look:
        node = look.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            look += [*node.orelse, *(node.body if types else [])]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "fifo_background":
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                yield module if module in MODULES else f"{node.module}"
        else:
            look += ast.iter_child_nodes(node)


def short(module: str) -> str:
    return module.removesuffix(".__init__").removeprefix("fifo_background").removeprefix(".")


GRAPHS = {
    types: {
        short(module): {short(other) for other in imported(path, types=types)}
        for module, path in MODULES.items()
    }
    for types in (False, True)
}


def layer(module: str) -> int:
    first = module.partition(".")[0]
    (number,) = [number for number, names in enumerate(LAYERS) if first in names]
    return number


def test_layers() -> None:
    """Imports go one way, those for types alone included."""
    upward = {
        (module, other)
        for module, others in GRAPHS[True].items()
        for other in others
        if layer(other) > layer(module)
    }
    assert upward == EXCEPTIONS


def test_status_is_outside() -> None:
    """`status` uses the package as a user does, and only a user imports it."""
    used = {
        other
        for module, others in GRAPHS[True].items()
        for other in others
        if layer(module) == layer("status") and layer(other) != layer("status")
    }
    assert used == STATUS_USES
    taken = {
        alias.name
        for path in (PACKAGE / "status").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == "fifo_background._request"
        for alias in node.names
    }
    assert taken == {"leave_queue"}


def test_core_is_pure() -> None:
    """`_core` knows no event loop, thread, logging or ASGI; of Starlette only the class of a task."""
    known = {"anyio", "asyncio", "logging", "starlette", "threading", "trio"}
    found = set()
    for module, path in MODULES.items():
        if short(module).startswith("_core"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    found.add(node.module)
    assert {name for name in found if name.partition(".")[0] in known} == {"starlette.background"}


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    look = [start]
    while look:
        new = graph.get(look.pop(), set()) - found
        found |= new
        look += new
    return found


@pytest.mark.parametrize(("types", "cycles"), [(False, []), (True, CYCLES)])
def test_cycles(types: bool, cycles: list[set[str]]) -> None:
    """No modules import each other; those that know each other's types are named here, with the reason."""
    graph = GRAPHS[types]
    reach = {module: reachable(graph, module) for module in graph}
    found = {
        frozenset(other for other in reach[one] if one in reach[other]) for one in graph if one in reach[one]
    }
    assert found == {frozenset(cycle) for cycle in cycles}


def test_contributing_names_every_module() -> None:
    """The tree in CONTRIBUTING has each file of the package."""
    tree = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("```text\n")[1].split("```")[0]
    listed = {line.split()[0] for line in tree.splitlines()[1:] if not line.split()[0].endswith("/")}
    found = {path.name for path in FILES if path.parent == PACKAGE or path.name != "__init__.py"}
    assert listed == found


def test_mutations() -> None:
    """Every text that `scripts/mutations.py` breaks is in the package once, and docs/testing.md lists it."""
    spec = importlib.util.spec_from_file_location("mutations", ROOT / "scripts" / "mutations.py")
    assert spec is not None
    assert spec.loader is not None
    mutations = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutations)
    listed = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8").splitlines()
    for name, (file, text, _) in mutations.MUTATIONS.items():
        assert (PACKAGE / file).read_text(encoding="utf-8").count(text) == 1, name
        assert f"- {name}" in listed


def public(shown: object) -> set[str]:
    return {name for name in dir(shown) if not name.startswith("_")}


async def test_public_names() -> None:
    """Nothing internal is visible on a public object: these are all of its names."""
    async with SerialExecutor() as executor:
        job = executor.submit_nowait(print)
        assert public(job) == {
            *("add_done_callback", "cancel", "done", "exception", "name", "result", "state", "wait"),
            *("added_at", "ahead", "blocked_by", "ended_at", "id", "lane", "number", "progress"),
            *("started_at", "to_dict"),
        }
        submits = {"options", "submit", "submit_nowait"}
        follows = {"changed", "counts", "ended", "ended_count", "epoch", "find_lane", "job", "jobs", "lanes"}
        follows |= {"oldest_head", "timings"}
        closes = {"aclose", "is_open", "join", "lane", "statistics"}
        assert public(executor) == submits | follows | closes
        assert public(executor.options()) == submits
        operations = {"clear", "key", "pause", "peek", "picture", "resume", "retry_head", "skip_head"}
        assert public(executor.lane("key")) == submits | operations
        job.cancel()
    tasks, task = BackgroundTasks(), BackgroundTask(print)
    assert public(task) == {"args", "func", "is_async", "kwargs"}
    assert public(tasks) == {"add_task", "func", "lane", "options", "store", "tasks"}
    assert public(tasks.lane("key")) == {"add_task", "lane", "options"}
    assert public(OrderedBackgroundMiddleware(tasks)) == {"app", "executor", "settings"}  # type: ignore[arg-type]
