"""Breaks the package in one way after the other, and sees `tests/test_model.py` fail of each.

    python scripts/mutations.py [NAME ...]

Works on a copy. Exit code 1 if a mutation is not caught, 2 if the text that one replaces is gone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent

# name: (file, text, replacement)
MUTATIONS: dict[str, tuple[str, str, str]] = {
    "a lane may have two runners": (
        "_line.py",
        "        if lane.runner is None and not lane.in_turn:\n            lane.in_turn = True",
        "        if not lane.in_turn:\n            lane.in_turn = True",
    ),
    "last in, first out": (
        "_lane.py",
        "        else:\n            self.last.behind = place\n        self.last = place",
        "        else:\n            place.behind = self.first\n            self.first = place\n"
        "            return\n        self.last = place",
    ),
    "a place runs its tasks backwards": (
        "_line.py",
        "        place.release(jobs)\n        for job in jobs:\n",
        "        place.release(jobs)\n        for job in jobs[::-1]:\n",
    ),
    "the rest is not skipped": (
        "_line.py",
        "list(place.queued) if place.skip_rest else []",
        "[]",
    ),
    "run_all skips": ("_line.py", "list(place.queued) if place.skip_rest else []", "list(place.queued)"),
    "stop does not stop": (
        "_line.py",
        'job.options.after_failure == "stop" and',
        'job.options.after_failure == "never" and',
    ),
    "next stops": ("_line.py", 'job.options.after_failure == "stop" and', ""),
    "a slot is not given back": (
        "_line.py",
        "            else:\n                self.slots += 1\n        if lane.first",
        "        if lane.first",
    ),
    "slots are not counted": (
        "_line.py",
        "job)\n        self.slots -= 1\n",
        "job)\n",
    ),
    "a task starts at once before the head": (
        "_line.py",
        "            lane.first is not place\n            or ",
        "            ",
    ),
    "a task starts at once in a stopped lane": ("_line.py", "            or lane.failed is not None\n", ""),
    "a task starts at once without a slot": ("_line.py", "            or self.slots <= 0\n", ""),
    "a lane keeps its slot": (
        "_line.py",
        "            and not (self.turns or runner.stopped",
        "            and not (runner.stopped",
    ),
    "who has run goes first again": (
        "_line.py",
        "            self.turns.append(lane)\n\n    def next_runner",
        "            self.turns.appendleft(lane)\n\n    def next_runner",
    ),
    "a paused lane starts": (
        "_lane.py",
        "        return not self.paused and self.failed is None",
        "        return self.failed is None",
    ),
    "a stopped lane starts": (
        "_lane.py",
        "        return not self.paused and self.failed is None",
        "        return not self.paused",
    ),
    "resume forgets to look": (
        "_serial.py",
        "                lane.paused = False\n                line.wants_turn(lane)",
        "                lane.paused = False",
    ),
    "skip_head of a stopped lane forgets to look": (
        "_operations.py",
        "        lane.failed = None\n        line.wants_turn(lane)\n    elif",
        "        lane.failed = None\n    elif",
    ),
    "skip_head skips nothing": (
        "_operations.py",
        "        line.end_waiting(job, SKIPPED)\n    return job",
        "        pass\n    return job",
    ),
    "a retry goes to the tail": (
        "_operations.py",
        "    lane.put_first(place, line.clock())",
        "    lane.append(place, line.clock())",
    ),
    "clear forgets what is not ready": (
        "_operations.py",
        "    jobs = [job for place in lane.places for job in place.waiting]",
        "    jobs = [job for place in lane.places for job in place.queued]",
    ),
    "a cancelled task runs": (
        "_executor.py",
        "            line.end_waiting(job, CANCELLED)\n        self.settle_soon()\n",
        "        self.settle_soon()\n",
    ),
    "a cancelled task is counted as waiting": (
        "_line.py",
        "        self.waiting -= 1\n        if lane.latest is not None:\n"
        "            self._forget_latest(lane, job)\n        self._r",
        "        if lane.latest is not None:\n            self._forget_latest(lane, job)\n        self._r",
    ),
    "a running task is not cancelled": (
        "_executor.py",
        "            runner.handle.cancel()\n\n\ndef",
        "            pass\n\n\ndef",
    ),
    "nobody is superseded": (
        "_line.py",
        "        if other is not None:\n            self.end_waiting(other, SUPERSEDED)",
        "",
    ),
    "the newest is superseded": (
        "_line.py",
        "            self.end_waiting(other, SUPERSEDED)",
        "            self.end_waiting(job, SUPERSEDED)",
    ),
    "held heads are never lost": (
        "_line.py",
        "            lane.lose(place)\n            self.effects.append(Lost(place))",
        "            return None",
    ),
    "held heads are lost at once": (
        "_line.py",
        "            if now < end:",
        "            if now < end - 1e9:",
    ),
    "held heads are lost although nothing waits": (
        "_line.py",
        "            if not lane.queued:\n                return None\n",
        "",
    ),
    "nobody looks when hold is over": (
        "_executor.py",
        "                self.line.wants_turn(lane)\n            self.settle()",
        "                pass\n            self.settle()",
    ),
    "a held head is run past": (
        "_lane.py",
        "            if place.added or place.arriving:",
        "            if False:",
    ),
    "arrival holds nothing": (
        "_lane.py",
        "            if place.added or place.arriving:",
        "            if place.added:",
    ),
    "responded takes its place when tasks are added": (
        "_request.py",
        '            and self.settings.order != "responded"\n',
        "",
    ),
    "one too many may wait": (
        "_room.py",
        "(self.wanted or line.waiting >= self.limit)",
        "(self.wanted or line.waiting > self.limit)",
    ),
    "submit_nowait overtakes submit": (
        "_room.py",
        "            while self.wanted and line.waiting < limit:",
        "            while self.wanted and line.waiting < limit - 1:",
    ),
    "submits are let in last come, first served": (
        "_room.py",
        "                wanted = self.wanted.popleft()",
        "                wanted = self.wanted.pop()",
    ),
    "what a failed request added stays": (
        "_request.py",
        "        for job in dropped:\n            line.end_waiting(job, DROPPED)\n",
        "",
    ),
    "closing keeps held places": (
        "_operations.py",
        "            for job in unclaimed:\n                line.end_waiting(",
        "            for job in ():\n                line.end_waiting(",
    ),
    "closing does not cancel": (
        "_executor.py",
        "                runner.handle.cancel()\n                cancelled.append(runner)",
        "                cancelled.append(runner)",
    ),
    "an idle lane stays": ("_line.py", "            del self.lanes[lane.key]\n", "            pass\n"),
    "an end is not counted": (
        "_line.py",
        "        self.unfinished -= 1\n        batch",
        "        batch",
    ),
}


def caught(name: str) -> bool:
    file, text, replacement = MUTATIONS[name]
    with tempfile.TemporaryDirectory() as folder:
        for part in ("fifo_background", "tests", "pyproject.toml"):
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, Path(folder) / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, folder)
        broken = Path(folder) / "fifo_background" / file
        before = broken.read_text()
        if before.count(text) != 1:
            print(f"{name}: its text is there {before.count(text)} times")
            sys.exit(2)
        broken.write_text(before.replace(text, replacement))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "--show-capture=no", "tests/test_model.py"]
        command += ["-o", "faulthandler_timeout=40", "-o", "faulthandler_exit_on_timeout=true"]
        environment = {**os.environ, "PYTHONPATH": folder, "FIFO_NO_SHRINK": "1"}
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, timeout=120, check=False
            )
        except subprocess.TimeoutExpired:
            return True  # it hangs
        return done.returncode != 0


def main() -> None:
    listed = (ROOT / "docs" / "testing.md").read_text().splitlines()
    if [name for name in MUTATIONS if f"- {name}" not in listed]:
        print("docs/testing.md does not list all of them")
        sys.exit(2)
    missed = []
    for name in sys.argv[1:] or MUTATIONS:
        found = caught(name)
        print(f"{'caught' if found else 'NOT CAUGHT':11} {name}", flush=True)
        if not found:
            missed.append(name)
    print(f"{len(missed)} not caught")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
