"""Run other projects' own tests with nothing changed but the import of the background tasks.

    python scripts/upstream.py                          the newest releases, on the running Python
    python scripts/upstream.py --stack 0.96 --python python3.11
    python scripts/upstream.py --stack agents           New Relic's, logfire's and Sentry's
    python scripts/upstream.py --with-middleware        every app gets OrderedBackgroundMiddleware as well
    python scripts/upstream.py --unchanged              the tests as they are, without the swapped import

Downloads the source distributions with pip, copies their tests to a temporary folder, swaps the imports and
runs pytest in a virtual environment of its own. A test that fails is run again as upstream wrote it: one that
fails there too (it needs another user, network, ...) is shown and not counted. Ends with 1
if any other test fails.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SWAPPED_MODULES = ("starlette.background", "fastapi", "fastapi.background")
SWAPPED_NAMES = ("BackgroundTask", "BackgroundTasks")

# Tests that demand the very thing we are there to prevent: they must fail, and nothing else may.
CONTRARY = {
    r"test_base\.py::test_do_not_block_on_background_tasks\[": "wants two requests' tasks at once",
}
CONTRARY_WITH_MIDDLEWARE = {
    r"test_closing_client_cancels_unclosed_response\[\w+-lifespan\]": "wants no drain at shutdown",
}


@dataclass(frozen=True)
class Suite:
    """The tests of one source distribution."""

    project: str
    version: str
    imports: int  # the least number of imports that must have been swapped
    passes: int  # the least number of tests that must pass
    # which tests: all of them, or the files in which something was swapped, and those that import such a file
    everything: bool = False
    also: tuple[str, ...] = ()
    early: bool = False  # nothing there to swap: ours is imported before the tests, as by a user's module
    options: tuple[str, ...] = ()  # for pytest
    settings: dict[str, str] = field(default_factory=dict)  # environment variables
    path: str = ""  # a folder from which the tests import

    def __str__(self) -> str:
        return f"{self.project} {self.version}"

    @property
    def requirement(self) -> str:
        return f"{self.project}=={self.version}"


@dataclass(frozen=True)
class Stack:
    """What is installed together, and the suites that run on it."""

    suites: tuple[Suite, ...]
    requirements: tuple[str, ...]


STACKS = {
    "new": Stack(
        suites=(
            Suite("starlette", "1.10.0", imports=5, passes=1400, everything=True),
            Suite("fastapi", "0.165.0", imports=11, passes=570, also=("tests/test_telemetry",)),
            Suite("opentelemetry-instrumentation-fastapi", "0.66b1", imports=2, passes=100, everything=True),
        ),
        requirements=(
            "starlette[full]==1.10.0",
            "fastapi==0.165.0",
            "httpx2[zstd]>=2.0",
            "httpx>=0.27",
            "anyio[trio]>=4.10",
            "pytest>=9.1,<10",
            "pytest-timeout>=2.4",
            "pytest-xdist>=3.0.2",
            "pytest-codspeed>=4.3",
            "blockbuster>=1.5.23",
            "dirty-equals>=0.9",
            "inline-snapshot>=0.21",
            "importlib-metadata>=9",
            "opentelemetry-sdk>=1.44",
            "opentelemetry-exporter-otlp-proto-http>=1.44",
            "opentelemetry-instrumentation-fastapi==0.66b1",
            "opentelemetry-test-utils==0.66b1",
            "logfire>=5.1",
            "sentry-sdk>=2.70",
        ),
    ),
    "agents": Stack(
        suites=(
            Suite(
                "newrelic",
                "14.1.0",
                imports=2,
                passes=27,
                also=("tests/framework_starlette",),
                settings={"NEW_RELIC_DEVELOPER_MODE": "true"},
                path="tests",
            ),
            Suite(
                "logfire-sdk",
                "5.4.0",
                imports=1,
                passes=39,
                also=(
                    "tests/otel_integrations/test_fastapi.py",
                    "tests/otel_integrations/test_fastapi_global.py",
                    "tests/otel_integrations/test_starlette.py",
                ),
            ),
            Suite(
                "sentry-sdk",
                "2.75.0",
                imports=0,
                passes=211,
                also=("tests/integrations/fastapi", "tests/integrations/starlette"),
                early=True,
                options=("-o", "addopts="),
            ),
        ),
        requirements=(
            "starlette[full]==1.10.0",
            "fastapi==0.165.0",
            "newrelic==14.1.0",
            "logfire[fastapi,starlette]==5.4.0",
            "logfire-sdk==5.4.0",
            "sentry-sdk==2.75.0",
            "httpx2[zstd]>=2.0",
            "httpx>=0.27",
            "anyio>=4.10",
            "pytest>=9.1,<10",
            "pytest-asyncio>=1.4",
            "webtest>=3.0.7",
            "dirty-equals>=0.9",
            "inline-snapshot>=0.21",
            "werkzeug",
            "jsonschema",
        ),
    ),
    "0.128": Stack(
        suites=(
            Suite("starlette", "0.50.0", imports=5, passes=930, everything=True),
            Suite("fastapi", "0.128.2", imports=7, passes=34),
            Suite("opentelemetry-instrumentation-fastapi", "0.66b1", imports=2, passes=100, everything=True),
        ),
        requirements=(
            "opentelemetry-instrumentation-fastapi==0.66b1",
            "opentelemetry-test-utils==0.66b1",
            "starlette[full]==0.50.0",
            "fastapi==0.128.2",
            "httpx>=0.27,<1",
            "anyio[trio]>=4.9,<4.12",
            "pytest>=8,<9",
            "dirty-equals>=0.9",
            "inline-snapshot>=0.21",
        ),
    ),
    "0.118": Stack(
        suites=(
            Suite("starlette", "0.48.0", imports=5, passes=910, everything=True),
            Suite("fastapi", "0.118.0", imports=7, passes=28),
        ),
        requirements=(
            "starlette[full]==0.48.0",
            "fastapi==0.118.0",
            "httpx>=0.27,<1",
            "anyio[trio]>=4.9,<4.12",
            "pytest>=8,<9",
            "dirty-equals>=0.9",
            "inline-snapshot>=0.21",
        ),
    ),
    "0.110": Stack(
        suites=(
            Suite("starlette", "0.36.3", imports=5, passes=770, everything=True),
            Suite("fastapi", "0.110.0", imports=7, passes=28),
        ),
        requirements=(
            "starlette[full]==0.36.3",
            "fastapi==0.110.0",
            "httpx>=0.24,<0.27",
            "anyio[trio]>=4,<4.4",
            "python-multipart<0.0.12",
            "pytest>=7.1.3,<8",
            "dirty-equals>=0.6",
        ),
    ),
    "0.103": Stack(
        suites=(Suite("fastapi", "0.103.2", imports=7, passes=28),),
        requirements=(
            "starlette[full]==0.27.0",
            "fastapi==0.103.2",
            "httpx>=0.24,<0.27",
            "anyio==3.7.1",
            "trio>=0.22,<0.23",
            "python-multipart<0.0.7",
            "pytest>=7.1.3,<8",
            "dirty-equals>=0.6",
        ),
    ),
    "0.96": Stack(
        suites=(Suite("fastapi", "0.96.0", imports=7, passes=28),),
        requirements=(
            "starlette[full]==0.27.0",
            "fastapi==0.96.0",
            "pydantic<2",
            "httpx>=0.24,<0.27",
            "anyio==3.5.0",
            "trio>=0.19,<0.22",
            "python-multipart<0.0.7",
            "pytest>=7.1.3,<8",
            "dirty-equals>=0.6",
        ),
    ),
}


# -- the sources ------------------------------------------------------------------------------------------


def download(suite: Suite, python: Path, folder: Path) -> Path:
    """Fetch a source distribution with pip and unpack it."""
    options = ["--quiet", "--no-deps", "--no-binary", suite.project, "--dest", str(folder)]
    run([python, "-m", "pip", "download", *options, suite.requirement])
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(folder, filter="data")
        else:
            tar.extractall(folder)
    source = folder / archive.name.removesuffix(".tar.gz")
    if not (source / "tests").is_dir():
        raise SystemExit(f"the source distribution of {suite} carries no tests")
    return source


def copy_tests(source: Path, target: Path) -> None:
    """The tests, what they import, and their settings for pytest; the package itself is the installed one."""
    target.mkdir(parents=True)
    for name in ("tests", "docs_src"):
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name)
    settings = ""
    for name in ("pyproject.toml", "setup.cfg", "pytest.ini", "tox.ini"):
        if (source / name).is_file():
            shutil.copy(source / name, target / name)
            settings += (source / name).read_text("utf-8")
    if not re.search(r"^\[(tool[.:])?pytest\b", settings, re.MULTILINE):
        (target / "pytest.ini").write_text("[pytest]\n", "utf-8")  # else pytest takes those of a folder above


def swap_imports(folder: Path) -> dict[Path, int]:
    """Let every file import our classes, and return how many imports were swapped in which file."""
    swapped = {}
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text("utf-8")
        if not any(name in text for name in SWAPPED_NAMES):
            continue
        new, count = swapped_text(text)
        if count:
            path.write_text(new, "utf-8")
            swapped[path.relative_to(folder)] = count
    return swapped


def swapped_text(text: str) -> tuple[str, int]:
    """Split `from fastapi import BackgroundTasks, X` in two, whatever its layout; nothing else changes."""
    lines = text.splitlines(keepends=True)
    found = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom)
        and node.module in SWAPPED_MODULES
        and any(name.name in SWAPPED_NAMES for name in node.names)
    ]
    for node in sorted(found, key=lambda node: node.lineno, reverse=True):
        ours = [name for name in node.names if name.name in SWAPPED_NAMES]
        theirs = [name for name in node.names if name.name not in SWAPPED_NAMES]
        statements = [ast.ImportFrom("fifo_background", ours, 0)]
        if theirs:
            statements.insert(0, ast.ImportFrom(node.module, theirs, 0))
        assert node.end_lineno is not None
        first = lines[node.lineno - 1]
        indent = first[: len(first) - len(first.lstrip())]
        lines[node.lineno - 1 : node.end_lineno] = [f"{indent}{ast.unparse(line)}\n" for line in statements]
    return "".join(lines), len(found)


def chosen_tests(suite: Suite, folder: Path, swapped: dict[Path, int]) -> list[str]:
    """The files to run: see `Suite.everything`."""
    if suite.everything:
        return ["tests"]
    packages = {".".join(path.parent.parts) for path in swapped if path.parts[0] != "tests"}
    chosen = [path.as_posix() for path in swapped if path.parts[0] == "tests"]
    for path in sorted((folder / "tests").rglob("test_*.py")):
        text = path.read_text("utf-8")
        if any(f"{package}." in text or f"{package} " in text for package in packages):
            chosen.append(path.relative_to(folder).as_posix())
    chosen = [path for path in chosen if not path.startswith(suite.also)] if suite.also else chosen
    return sorted({*chosen, *suite.also})


# -- running ----------------------------------------------------------------------------------------------


def run(command: Sequence[str | Path]) -> None:
    """Run a command that must succeed."""
    if subprocess.run([str(part) for part in command]).returncode:
        raise SystemExit(f"failed: {' '.join(map(str, command))}")


def make_environment(folder: Path, base: str, stack: Stack, package: str) -> Path:
    """A virtual environment with the stack and ours in it; returns its Python."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        run([base, "-m", "venv", folder])
    quiet = ["--quiet", "--disable-pip-version-check"]
    run([python, "-m", "pip", "install", *quiet, *stack.requirements])
    # ours is always the one that stands here now; its dependencies are installed already
    run([python, "-m", "pip", "install", *quiet, "--force-reinstall", "--no-deps", package])
    return python


def run_pytest(
    suite: Suite,
    python: Path,
    folder: Path,
    tests: list[str],
    *,
    swapped: bool = False,
    middleware: bool = False,
    options: list[str],
) -> dict[str, str]:
    """Run tests of a folder; returns the outcome of each by its id."""
    report = folder / "outcomes.json"
    report.unlink(missing_ok=True)
    plugins = folder / "plugins"
    plugins.mkdir(exist_ok=True)
    # alone in its folder: nothing of ours but the installed package may be importable
    shutil.copy(ROOT / "scripts" / "upstream_plugin.py", plugins)
    settings = {
        **suite.settings,
        "UPSTREAM_OUTCOMES": str(report),
        "UPSTREAM_IMPORT": "1" if swapped and suite.early else "",
        "UPSTREAM_MIDDLEWARE": "1" if middleware else "",
        "PYTHONPATH": os.pathsep.join([str(plugins), *([str(folder / suite.path)] if suite.path else [])]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    environment = {**os.environ, **settings}
    command = [
        python,
        "-m",
        "pytest",
        "-q",
        "-p",
        "upstream_plugin",
        "-p",
        "no:cacheprovider",
        *suite.options,
    ]
    subprocess.run(list(map(str, [*command, *options, *tests])), cwd=folder, env=environment)
    if not report.exists():
        return {"pytest itself": "failed"}
    outcomes: dict[str, str] = json.loads(report.read_text("utf-8"))
    return outcomes


def run_suite(suite: Suite, python: Path, work: Path, arguments: argparse.Namespace) -> bool:
    """Run one suite, print its totals, and say whether it holds."""
    print(f"\n=== {suite}: download", flush=True)
    downloads = work / f"{suite.project}-download"
    downloads.mkdir()
    source = download(suite, python, downloads)
    unchanged, changed = work / f"{suite.project}-unchanged", work / f"{suite.project}-swapped"
    copy_tests(source, unchanged)
    copy_tests(source, changed)
    swapped = swap_imports(changed)
    tests = chosen_tests(suite, changed, swapped)
    count = sum(swapped.values())
    print(f"=== {suite}: {count} imports swapped in {len(swapped)} files")
    for path in swapped:
        print(f"      {path}")
    if count < suite.imports:
        raise SystemExit(f"expected at least {suite.imports}: has {suite} moved them?")

    print(f"=== {suite}: pytest {' '.join(tests)}", flush=True)
    folder = unchanged if arguments.unchanged else changed
    options = arguments.pytest
    outcomes = run_pytest(
        suite,
        python,
        folder,
        tests,
        swapped=not arguments.unchanged,
        middleware=arguments.with_middleware,
        options=options,
    )
    failed = failures(outcomes)
    theirs: set[str] = set()
    if failed and not arguments.unchanged:
        print(f"=== {suite}: the failed ones again, as upstream wrote them", flush=True)
        again = run_pytest(
            suite,
            python,
            unchanged,
            failed,
            options=["--tb=no", "--continue-on-collection-errors", *options],
        )
        theirs = set(failures(again))
    demands = {} if arguments.unchanged else CONTRARY
    if arguments.with_middleware:
        demands = {**demands, **CONTRARY_WITH_MIDDLEWARE}
    least = 0 if options else suite.passes
    return judge(suite, outcomes, theirs, demands, least)


def failures(outcomes: dict[str, str]) -> list[str]:
    return [test for test, outcome in outcomes.items() if outcome in ("failed", "error")]


def judge(
    suite: Suite, outcomes: dict[str, str], theirs: set[str], demands: dict[str, str], least: int
) -> bool:
    """Print the totals and every test that is not as it should be; True if there is none of the latter.

    `theirs` fail unchanged as well; what matches `demands` must fail; at least `least` must pass.
    """
    totals = Counter(outcomes.values())
    print(f"=== {suite}: {', '.join(f'{number} {outcome}' for outcome, number in sorted(totals.items()))}")
    failed = failures(outcomes)
    wrong = [f"only {totals['passed']} passed, expected at least {least}"] if totals["passed"] < least else []
    for test in outcomes:
        reason = next((demands[pattern] for pattern in demands if re.search(pattern, test)), None)
        if test in theirs:
            print(f"      fails unchanged too: {test}")
        elif reason is not None and test in failed:
            print(f"      has to fail, it {reason}: {test}")
        elif reason is not None:
            wrong.append(f"it passed, and {reason}: {test}")
        elif test in failed:
            wrong.append(test)
    for what in wrong:
        print(f"      FAILED: {what}")
    return not wrong


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--stack", choices=STACKS, default="new")
    add("--python", default=sys.executable, help="the interpreter to make the environment with")
    add("--env", type=Path, help="a virtual environment to make or reuse (default: temporary)")
    add("--package", default=str(ROOT), help="what to install as fifo-background (default: this source)")
    add("--project", action="append", help="only this suite of the stack")
    add("--unchanged", action="store_true", help="do not swap the import")
    add("--with-middleware", action="store_true", help="put our middleware into every app")
    add("--keep", type=Path, help="a new folder to work in and to leave (default: temporary)")
    add("pytest", nargs="*", help="options for pytest, after `--`")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    stack = STACKS[arguments.stack]
    with tempfile.TemporaryDirectory(prefix="upstream-", ignore_cleanup_errors=True) as temporary:
        work = (arguments.keep or Path(temporary) / "work").resolve()
        work.mkdir(parents=True)
        environment = (arguments.env or Path(temporary) / "env").resolve()
        python = make_environment(environment, arguments.python, stack, arguments.package)
        holds = [
            run_suite(suite, python, work, arguments)
            for suite in stack.suites
            if not arguments.project or suite.project in arguments.project
        ]
    return 0 if all(holds) else 1


if __name__ == "__main__":
    sys.exit(main())
