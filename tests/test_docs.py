"""The documentation says what is so: its code compiles, the tutorial runs, its defaults are the defaults."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from starlette.testclient import TestClient

import fifo_background
from fifo_background import JobState
from fifo_background._core.state import TRANSITIONS
from fifo_background._settings import Settings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def blocks(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_compiles(page: Path) -> None:
    """Every block of Python in the docs is Python, and what it imports from us is there."""
    for block in blocks(page):
        tree = compile(
            block,
            page.name,
            "exec",
            flags=ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
            dont_inherit=True,
        )
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "fifo_background":
                assert [alias.name for alias in node.names if not hasattr(fifo_background, alias.name)] == []


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


def test_states() -> None:
    """The table of states in the reference has every state, and what can follow each, from `TRANSITIONS`."""
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    table = text.split("| state | meaning | next |\n")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| .* \|(.*)\|$", table, re.MULTILINE)
    said = [(name, re.findall(r"`(\w+)`", after)) for name, after in rows]
    assert said == [
        (state.name, [after.name for after in JobState if after in TRANSITIONS[state]]) for state in JobState
    ]


def test_links() -> None:
    """Every link between the pages leads somewhere."""
    for page in (*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_tutorial() -> None:
    """The tutorial's program, with each of its changes, does what the tutorial says."""
    pytest.importorskip("fastapi")
    program, _starlette, handles, anywhere = blocks(ROOT / "docs" / "tutorial.md")
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
