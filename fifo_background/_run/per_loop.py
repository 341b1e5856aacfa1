"""One runner for each event loop: of an app, or of everything that is in no app with our middleware."""

from __future__ import annotations

from typing import Any

from fifo_background import _log
from fifo_background._core.state import OPEN
from fifo_background._run.runner import Runner
from fifo_background._settings import Settings

__all__ = ("Life", "PerLoop", "default_runner")


class Life:
    """A runner in its loop, from the first use to the end of the app's last lifespan there."""

    def __init__(self, runner: Runner) -> None:
        self.runner: Runner = runner
        self.lifespans: int = 0  # that run
        self.open_lifespans: int = 0  # those of them that have not been told to shut down
        self.saw_lifespan: bool = False
        self.waiters: list[Any] = []  # lifespans that wait for the end of this life
        self.is_over: bool = False
        self.looked: bool = False  # whether it is set up as it should be

    @property
    def ends(self) -> bool:
        """Whether it takes no work anymore."""
        return self.runner.scheduler.status is not OPEN


class PerLoop:
    """The lives of one app. Any thread may look; only code that runs in a loop adds that loop's."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lives: set[Life] = set()  # loops in several threads may add theirs: by atomic acts

    def has(self, runner: Runner) -> bool:
        return any(life.runner is runner for life in tuple(self._lives))

    def here(self) -> Life:
        """That of the running loop; a fresh one where there is none, or it is over.

        Raises RuntimeError where no loop runs.
        """
        for life in tuple(self._lives):
            if life.runner.is_current() and not life.is_over:
                return life
        runner = Runner(self._settings)
        runner.bind()
        for old in tuple(self._lives):
            if old.is_over or old.runner.backend.is_dead:
                self._lives.discard(old)
        life = Life(runner)
        self._lives.add(life)
        return life

    def _alive(self) -> list[Life]:
        return [life for life in tuple(self._lives) if not (life.is_over or life.runner.backend.is_dead)]

    @property
    def is_elsewhere(self) -> bool:
        """Whether the app has lives, and none of them in the running loop."""
        alive = self._alive()
        return bool(alive) and not any(life.runner.is_current() for life in alive)

    def in_thread(self) -> Life:
        """The only one that there is, for a thread without a loop. Waits for nothing."""
        alive = self._alive()
        if len(alive) == 1:
            return alive[0]
        if not alive:
            raise RuntimeError(
                "the app has no executor yet: it gets one with its lifespan or its first request. Call "
                "`executor_of(request)` in a handler, and give the executor to the thread"
            )
        raise RuntimeError(
            f"the app has executors in {len(alive)} event loops, and a thread belongs to none of them: use "
            "`executor_of(request)`"
        )


# Where there is no middleware, a position is taken when the object is awaited.
_default = PerLoop(Settings(order="responded"))


def default_runner() -> Runner:
    """The running loop's executor for what has no middleware."""
    life = _default.here()
    if not life.saw_lifespan:
        life.saw_lifespan = True
        _log.inform(
            "background tasks were awaited outside of any OrderedBackgroundMiddleware: they run in order, "
            "with default settings, and shutdown does not drain them. Add "
            "`app.add_middleware(OrderedBackgroundMiddleware)`"
        )
    return life.runner
