"""The documentation says what is so: its code runs, and its tables are those of the code.

A block of Python after a line that ends with the name of an example is that file; `test_examples.py` runs it.
The tutorial's blocks are one program. `tests/engines/test_docs.py` runs those that need PostgreSQL. Every
other block runs in a handler, with the names of `NAMES`, and with `app`, `request`, `background_tasks` and
`executor`. A block that makes an app, or adds to one, has an app of its own, whose routes are then called.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any, NamedTuple

import anyio
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

import fifo_background
from fifo_background import (
    Blocker,
    Job,
    JobRecord,
    JobState,
    LaneList,
    LaneName,
    LaneRecord,
    OrderedBackgroundMiddleware,
    executor_of,
)
from fifo_background._core.state import TRANSITIONS
from fifo_background._settings import Settings
from fifo_background.status import StatusApp
from fifo_background.status.api import ENDPOINTS
from tests.support.log import Log

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:`(examples/\S+)`:\n\n)?```python\n(.*?)```", re.DOTALL)


class Block(NamedTuple):
    page: Path
    line: int
    file: str  # the example that the page shows here, or ""
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start(2)) + 1, found[1] or "", found[2])
        for found in BLOCK.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks(page)]
POSTGRES = [
    block
    for block in BLOCKS
    if not block.file and (block.page.name == "postgres.md" or "engines.postgres" in block.text)
]
FRAGMENTS = [
    block for block in BLOCKS if not block.file and block.page.name != "tutorial.md" and block not in POSTGRES
]


async def store(score: int) -> int:
    return score


def fail(amount: int) -> None:
    raise ValueError(amount)


NAMES: dict[str, Any] = {
    **{name: getattr(fifo_background, name) for name in fifo_background.__all__},
    "StatusApp": StatusApp,
    "CORSMiddleware": CORSMiddleware,
    "account": "ann",
    "amount": 1,
    "book": store,
    "compute": store,
    "player_id": "ann",
    "process_request": store,
    "score": 1,
    "store": store,
    "work": store,
    "x": 1,
}


# What has to be said to an app before it starts.
CHANGES = ("@app.", "app.add_middleware", "app.include_router")


def app_to_change(block: Block) -> Any:
    """An app that has not been started, for a block that adds a middleware or a route to it."""
    needs_fastapi = "@app." in block.text or "app.include_router" in block.text
    app = pytest.importorskip("fastapi").FastAPI() if needs_fastapi else Starlette()
    if "app.add_middleware" not in block.text:
        app.add_middleware(OrderedBackgroundMiddleware)
    return app


def compiled(block: Block) -> CodeType:
    return compile(
        "\n" * (block.line - 1) + block.text,
        str(block.page),
        "exec",
        flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
        dont_inherit=True,
    )


@pytest.mark.parametrize("block", POSTGRES, ids=str)
def test_block_for_postgres_compiles(block: Block) -> None:
    """A block of Python that needs PostgreSQL is Python."""
    assert compiled(block)


@pytest.mark.parametrize("block", FRAGMENTS, ids=str)
def test_block_runs(block: Block, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of Python in the docs runs, the tasks that it adds run, and its routes answer."""
    monkeypatch.setenv("TASKS_PASSWORD", "secret")
    for module in re.findall(r"^(?:from|import) ([\w.]+)", block.text, re.MULTILINE):
        pytest.importorskip(module)
    code = compiled(block)
    changes_app = any(change in block.text for change in CHANGES)
    names = dict(NAMES)

    async def handler(request: Request) -> Response:
        executor, background_tasks = executor_of(request), fifo_background.BackgroundTasks()
        names.update(background_tasks=background_tasks, executor=executor, request=request)
        if "retry_head" in block.text:  # it is about a lane that has stopped
            with pytest.raises(ValueError, match="1"):
                await executor.lane(NAMES["account"], after_failure="stop").submit_nowait(fail, 1)
        running = eval(code, names)
        if inspect.iscoroutine(running):
            await running
        return Response(background=background_tasks)

    host = Starlette(routes=[Route("/", handler)], middleware=[Middleware(OrderedBackgroundMiddleware)])
    names["app"] = app_to_change(block) if changes_app else host
    with TestClient(host) as client:
        assert client.get("/").status_code == 200
    if names["app"] is not host:
        with TestClient(names["app"]) as client:
            for route in names["app"].routes:
                shown = getattr(route, "include_in_schema", False)  # FastAPI's own pages are not
                if shown and not route.name.startswith("tasks:"):
                    (method,) = route.methods - {"HEAD"}
                    answer = client.request(method, re.sub(r"{.*?}", "1", route.path))
                    assert answer.status_code in (200, 202), answer.text
    assert [record for record in log if record.startswith("ERROR")] == []


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.file], ids=str)
def test_block_is_a_file(block: Block) -> None:
    """A whole program in the docs is, letter for letter, the example that it names."""
    assert block.text == (ROOT / block.file).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["README.md", "docs/reference.md"])
def test_defaults(page: str) -> None:
    """The defaults in the tables are those of the settings, and no setting is left out."""
    words = {"one for all": None, "no limit": None, "none": None, "finds out": None}
    text = (ROOT / page).read_text(encoding="utf-8").split("| setting | default |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)`\*? \| (.*?) \|", text, re.MULTILINE)
    defaults = {field.name: field.default for field in dataclasses.fields(Settings) if field.init}
    said = {
        name: words[value] if value in words else ast.literal_eval(value.strip("`")) for name, value in rows
    }
    if page == "README.md":
        del defaults["may_add_tasks"]  # told by the how-to that the table links
    assert said == defaults


def test_status_access(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page of the docs that asks for a password opens with it, for looking or for operating."""
    app = pytest.importorskip("fastapi").FastAPI()
    app.add_middleware(OrderedBackgroundMiddleware)
    monkeypatch.setenv("TASKS_PASSWORD", "secret")
    (block,) = [block for block in BLOCKS if "may_see_tasks(" in block.text]
    exec(compile(block.text, "status", "exec", dont_inherit=True), {"app": app})
    with TestClient(app) as client:
        refused = client.get("/tasks/")
        assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Basic")
        assert client.get("/tasks/", auth=("admin", "wrong")).status_code == 401
        for name in ("admin", "guest"):
            answer = client.get("/tasks/summary", auth=(name, "secret"))
            assert answer.json()["operate"] == (name == "admin")


def test_status_router() -> None:
    """The router of the docs is in OpenAPI."""
    app = pytest.importorskip("fastapi").FastAPI()
    (block,) = [block for block in BLOCKS if "app.include_router" in block.text]
    exec(compile(block.text, "status", "exec", dont_inherit=True), {"app": app})
    assert "/tasks/jobs/{id}" in app.openapi()["paths"]


def test_status_endpoints() -> None:
    """The table of endpoints has each one, and the job as JSON has each of its members."""
    text = (ROOT / "docs" / "status.md").read_text(encoding="utf-8")
    table = text.split("| endpoint | answer |")[1].split("\n\n")[0]
    said = set()
    for cell in re.findall(r"^\| (`(?:GET|POST) .*?) \|", table, re.MULTILINE):
        first, *others = re.findall(r"`(.*?)`", cell)
        method, path = first.partition("?")[0].split()
        said |= {(method, path), *((method, path.rpartition("/")[0] + other) for other in others)}
    assert said == {(one.method, one.path) for one in ENDPOINTS if one.name != "file"}
    (example,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    members = re.findall(r'"(\w+)": ', inspect.getsource(JobRecord.to_dict).partition("return {")[2])
    assert list(json.loads(example)) == members


def test_reference_has_every_name() -> None:
    """The reference has every public name, every attribute of a `Job`, and every field of the pictures."""
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    names = set(fifo_background.__all__) | set(inspect.signature(StatusApp).parameters)
    names |= {f"job.{name}" for name in dir(Job) if not name.startswith("_")}
    for picture in (JobRecord, LaneRecord, LaneName, LaneList, Blocker):
        names |= {field.name for field in dataclasses.fields(picture)}
    assert [name for name in sorted(names) if not re.search(rf"`(?:await )?{name}\b", text)] == []


def test_logging_config() -> None:
    """The logging configuration of the page prints time, level and logger, also of INFO records."""
    (config,) = re.findall(r"```json\n(.*?)```", (ROOT / "docs/production.md").read_text(), re.DOTALL)
    program = (
        "import json, logging.config, sys\n"
        "logging.config.dictConfig(json.loads(sys.argv[1]))\n"
        "logging.getLogger('fifo_background').info('shutdown: draining %s', '1 task')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, config], capture_output=True, text=True, check=True)
    line = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO fifo_background: shutdown: draining 1 task\n"
    assert re.fullmatch(line, done.stderr)


def test_records_to_watch() -> None:
    """Each text in the table of log records to watch is a piece of one that the package logs."""
    table = (ROOT / "docs" / "production.md").read_text(encoding="utf-8").split("## Records to watch")[1]
    texts = re.findall(r"^\| (?:ERROR|WARNING|INFO) \| `(.*?)` \|", table, re.MULTILINE)
    package = Path(fifo_background.__file__).parent
    source = "\n".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py"))
    assert [text for text in texts if text not in source] == []
    assert len(texts) == 10


def test_cors_on_the_503() -> None:
    """With `CORSMiddleware` outside of the middleware its 503 has CORS headers, else it has none."""

    async def full(request: Request) -> Response:
        raise fifo_background.QueueFull("a task", 1)

    cors = Middleware(CORSMiddleware, allow_origins=["https://example.com"])
    ordered = Middleware(OrderedBackgroundMiddleware)
    for middleware, origin in (([cors, ordered], "https://example.com"), ([ordered, cors], None)):
        app = Starlette(routes=[Route("/", full)], middleware=middleware)
        with TestClient(app) as client:
            answer = client.get("/", headers={"Origin": "https://example.com"})
        assert answer.status_code == 503
        assert answer.headers.get("access-control-allow-origin") == origin


def test_states() -> None:
    """The table of states in the reference has every state, and what can follow each, from `TRANSITIONS`."""
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    table = text.split("| state | meaning | next |\n")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| .* \|(.*)\|$", table, re.MULTILINE)
    said = [(name, re.findall(r"`(\w+)`", after)) for name, after in rows]
    assert said == [
        (state.name, [after.name for after in JobState if after in TRANSITIONS[state]]) for state in JobState
    ]


def test_figure_of_states() -> None:
    """The figure of the states is the one that `scripts/draw_states.py` draws from `TRANSITIONS`."""
    draw = runpy.run_path(str(ROOT / "scripts" / "draw_states.py"))["draw"]
    assert (ROOT / "docs" / "states.svg").read_text(encoding="utf-8") == draw()


def test_the_program_before() -> None:
    """The program with ARQ needs Redis, and is not run; it is Python."""
    text = (ROOT / "docs" / "from-arq.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```py\n(.*?)```", text, re.DOTALL)
    compile(program, "with_arq.py", "exec")


def test_links() -> None:
    """Every link between the pages leads somewhere, and every picture is there."""
    for page in (*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"):
        text = page.read_text(encoding="utf-8")
        pictures = re.findall(r'\bsrc(?:set)?="([^"]+)"', re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        for target in [*re.findall(r"\]\(([^)#\s]+)[^)]*\)", text), *pictures]:
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize(("number", "framework"), [(0, "fastapi"), (1, "starlette")])
def test_readme_app(number: int, framework: str) -> None:
    """The two apps of the README process requests in order."""
    pytest.importorskip(framework)
    block = blocks(ROOT / "README.md")[number]
    assert f"from {framework}" in block.text
    names: dict[str, Any] = {}
    exec(compile(block.text, "README.md", "exec", dont_inherit=True), names)
    processed: list[int] = []
    names["process_request"] = processed.append
    with TestClient(names["app"]) as client:
        for uid in range(4):
            assert client.post(f"/request/{uid}").status_code == 202
    assert processed == [0, 1, 2, 3]


def test_tutorial() -> None:
    """The tutorial's program, with each of its changes, does what the tutorial says."""
    pytest.importorskip("fastapi")
    program, starlette, handles, anywhere = (block.text for block in blocks(ROOT / "docs" / "tutorial.md"))
    given: dict[str, Any] = {"routes": [], "Starlette": Starlette, "Middleware": Middleware, **NAMES}
    exec(compile(starlette, "tutorial", "exec", dont_inherit=True), given)
    assert isinstance(given["app"].build_middleware_stack().app, OrderedBackgroundMiddleware)
    push = re.compile(r'@app\.post\("/scores/{score}".*?\n\n\n', re.DOTALL)
    for text in (program, push.sub(lambda _: f"{handles}\n\n", program, count=1) + anywhere):
        names: dict[str, Any] = {}
        exec(compile(text, "tutorial", "exec", dont_inherit=True), names)
        names["asyncio"] = SimpleNamespace(sleep=lambda seconds: anyio.sleep(0))
        with TestClient(names["app"]) as client:
            for score in range(4):
                assert client.post(f"/scores/{score}").status_code == 202
            assert client.get("/scores").json() == [0, 1, 2, 3]
            if text is not program:
                assert client.get("/scores/2/state").json() == "succeeded"
                assert client.post("/tick").status_code == 200
