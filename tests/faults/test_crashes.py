"""A worker ends, freezes, is told to end, or hears nothing: its tasks go on elsewhere, in order."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, Postgres, Process, cluster, judge, wait_until
from faults_app import STEP
from proxy import Proxy

QUICK = {"lost_after": 2.4, "heartbeat": 0.4}


def workers(postgres: Postgres) -> int:
    if postgres.ask("SELECT to_regclass('fifo_background_workers') IS NULL"):
        return 0
    found: int = postgres.ask("SELECT count(*) FROM fifo_background_workers")
    return found


def wait_for_workers(postgres: Postgres, many: int) -> None:
    wait_until(lambda: workers(postgres) >= many, 120)


def begin(one: Cluster, postgres: Postgres, **engine: Any) -> tuple[Process, Process]:
    """An app that runs nothing, and a worker that is up."""
    app = one.app(worker=False, **engine)
    worker = one.worker(**engine)
    wait_for_workers(postgres, 1)
    return app, worker


def assert_in_order(one: Cluster, *names: str, runs: int | None = None) -> None:
    verdict = judge(one.lines(), [])
    assert verdict.wrong == []
    ended = [line.name for line in one.lines() if line.what == "end"]
    assert ended == [f"{name}.0" if "." not in name else name for name in names]
    if runs is not None:
        assert verdict.runs == runs


def test_a_killed_worker_frees_its_lane_within_ten_seconds(postgres: Postgres, tmp_path: Path) -> None:
    """Traps 3 and 19, with the default settings: the interrupted task is the first again."""
    with cluster(tmp_path, postgres.uri) as one:
        app, worker = begin(one, postgres)
        app.post("/add/a/n1?kinds=waits&seconds=-60")
        app.post("/add/a/n2?kinds=sleeps")
        one.wait_for("start", "n1.0")
        one.worker()
        wait_for_workers(postgres, 2)
        worker.end(signal.SIGKILL)
        killed = time.monotonic()
        one.wait_for("end", "n2.0")
        again = [line for line in one.lines() if line.what == "start" and line.name == "n1.0"][-1]
        assert 0 < again.at - killed < 10
        assert_in_order(one, "n1", "n2", runs=3)


def test_a_frozen_worker_runs_nothing_when_it_wakes(postgres: Postgres, tmp_path: Path) -> None:
    """Traps 4 and 14: a process that is stopped cannot look at its lease, so the kernel ends it."""
    with cluster(tmp_path, postgres.uri, QUICK) as one:
        app, worker = begin(one, postgres)
        for lane, kind in (("a", "waits"), ("b", "sleeps")):
            app.post(f"/add/{lane}/{kind}?kinds={kind}&seconds=-60")
            app.post(f"/add/{lane}/{kind}-2?kinds={kind}")
        one.wait_for("start", "waits.0")
        one.wait_for("start", "sleeps.0")
        one.worker()
        wait_for_workers(postgres, 2)
        worker.send(signal.SIGSTOP)
        one.wait_for("end", "waits-2.0")
        one.wait_for("end", "sleeps-2.0")
        worker.send(signal.SIGCONT)
        assert worker.popen.wait(10) == -signal.SIGKILL
        time.sleep(3 * STEP)  # in which it would have written
        verdict = judge(one.lines(), [])
        assert verdict.wrong == []
        assert verdict.interrupted == 2


def test_a_worker_that_was_frozen_with_nothing_in_hand_goes_on(postgres: Postgres, tmp_path: Path) -> None:
    """Trap 13: its row is gone meanwhile, so it has to notice, and to register again."""
    with cluster(tmp_path, postgres.uri, QUICK) as one:
        app, worker = begin(one, postgres)
        one.worker()
        wait_for_workers(postgres, 2)
        worker.send(signal.SIGSTOP)
        wait_until(lambda: workers(postgres) == 1, 20)
        worker.send(signal.SIGCONT)
        wait_until(lambda: workers(postgres) == 2, 20)
        assert worker.runs
        app.post("/add/a/n1?kinds=waits")
        one.wait_for("end", "n1.0")


def test_a_worker_whose_row_is_deleted_registers_again(postgres: Postgres, tmp_path: Path) -> None:
    """Trap 13, with a task in hand: it stops here before it runs again."""
    with cluster(tmp_path, postgres.uri, QUICK) as one:
        app, worker = begin(one, postgres)
        app.post("/add/a/n1?kinds=waits&seconds=2")
        one.wait_for("start", "n1.0")
        postgres.ask("WITH gone AS (DELETE FROM procrastinate_workers RETURNING 1) SELECT count(*) FROM gone")
        one.wait_for("end", "n1.0")
        assert worker.runs
        assert_in_order(one, "n1", runs=2)


@pytest.mark.parametrize("watchdog", ["yes", "no"])
def test_sigterm_during_a_def_task_overlaps_nothing(
    postgres: Postgres, tmp_path: Path, watchdog: str
) -> None:
    """Trap 5: its thread cannot be ended, so the process is ended, or waits for it."""
    with cluster(tmp_path, postgres.uri, QUICK, {"drain_timeout": 0.3}) as one:
        one.environment["FAULTS_WATCHDOG"] = watchdog
        app, worker = begin(one, postgres)
        app.post(f"/add/a/n1?kinds=sleeps&seconds={-60 if watchdog == 'yes' else 8}")
        app.post("/add/a/n2?kinds=waits")
        one.wait_for("start", "n1.0")
        worker.send(signal.SIGTERM)
        one.worker()
        assert worker.popen.wait(30) == (-signal.SIGKILL if watchdog == "yes" else 0)
        one.wait_for("end", "n2.0")
        assert_in_order(one, "n1", "n2", runs=3 if watchdog == "yes" else 2)


def test_a_def_task_that_ends_while_its_worker_stops_does_not_run_again(
    postgres: Postgres, tmp_path: Path
) -> None:
    with cluster(tmp_path, postgres.uri, {}, {"drain_timeout": 0.1}) as one:
        app, worker = begin(one, postgres)
        app.post("/add/a/n1?kinds=sleeps&seconds=1.8")
        one.wait_for("start", "n1.0")
        assert worker.end() == 0
        assert_in_order(one, "n1", runs=1)
        assert postgres.ask("SELECT state FROM fifo_background_tasks") == "succeeded"


def test_sigterm_during_an_async_task_puts_it_back_at_the_head(postgres: Postgres, tmp_path: Path) -> None:
    """Trap 5: the end of its time must not abort the job."""
    with cluster(tmp_path, postgres.uri, {}, {"drain_timeout": 0.2}) as one:
        app, worker = begin(one, postgres)
        app.post("/add/a/n1?kinds=waits&seconds=-60")
        app.post("/add/a/n2?kinds=waits")
        one.wait_for("start", "n1.0")
        one.worker()
        wait_for_workers(postgres, 2)
        assert worker.end() == 0
        one.wait_for("end", "n2.0")
        assert_in_order(one, "n1", "n2", runs=3)
        assert postgres.ask("SELECT max(crashes) FROM fifo_background_tasks") == 0


def test_a_task_that_ends_its_worker_five_times_has_failed(postgres: Postgres, tmp_path: Path) -> None:
    """Trap 3: else it would end all workers, for ever."""
    with cluster(tmp_path, postgres.uri, QUICK) as one:
        app, _ = begin(one, postgres)
        for _ in range(5):
            one.worker()
        wait_for_workers(postgres, 6)
        (id,) = app.post("/add/a/n1?kinds=kills")["ids"]
        app.post("/add/a/n2?kinds=waits")
        one.wait_for("end", "n2.0", seconds=60)
        assert [line.what for line in one.lines() if line.name == "n1.0"] == ["start"] * 5
        found = "SELECT state || error_type || crashes FROM fifo_background_tasks WHERE id = %s"
        assert postgres.ask(found, id) == "failedWorkerLost5"


def test_four_processes_of_uvicorn_share_the_work(postgres: Postgres, tmp_path: Path) -> None:
    with cluster(tmp_path, postgres.uri, {"concurrency": 2}) as one:
        app = one.app(workers=4)
        wait_for_workers(postgres, 4)
        for number in range(60):
            app.post(f"/add/l{number % 20}/n{number}?kinds={('waits', 'sleeps')[number % 2]}&seconds=0.2")
        wait_until(lambda: sum(line.what == "end" for line in one.lines()) == 60, 60)
        verdict = judge(one.lines(), [])
        assert verdict.wrong == []
        assert verdict.runs == 60
        assert len({line.pid for line in one.lines()}) == 4


def test_a_blocked_event_loop_does_not_lose_its_worker(postgres: Postgres, tmp_path: Path) -> None:
    """Heartbeats come from a thread."""
    with cluster(tmp_path, postgres.uri, QUICK) as one:
        app, worker = begin(one, postgres)
        one.worker()
        wait_for_workers(postgres, 2)
        app.post("/add/a/n1?kinds=blocks&seconds=6")
        app.post("/add/a/n2?kinds=waits")
        one.wait_for("end", "n2.0")
        assert_in_order(one, "n1", "n2", runs=2)
        assert "lost" not in worker.said()


def test_a_task_that_lets_no_thread_run_ends_its_worker(postgres: Postgres, tmp_path: Path) -> None:
    """It holds the GIL, so no heartbeat is sent: the watchdog ends the process before others begin it."""
    with cluster(tmp_path, postgres.uri, {**QUICK, "most_crashes": 2}) as one:
        app, _ = begin(one, postgres)
        one.worker()
        one.worker()
        wait_for_workers(postgres, 3)
        app.post("/add/a/n1?kinds=holds_gil&seconds=30")
        app.post("/add/a/n2?kinds=waits")
        one.wait_for("end", "n2.0")
        assert [line.what for line in one.lines()] == ["start"] * 3 + ["end"]


def test_a_lost_answer_to_a_fetch_costs_seconds(postgres: Postgres, tmp_path: Path) -> None:
    """The database believes that the worker has the job, while its heartbeats go on."""
    with Proxy(postgres.socket) as proxy, cluster(tmp_path, proxy.dsn()) as one:
        app, _ = begin(one, postgres)
        app.post("/add/other/busy?kinds=waits&seconds=20")  # its worker has something else in hand
        one.wait_for("start", "busy.0")
        proxy.eats = b'"lock"'
        app.post("/add/a/n1?kinds=waits")
        one.wait_for("end", "n1.0", seconds=9)
        assert proxy.eats is None
        assert [line.what for line in one.lines() if line.name == "n1.0"] == ["start", "end"]


@pytest.mark.parametrize("answer", [b'"next"', b'"fetched": {"job"'])
def test_a_lost_answer_to_an_end_loses_and_doubles_nothing(
    postgres: Postgres, tmp_path: Path, answer: bytes
) -> None:
    """It may be told twice: the next task of the job, and the next job, both wait for this worker then."""
    with Proxy(postgres.socket) as proxy, cluster(tmp_path, proxy.dsn()) as one:
        app, _ = begin(one, postgres)
        app.post("/add/a/n1?kinds=waits,sleeps,waits&seconds=0.5")
        app.post("/add/a/n2?kinds=sleeps")
        app.post("/add/a/n3?kinds=waits")
        one.wait_for("start", "n1.0")
        proxy.eats = answer
        one.wait_for("end", "n3.0", seconds=15)
        assert proxy.eats is None
        assert_in_order(one, "n1.0", "n1.1", "n1.2", "n2", "n3", runs=5)


def test_a_retry_is_not_forgotten_with_the_worker_that_knew_of_it(postgres: Postgres, tmp_path: Path) -> None:
    """Trap 18: when a retry is due is nothing that a notification tells at that time."""
    with cluster(tmp_path, postgres.uri, QUICK) as one:
        app, _ = begin(one, postgres)
        one.worker()
        wait_for_workers(postgres, 2)
        app.post("/retry/a/n1?kinds=fails&wait=3")
        one.wait_for("fail", "n1.0")
        wait_until(lambda: postgres.ask("SELECT scheduled_at IS NOT NULL FROM procrastinate_jobs"), 10)
        (line,) = [line for line in one.lines() if line.what == "fail"]
        (worker,) = [process for process in one.processes if process.pid == line.pid]
        worker.end(signal.SIGKILL)
        app.post("/add/a/n2?kinds=waits")
        one.wait_for("end", "n2.0")
        assert [line.what for line in one.lines()] == ["start", "fail"] * 3 + ["start", "end"]


def test_a_full_worker_tells_others_of_lanes_that_it_leaves(postgres: Postgres, tmp_path: Path) -> None:
    """Trap 1: a lane that is free wakes nobody by itself."""
    with cluster(tmp_path, postgres.uri, {"concurrency": 1}) as one:
        one.environment["FAULTS_UNASKED"] = "1000"
        app, worker = begin(one, postgres)
        app.post("/add/a/n1?kinds=waits&seconds=2")
        one.wait_for("start", "n1.0")
        worker.send(
            signal.SIGSTOP
        )  # it ends n1 when the others are there; then the oldest is of another lane
        app.post("/add/b/long?kinds=waits&seconds=30")
        app.post("/add/a/n2?kinds=waits")
        worker.send(signal.SIGCONT)
        one.wait_for("start", "long.0")
        one.worker()
        one.wait_for("end", "n2.0")
        assert not one.has("end", "long.0")


def test_ended_jobs_are_nothing_that_a_lost_worker_leaves_behind(postgres: Postgres, tmp_path: Path) -> None:
    """Where a worker's row is deleted, PostgreSQL changes all jobs that name it: only those in hand do."""
    with cluster(tmp_path, postgres.uri) as one:
        app, _ = begin(one, postgres)
        app.post("/add/a/n1?kinds=waits,sleeps")
        app.post("/retry/a/n2?kinds=fails&wait=0")
        one.wait_for("fail", "n2.0", 3)
        wait_until(
            lambda: postgres.ask("SELECT count(*) FROM procrastinate_jobs WHERE status = 'failed'") == 1, 10
        )
        assert postgres.ask("SELECT count(*) FROM procrastinate_jobs WHERE worker_id IS NOT NULL") == 0
