"""What the SQL does where two processes meet, and what it costs when much waits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from cluster import Postgres
from psycopg.types.json import Jsonb

from fifo_background.engines.postgres._schema import migrate


@pytest.fixture
def db(postgres: Postgres) -> Iterator[Any]:
    """A connection to the tables."""
    import asyncio

    async def make() -> None:
        connection = await psycopg.AsyncConnection.connect(postgres.uri, autocommit=True)
        await migrate(connection)
        await connection.close()

    asyncio.run(make())
    with psycopg.connect(postgres.uri, autocommit=True) as connection:
        yield connection


def ask(db: Any, function: str, *values: Any) -> Any:
    marks = ", ".join(["%s"] * len(values))
    return db.execute(f"SELECT fifo_background_{function}({marks})", values).fetchone()[0]


def recover(db: Any, most_crashes: int) -> Any:
    """By somebody who has heard nothing new of any worker for a while."""
    query = (
        "SELECT jsonb_object_agg(id, jsonb_build_array(last_heartbeat::text, 0)) FROM procrastinate_workers"
    )
    unchanged = db.execute(query).fetchone()[0] or {}
    return ask(db, "recover", "q", most_crashes, Jsonb(unchanged))["recovered"]


def store(db: Any, *lanes: str, tasks: int = 1) -> None:
    for lane in lanes:
        rows = [
            {"id": f"{lane}-{place}", "place": place, "function": "m:f", "arguments": "[]", "options": {}}
            for place in range(tasks)
        ]
        ask(db, "store", "q", Jsonb([{"lock": f"q/{lane}", "lane": lane, "tasks": rows}]), None)


def register(db: Any) -> int:
    worker: int = ask(db, "register", "q", 6.0, "host", 1, 8)
    return worker


def end(db: Any, worker: int, fetched: Any, **end: Any) -> Any:
    told = {"id": fetched["tasks"][0]["id"], "state": "succeeded", **end}
    return ask(db, "end", "q", worker, fetched["job"], fetched["attempts"], Jsonb(told))


def test_a_retry_that_is_due_behind_a_paused_lane_is_not_looked_for_again_and_again(db: Any) -> None:
    worker = register(db)
    store(db, "a")
    end(db, worker, ask(db, "fetch", "q", worker), state="failed", retry_in=0)
    ask(db, "pause", "q", "q/a")
    assert ask(db, "fetch", "q", worker) == {"next_at": None}
    ask(db, "resume", "q", "q/a")
    assert "job" in ask(db, "fetch", "q", worker)


def test_a_cancelled_task_of_a_lost_worker_does_not_run_again(db: Any) -> None:
    worker = register(db)
    store(db, "a", tasks=2)
    ask(db, "fetch", "q", worker)
    ask(db, "cancel", "q", "a-0")
    db.execute("DELETE FROM procrastinate_workers")
    assert recover(db, 5) == 1
    assert db.execute("SELECT id, state FROM fifo_background_tasks ORDER BY place").fetchall() == [
        ("a-0", "cancelled"),
        ("a-1", "queued"),
    ]


@pytest.mark.parametrize("options", [{"rest": "run"}, {"after_failure": "stop"}, {}])
def test_a_task_that_has_lost_too_many_workers_fails_like_others(db: Any, options: dict[str, str]) -> None:
    """Its lane stops, and the rest of its request is skipped, or not, as its app wants it."""
    store(db, "a", tasks=2)
    db.execute("UPDATE fifo_background_tasks SET options = %s", (Jsonb(options),))
    for _ in range(2):
        ask(db, "fetch", "q", register(db))
        db.execute("DELETE FROM procrastinate_workers")
        recover(db, 2)
    states = [state for (state,) in db.execute("SELECT state FROM fifo_background_tasks ORDER BY place")]
    assert states == ["failed", "queued" if options.get("rest") else "skipped"]
    queue, status = db.execute("SELECT queue_name, status FROM procrastinate_jobs").fetchone()
    assert queue == ("q#stopped" if options.get("after_failure") else "q")
    assert status == ("todo" if options else "failed")


def test_an_interrupted_run_is_no_attempt(db: Any) -> None:
    """What deploys and crashes interrupt has all of its retries left."""
    store(db, "a")
    worker = register(db)
    fetched = ask(db, "fetch", "q", worker)
    assert ask(db, "give_back", "q", worker, fetched["job"], fetched["attempts"])
    assert not ask(db, "give_back", "q", worker, fetched["job"], fetched["attempts"])
    (task,) = ask(db, "fetch", "q", worker)["tasks"]
    assert task["attempts"] == 1


def test_a_worker_that_ends_a_job_while_it_is_swept_waits_for_the_sweep(db: Any, postgres: Postgres) -> None:
    """Jobs are locked before workers: in the other order the two would wait for each other."""
    worker = register(db)
    store(db, "a", "b")
    fetched = ask(db, "fetch", "q", worker)
    db.execute("UPDATE procrastinate_workers SET last_heartbeat = now() - interval '1 hour'")
    with psycopg.connect(postgres.uri) as ends, psycopg.connect(postgres.uri, autocommit=True) as sweeps:
        answer = end(ends, worker, fetched, fetch=True)  # its transaction is still open
        assert answer["fetched"]["lock"] == "q/b"
        sweeps.execute("SET lock_timeout = '300ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            recover(sweeps, 5)
        ends.commit()
        assert recover(sweeps, 5) == 1


def _cost(db: Any, query: str, *values: Any) -> int:
    """How many pages it looks at."""
    (plan,) = db.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query}", values).fetchone()
    found: int = plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"]
    return found


def test_what_workers_ask_all_the_time_looks_at_few_rows_of_many(db: Any) -> None:
    """Trap 6: 20,000 jobs wait, and more have ended, without ANALYZE."""
    worker = register(db)
    db.execute("ALTER TABLE procrastinate_jobs SET (autovacuum_enabled = false)")
    db.execute("ALTER TABLE fifo_background_tasks SET (autovacuum_enabled = false)")
    db.execute(MANY)
    ask(db, "number_ends", "q", True)
    costs = {
        "fetch": _cost(db, "SELECT fifo_background_fetch('q', %s)", worker),
        "recover": _cost(db, "SELECT fifo_background_recover('q', 5, '{}')"),
        "holds": _cost(db, "SELECT fifo_background_holds(%s, 1, 0)", worker),
        "task": _cost(db, "SELECT fifo_background_task('q', 'id-30000')"),
        "lane": _cost(db, "SELECT fifo_background_lane('q', '7')"),
        "prune": _cost(db, "SELECT fifo_background_prune('q', 3600, 1000)"),
        "store": _cost(
            db, "SELECT fifo_background_store('q', %s, NULL)",
            Jsonb([{"lock": "q/7", "lane": "7", "tasks": [
                {"id": "new", "place": 0, "function": "m:f", "arguments": "[]", "options": {}}
            ]}]),
        ),
        "lost": _cost(db, "DELETE FROM procrastinate_workers WHERE id = %s", worker),
    }  # fmt: skip
    print(costs)
    assert {name: cost for name, cost in costs.items() if cost > 2000} == {}


MANY = """
WITH jobs AS (
    INSERT INTO procrastinate_jobs (queue_name, task_name, priority, lock, status)
    SELECT 'q', 'fifo_background', 0, 'q/' || n % 50,
        (CASE WHEN n > 20000 THEN 'todo' ELSE 'succeeded' END)::procrastinate_job_status
    FROM generate_series(1, 40000) AS n
    RETURNING id, lock, status
)
INSERT INTO fifo_background_tasks
    (id, job_id, place, queue, lane, function, arguments, options, state, ended_at)
SELECT 'id-' || id, id, 0, 'q', substr(lock, 3), 'm:f', '[]', '{}',
    CASE WHEN status = 'todo' THEN 'queued' ELSE 'succeeded' END, CASE WHEN status <> 'todo' THEN now() END
FROM jobs
"""
