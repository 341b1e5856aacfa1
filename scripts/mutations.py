"""Breaks the package in one way after the other, and sees its tests fail of each: those of the model or, of
the engine, `tests/engines`.

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
    "a lane may have two runs": (
        "_core/turns.py",
        "                if lane.occupied:\n                    continue\n",
        "",
    ),
    "last in, first out": (
        "_core/lane.py",
        "            self.append(position)\n",
        "            self.prepend(position)\n",
    ),
    "a position runs its tasks backwards": (
        "_core/scheduler.py",
        "        position.append(job)\n        job._queued = True",
        "        position.prepend(job)\n        job._queued = True",
    ),
    "the rest is not skipped": (
        "_core/scheduler.py",
        "for other in rest if self.end_waiting(other, SKIPPED)]",
        "for other in ()]",
    ),
    "run skips": (
        "_core/scheduler.py",
        "        if position.owner is not None and position.owner.skips_rest:",
        "        if position.owner is not None:",
    ),
    "stop does not stop": (
        "_core/scheduler.py",
        'job._options.after_failure == "stop" and',
        'job._options.after_failure == "never" and',
    ),
    "continue stops": ("_core/scheduler.py", 'job._options.after_failure == "stop" and', ""),
    "a slot is not given back": (
        "_core/slots.py",
        "            self.free += 1\n",
        "            pass\n",
    ),
    "slots are not counted": (
        "_core/turns.py",
        "                        slots.free -= 1\n",
        "",
    ),
    "a lane starts without a slot": (
        "_core/turns.py",
        "            while due and slots.free > 0:",
        "            while due:",
    ),
    "a lane keeps its slot": (
        "_core/scheduler.py",
        "                keeps = not (turns.due or lane.stopping",
        "                keeps = not (lane.stopping",
    ),
    "a run goes on in a stopped lane": (
        "_core/scheduler.py",
        " or lane.paused or lane.stopped)",
        " or lane.paused)",
    ),
    "a run goes on in a paused lane": (
        "_core/scheduler.py",
        " or lane.paused or lane.stopped)",
        " or lane.stopped)",
    ),
    "a lane that has run goes first again": (
        "_core/turns.py",
        "            self.due.append(lane)\n\n    def start_next",
        "            self.due.appendleft(lane)\n\n    def start_next",
    ),
    "a paused lane starts": (
        "_core/turns.py",
        "        while lane.stopped is None and not lane.paused and (",
        "        while lane.stopped is None and (",
    ),
    "a stopped lane starts": (
        "_core/turns.py",
        "        while lane.stopped is None and not lane.paused and (",
        "        while not lane.paused and (",
    ),
    "resume forgets to look": (
        "_core/operations.py",
        "    lane.resume()\n    scheduler.turns.wants_turn(lane)",
        "    lane.resume()",
    ),
    "skip_head of a stopped lane forgets to look": (
        "_core/operations.py",
        "        scheduler.gone.append(stopped)\n        scheduler.turns.wants_turn(lane)\n",
        "        scheduler.gone.append(stopped)\n",
    ),
    "skip_head skips nothing": (
        "_core/operations.py",
        " and not scheduler.end_waiting(job, SKIPPED)",
        " and job is None",
    ),
    "a retry goes to the tail": (
        "_core/operations.py",
        "    lane.put_first(position)",
        "    lane.take(position)",
    ),
    "clear forgets what is not ready": (
        "_core/operations.py",
        "    jobs = [job for job in list(lane.waiting) if",
        "    jobs = [job for job in list(lane.waiting) if job.queued and",
    ),
    "a cancelled task runs": (
        "_core/job.py",
        "        if self._claim():\n",
        "        if self._own_state is None:\n",
    ),
    "the loop does not hear of a cancel": (
        "_core/job.py",
        "                self._runner.post(self)\n",
        "                pass\n",
    ),
    "a running task is not cancelled": (
        "_run/on_loop.py",
        "            lane.stopping = True\n            lane.handle.cancel()",
        "            lane.stopping = True",
    ),
    "a cancelled task has failed": (
        "_run/on_loop.py",
        "            lane.stopping = True\n            lane.handle.cancel()",
        "            lane.handle.cancel()",
    ),
    "nobody is superseded": (
        "_core/scheduler.py",
        "                self.end_waiting(superseded, SUPERSEDED)",
        "                pass",
    ),
    "the newest is superseded": (
        "_core/scheduler.py",
        "                self.end_waiting(superseded, SUPERSEDED)",
        "                self.end_waiting(job, SUPERSEDED)",
    ),
    "held heads are never lost": (
        "_core/turns.py",
        "                lane.lose(position)\n"
        "                scheduler.effects.append(Lost(position, position.pending))",
        "                return None",
    ),
    "held heads are lost at once": (
        "_core/turns.py",
        "                if now < end:",
        "                if now < end - 1e9:",
    ),
    "held heads are lost although nothing waits": (
        "_core/turns.py",
        "            elif not lane.queued:\n                return None\n",
        "",
    ),
    "nobody looks when hold_timeout is over": (
        "_run/dispatch.py",
        "            lane.timer = None\n            scheduler.turns.wants_turn(lane)",
        "            lane.timer = None",
    ),
    "a position that is taken anew keeps its time": (
        "_core/scheduler.py",
        "            position.taken = self.clock()\n            self.take(position)",
        "            self.take(position)",
    ),
    "a skipped task lets hold_timeout begin anew": (
        "_core/scheduler.py",
        "        elif position.added and state in (SUCCEEDED, FAILED) and position.held:",
        "        elif position.added and position.held:",
    ),
    "a held head is run past": (
        "_core/turns.py",
        "            elif not position.held:\n                lane.drop",
        "            elif True:\n                lane.drop",
    ),
    "arrival holds nothing": (
        "_core/position.py",
        "        return self.arriving or (",
        "        return (",
    ),
    "responded takes its position when tasks are added": (
        "_request.py",
        'self._joins_at_add: bool = settings.order != "responded" and',
        "self._joins_at_add: bool =",
    ),
    "one too many may wait": (
        "_core/capacity.py",
        "(wanted or len(counted) > most)",
        "(wanted or len(counted) > most + 1)",
    ),
    "a submit is admitted too late": (
        "_core/capacity.py",
        "    return len(counted) < limit or",
        "    return len(counted) < limit - 1 or",
    ),
    "submits are admitted last come, first served": (
        "_core/capacity.py",
        "            wanted = self.wanted.popleft()\n",
        "            wanted = self.wanted.pop()\n",
    ),
    "what has started is counted as waiting": (
        "_core/turns.py",
        "            scheduler.left_waiting(job, lane)\n        return True",
        "            pass\n        return True",
    ),
    "what is superseded is counted twice": (
        "_core/capacity.py",
        "    return job if function is None else (lane, function)",
        "    return job",
    ),
    "what a failed request added stays": (
        "_request.py",
        "        for job in dropped:\n            self._forget(job)\n",
        "",
    ),
    "a request that has ended holds its position": (
        "_core/scheduler.py",
        "        position.arriving = False\n",
        "",
    ),
    "closing keeps held positions": (
        "_core/operations.py",
        "    return [job for job in jobs if job._attached is None and scheduler.end_waiting(job, DROPPED)]\n",
        "    return []\n",
    ),
    "closing keeps what is behind a paused head": (
        "_core/operations.py",
        "    if lane.is_open:\n        return []\n",
        "    return []\n",
    ),
    "closing does not cancel": (
        "_run/closing.py",
        "                    lane.handle.cancel()\n",
        "                    pass\n",
    ),
    "an idle lane stays": (
        "_core/lanes.py",
        "                del self.by_key[lane.key]\n",
        "                pass\n",
    ),
    "an end is not told": (
        "_core/scheduler.py",
        "        self.woken += waiters\n",
        "",
    ),
    "lane.queued is not counted down": (
        "_core/turns.py",
        "        lane.queued -= 1\n        scheduler.queued -= 1\n        if lane.latest",
        "        scheduler.queued -= 1\n        if lane.latest",
    ),
    "the engine stores after the first byte": (
        "engines/postgres/_request.py",
        '            self._carries = message["status"] < 400\n            if self._carries:',
        '            self._carries = message["status"] < 400\n            if False:',
    ),
    "a worker may end a job that another one has": (
        "engines/postgres/schema.sql",
        "status = 'doing' AND worker_id = _worker AND attempts = _attempts FOR UPDATE",
        "status = 'doing' FOR UPDATE",
    ),
    "a lost worker's task never fails": (
        "engines/postgres/schema.sql",
        "crashes = crashes + _crashes,",
        "crashes = crashes,",
    ),
    "a worker calls whatever a row names": (
        "engines/postgres/_functions.py",
        "        if own != (module, name):",
        "        if False:",
    ),
    "the watchdog is armed without a task in hand": (
        "engines/postgres/_lease.py",
        "self._watchdog.set(self.ends if self._in_hand else None)",
        "self._watchdog.set(self.ends)",
    ),
    "what is stored twice is an error": (
        "engines/postgres/schema.sql",
        "        ON CONFLICT (id) DO NOTHING;",
        "        ;",
    ),
}

# Where the tests of a part are, and for how many seconds they may run.
TESTS = {
    "engines/": (["engines/test_functions.py", "engines/test_differences.py", "engines/test_traps.py"], 300),
    "": (["test_model.py"], 120),
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
        names, seconds = next(tests for part, tests in TESTS.items() if file.startswith(part))
        tests = [f"tests/{name}" for name in names]
        command = [sys.executable, "-m", "pytest", "-q", "-x", "--show-capture=no", *tests]
        command += ["-o", "faulthandler_timeout=40", "-o", "faulthandler_exit_on_timeout=true"]
        environment = {**os.environ, "PYTHONPATH": folder, "FIFO_NO_SHRINK": "1"}
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, timeout=seconds, check=False
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
