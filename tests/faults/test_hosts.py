"""Two hosts as two network namespaces: one of them is cut off, and the other one takes over."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cluster import Postgres, cluster, judge
from proxy import Proxy
from test_crashes import wait_for_workers


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def host(name: str, net: str) -> Iterator[str]:
    """A network namespace; the address at which it reaches this one."""
    space, inside, outside = f"fifo-{name}", f"fifo-{name}-i", f"fifo-{name}-o"
    ip("netns", "add", space)
    try:
        ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", space)
        ip("addr", "add", f"{net}.1/24", "dev", outside)
        ip("link", "set", outside, "up")
        ip("-n", space, "addr", "add", f"{net}.2/24", "dev", inside)
        ip("-n", space, "link", "set", inside, "up")
        ip("-n", space, "link", "set", "lo", "up")
        yield f"{net}.1"
    finally:
        subprocess.run(["ip", "netns", "del", space], check=False)


@pytest.fixture
def hosts() -> Iterator[dict[str, str]]:
    """The addresses of this host, as two others see it."""
    number = 100 + os.getpid() % 100
    try:
        with host("a", f"10.77.{number}") as first, host("b", f"10.78.{number}") as second:
            yield {"a": first, "b": second}
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces can be made here: {error}")


def test_a_host_that_is_cut_off_runs_nothing_that_another_one_has_taken_over(
    postgres: Postgres, hosts: dict[str, str], tmp_path: Path
) -> None:
    """Its worker cancels what it can before its lease ends; the watchdog ends what cannot be cancelled."""
    # a second for the cancelled tasks to end, on a busy machine, before the watchdog ends their process; and
    # three lanes each, so that neither takes all
    engine = {"lost_after": 6.0, "heartbeat": 0.5, "concurrency": 3}
    with Proxy(postgres.socket, "0.0.0.0") as proxy, cluster(tmp_path, postgres.uri, engine) as one:
        app = one.app(worker=False)
        workers = {}
        for name in ("a", "b"):
            one.dsn = proxy.dsn(hosts[name])
            workers[name] = one.worker(("ip", "netns", "exec", f"fifo-{name}"))
        wait_for_workers(postgres, 2)
        for number in range(6):
            app.post(f"/add/w{number}/w{number}?kinds=waits&seconds=10")
            app.post(f"/add/w{number}/w{number}-2?kinds=sleeps")
        for number in range(6):
            one.wait_for("start", f"w{number}.0")
        ip("link", "set", "fifo-a-o", "down")
        for number in range(6):
            one.wait_for("end", f"w{number}-2.0", seconds=60)
        assert workers["a"].runs  # its tasks could be cancelled
        ip("link", "set", "fifo-a-o", "up")
        wait_for_workers(postgres, 2)
        for number in range(6):
            app.post(f"/add/s{number}/s{number}?kinds=sleeps&seconds=10")
        for number in range(6):
            one.wait_for("start", f"s{number}.0")
        ip("link", "set", "fifo-a-o", "down")
        assert workers["a"].popen.wait(20) == -signal.SIGKILL
        for number in range(6):
            one.wait_for("end", f"s{number}.0", seconds=60)
        verdict = judge(one.lines(), [])
        assert verdict.wrong == []
        assert verdict.interrupted >= 2
