"""How long a worker may believe that its jobs are its own, and what ends it when it cannot know.

A worker that is frozen (a stopped process, a paused virtual machine) cannot look at a clock. So the kernel
looks: each confirmed heartbeat moves a timer on, and where one stays away, the timer kills the process before
it runs another line. It is set only while a task is in hand. On Linux; elsewhere nothing ends a frozen
process, and a task of it may go on for a moment after it has been started again by another worker.
"""

from __future__ import annotations

import ctypes
import signal
import threading
import time
from collections.abc import Callable

__all__ = ("Lease", "now")

# Of Linux: this clock goes on while the machine sleeps.
_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", None)


def now() -> float:
    """Seconds of the clock that leases are measured with."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)


class Lease:
    """From the sending of the last heartbeat that was confirmed, `seconds` long.

    The thread of the heartbeats renews it; the event loop says what is in hand.
    """

    def __init__(self, seconds: float, watchdog: Watchdog | None) -> None:
        self._seconds = seconds
        self._watchdog = watchdog
        self.ends: float = 0.0
        self._in_hand: int = 0  # tasks
        self._renews: bool = True
        self._changes = threading.Lock()  # held for a system call, and by nothing that runs users' code

    def renew(self, sent: float) -> None:
        """A heartbeat that was sent then has been confirmed."""
        with self._changes:
            if self._renews:
                self.ends = max(self.ends, sent + self._seconds)
                self._set()

    def end_renewals(self) -> None:
        """It ends when it ends: also the heartbeat that is under way does not count anymore."""
        with self._changes:
            self._renews = False

    def hold(self) -> bool:
        """A task is about to start. False if it must not: the lease is over.

        Where the process is frozen after the look at the clock, the timer is set to a moment that is past,
        or goes off meanwhile: then nothing starts.
        """
        with self._changes:
            if now() >= self.ends:
                return False
            self._in_hand += 1
            self._set()
        if now() < self.ends:  # without a timer, this narrows the window
            return True
        self.let_go()
        return False

    def let_go(self) -> None:
        """A task has ended."""
        with self._changes:
            self._in_hand -= 1
            self._set()

    def _set(self) -> None:
        if self._watchdog is not None:
            self._watchdog.set(self.ends if self._in_hand else None)


class Watchdog:
    """A timer of the kernel that kills this process: the only thing that ends a frozen one."""

    def __init__(self, set_timer: Callable[[float], None]) -> None:
        self._set_timer = set_timer
        self._at: float | None = None

    def set(self, at: float | None) -> None:
        """When to kill; None for never."""
        if at != self._at:
            self._at = at
            self._set_timer(0.0 if at is None else at)

    @classmethod
    def make(cls) -> Watchdog | None:
        """None where the kernel has no such timer."""
        set_timer = None if _CLOCK is None else _kernel_timer(_CLOCK)
        return None if set_timer is None else cls(set_timer)


class _Notice(ctypes.Structure):
    """`struct sigevent`: 64 bytes."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("how", ctypes.c_int),
        ("padding", ctypes.c_int * 12),
    )


class _Times(ctypes.Structure):
    """`struct itimerspec`: the interval, and the moment."""

    _fields_ = (
        ("interval_seconds", ctypes.c_long),
        ("interval_nanoseconds", ctypes.c_long),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
    )


def _kernel_timer(clock: int) -> Callable[[float], None] | None:
    """What sets the timer to a moment of `now()`; 0.0 stops it."""
    absolute = 1
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "timer_create"):  # glibc before 2.34
        return None
    timer = ctypes.c_void_p()
    notice = _Notice(None, signal.SIGKILL, 0)
    if library.timer_create(clock, ctypes.byref(notice), ctypes.byref(timer)):
        return None

    def set_timer(at: float) -> None:
        seconds = int(at)
        times = _Times(0, 0, seconds, int((at - seconds) * 1e9))
        library.timer_settime(timer, absolute, ctypes.byref(times), None)

    return set_timer
