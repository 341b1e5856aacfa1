"""The command `fifo-background`: runs workers, and looks after the tables in PostgreSQL."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ("main",)

# What the extra `postgres` brings.
_NEEDED = {"procrastinate", "psycopg", "rich", "typer"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command, with `sys.argv` by default. It always ends by SystemExit."""
    try:
        from fifo_background.cli.commands import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _NEEDED:
            raise
        print(
            f"fifo-background: {error.name} is missing: run `pip install 'fifo-background[postgres]'`",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    app(args=arguments, prog_name="fifo-background")
