"""How many seconds each step of a real server's end takes. The table is in `docs/production.md`.

    python benchmarks/shutdown.py [WORD ...]

With words, it measures only the cases whose titles have one of them. It needs Linux, and uvicorn, gunicorn
with uvicorn-worker, hypercorn and granian. The app is `tests/servers/end_app.py`: one task that never ends,
and a task behind it. The seconds begin with the signal.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

ROOT = Path(__file__).parent.parent
DRAIN = 3  # drain_timeout
SERVER = 2  # the server's own limit for requests
PATIENCE = 12.0  # seconds until the case is over, and everything is killed

UVICORN = "uvicorn end_app:app --lifespan on --port {port}"
GUNICORN = "gunicorn end_app:app -b 127.0.0.1:{port}"
OWN_WORKER = "-k worker.Worker"
PLAIN_WORKER = "-k uvicorn_worker.UvicornWorker"
HYPERCORN = "hypercorn end_app:app -b 127.0.0.1:{port}"
GRANIAN = "granian end_app:app --interface asgi --port {port}"
WORKER = (ROOT / "examples" / "gunicorn_worker.py").read_text(encoding="utf-8")


class Case(NamedTuple):
    title: str
    command: str
    wait: bool = True
    task: str = "async_gate"
    group: bool = False  # whether the signal goes to all processes, as systemd sends it
    signal: signal.Signals = signal.SIGTERM


CASES = [
    Case("uvicorn, attached", f"{UVICORN} --timeout-graceful-shutdown {SERVER}"),
    Case("uvicorn, attached, no server limit", UVICORN),
    Case("uvicorn, detached", UVICORN, wait=False),
    Case("uvicorn, thread", f"{UVICORN} --timeout-graceful-shutdown {SERVER}", task="sync_gate"),
    Case("uvicorn, 2 workers, attached", f"{UVICORN} --workers 2 --timeout-graceful-shutdown {SERVER}"),
    Case(
        "uvicorn, 2 workers, group", f"{UVICORN} --workers 2 --timeout-graceful-shutdown {SERVER}", group=True
    ),
    Case("uvicorn, SIGKILL", UVICORN, signal=signal.SIGKILL),
    Case("gunicorn, attached", f"{GUNICORN} {OWN_WORKER} --graceful-timeout 8"),
    Case("gunicorn, attached, plain worker", f"{GUNICORN} {PLAIN_WORKER} --graceful-timeout 8"),
    Case("gunicorn, detached", f"{GUNICORN} {OWN_WORKER} --graceful-timeout 8", wait=False),
    Case("gunicorn, too short", f"{GUNICORN} {OWN_WORKER} --graceful-timeout 4"),
    Case("gunicorn, thread", f"{GUNICORN} {OWN_WORKER} --graceful-timeout 8", task="sync_gate"),
    Case("gunicorn, group", f"{GUNICORN} {OWN_WORKER} --graceful-timeout 8", group=True),
    Case("hypercorn, attached", f"{HYPERCORN} --graceful-timeout {SERVER}"),
    Case("hypercorn, attached, default limit", HYPERCORN),
    Case("hypercorn, detached", f"{HYPERCORN} --graceful-timeout {SERVER}", wait=False),
    Case("hypercorn, too short", f"{HYPERCORN} --graceful-timeout {SERVER} -c file:config.py", wait=False),
    Case("hypercorn, trio, attached", f"{HYPERCORN} -k trio --graceful-timeout {SERVER}"),
    Case("hypercorn, thread", f"{HYPERCORN} --graceful-timeout {SERVER}", task="sync_gate"),
    Case("hypercorn, group", f"{HYPERCORN} --graceful-timeout {SERVER}", group=True),
    Case("hypercorn, no worker, group", f"{HYPERCORN} --workers 0 --graceful-timeout {SERVER}", group=True),
    Case("granian, attached", f"{GRANIAN} --workers-kill-timeout 8"),
    Case("granian, attached, default limit", GRANIAN),
    Case("granian, detached", f"{GRANIAN} --workers-kill-timeout 8", wait=False),
    Case("granian, too short", f"{GRANIAN} --workers-kill-timeout 2", wait=False),
    Case("granian, thread", f"{GRANIAN} --workers-kill-timeout 8", task="sync_gate"),
    Case("granian, group", f"{GRANIAN} --workers-kill-timeout 8", group=True),
]

STEPS = {
    "shutdown": re.compile(r"^@ lifespan\.shutdown"),
    "cancelled": re.compile(r"^@ cancelled "),
    "named": re.compile(r"^LOG .*: dropped "),
    "own code": re.compile(r"^@ own shutdown code"),
}


def measure(case: Case, folder: Path) -> dict[str, str]:
    """The second of each step, "-" for what did not happen."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "worker.py").write_text(WORKER.replace("10", str(SERVER)))
    (folder / "config.py").write_text("shutdown_timeout = 2\n")
    path = os.pathsep.join([str(ROOT / "tests" / "servers"), str(ROOT), str(folder)])
    settings = json.dumps({"wait": case.wait, "drain_timeout": DRAIN})
    process = subprocess.Popen(
        [sys.executable, "-m", *case.command.format(port=port).split()],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "END_SETTINGS": settings, "END_GO": str(folder / "go")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    lines: list[tuple[float, str]] = []
    assert process.stdout is not None
    output = process.stdout
    reader = threading.Thread(target=lambda: lines.extend((time.monotonic(), line) for line in output))
    reader.start()
    seconds = dict.fromkeys((*STEPS, "exit"), "-")
    try:
        _post(port, {"task": [f"{case.task}_0", "sync_1"]})
        time.sleep(0.5)  # the first task starts
        begin = time.monotonic()
        if case.group:
            os.killpg(process.pid, case.signal)
        else:
            process.send_signal(case.signal)
        try:
            process.wait(PATIENCE)
            seconds["exit"] = f"{time.monotonic() - begin:.1f}"
        except subprocess.TimeoutExpired:
            seconds["exit"] = f"> {PATIENCE:g}"
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        reader.join()
    for moment, line in lines:
        for step, said in STEPS.items():
            if said.match(line):  # of two workers, the later one
                seconds[step] = f"{moment - begin:.1f}"
    if "-v" in sys.argv:
        print(*(f"    {moment - begin:5.1f} {line.rstrip()}" for moment, line in lines), sep="\n")
    return seconds


def _post(port: int, query: dict[str, list[str]]) -> None:
    """Post once, as soon as the server listens."""
    path = f"/add?{urlencode(query, doseq=True)}"
    give_up = time.monotonic() + PATIENCE
    while True:
        connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            connection.request("POST", path, headers={"Connection": "close"})
            assert connection.getresponse().status == 200
            return
        except ConnectionRefusedError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.1)
        finally:
            connection.close()


def main() -> None:
    words = [word for word in sys.argv[1:] if word != "-v"]
    print("| case | lifespan.shutdown | task cancelled | rest named | own shutdown code | process ended |")
    print("| --- | --- | --- | --- | --- | --- |")
    for case in CASES:
        if not words or any(word in case.title for word in words):
            with tempfile.TemporaryDirectory() as folder:
                seconds = measure(case, Path(folder))
            print(f"| {case.title} | {' | '.join(seconds.values())} |", flush=True)


if __name__ == "__main__":
    main()
