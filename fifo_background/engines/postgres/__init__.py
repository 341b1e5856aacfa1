"""`PostgresEngine`: the same order in several processes and on several hosts."""

try:
    import procrastinate  # noqa: F401
    import psycopg  # noqa: F401
except ModuleNotFoundError as _error:
    raise ModuleNotFoundError(
        f"{_error}: run `pip install 'fifo-background[postgres]' 'psycopg[binary]'`", name=_error.name
    ) from None

from fifo_background._settings import Retry
from fifo_background.engines.postgres._engine import PostgresEngine
from fifo_background.engines.postgres._errors import SchemaError, StoreError, TaskFailed, UnreachableError
from fifo_background.engines.postgres._executor import StoredExecutor, StoredLane
from fifo_background.engines.postgres._jobs import StoredJob

__all__ = (
    "PostgresEngine",
    "Retry",
    "SchemaError",
    "StoreError",
    "StoredExecutor",
    "StoredJob",
    "StoredLane",
    "TaskFailed",
    "UnreachableError",
)
