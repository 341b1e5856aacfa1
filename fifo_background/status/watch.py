"""The picture of an executor that all who watch it share: whoever needs a new one first builds it for all."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any, NamedTuple

import anyio

from fifo_background import JobRecord, LaneList
from fifo_background.status.executors import ShownExecutor
from fifo_background.status.responses import dumped

__all__ = ("Picture", "Tick", "Watch", "figures", "now")

# Seconds between two pictures, at least: always, for each client, and as a multiple of the last one's work.
PAUSE, PAUSE_PER_CLIENT, PAUSE_TO_WORK = 0.1, 0.001, 10
# Seconds after which those who wait for a change hear that nothing has changed.
HEARTBEAT = 5.0
# How many lanes a picture has, and how many ended jobs one tick.
LANES, ENDED = 50, 200
# How many different ticks of one picture are kept: clients may ask for what follows any ended job.
TICKS = 50


async def figures(executor: ShownExecutor, lanes: LaneList) -> dict[str, Any]:
    """The figures of an executor at one moment, with the head that has waited longest."""
    lane, oldest = lanes.oldest, None
    if lane is not None and lane.head is not None:
        oldest = {"lane": lane.lane_name.to_dict(), "id": lane.head.id, "for": lane.head_for}
    return await executor.counts() | {"oldest": oldest}


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Tick(NamedTuple):
    """What is sent to every client that has heard of the same ended jobs, and sees as much."""

    event: bytes
    ended: int
    """How many ended jobs who gets it has heard of."""


class Picture:
    """The figures and the worst lanes of an executor at one moment, and the ticks that say so."""

    def __init__(self, number: int, epoch: str, ended: int, summary: dict[str, Any], lanes: LaneList) -> None:
        self.number: int = number
        self.ended: int = ended  # the number of the last end
        self._epoch = epoch
        self._time = now()
        self._summary = summary
        self._lanes = lanes
        self._lanes_json: dict[bool, bytes] = {}  # with or without messages of errors
        self._ticks: dict[tuple[int, bool, bool], Tick] = {}
        self._making: anyio.Lock = anyio.Lock()

    async def tick(self, executor: ShownExecutor, after: int, *, errors: bool, operate: bool) -> Tick | None:
        """For who has heard of the first `after` ended jobs. None if the history has forgotten the next.

        Made once: a thousand clients, of which some do not read, share its bytes.
        """
        key = (after, errors, operate)
        async with self._making:
            made = self._ticks.get(key)
            if made is None and after >= self.ended:
                made = self._made([], after, errors, operate)
            elif made is None:
                found = await executor.ended(after, min(ENDED, self.ended - after))
                if found is None:
                    return None
                made = self._made(*found, errors, operate)
            self._ticks[key] = made
            if len(self._ticks) > TICKS:
                del self._ticks[next(iter(self._ticks))]
        return made

    def _made(self, records: Sequence[JobRecord], ended: int, errors: bool, operate: bool) -> Tick:
        jobs = dumped([record.to_dict(errors=errors) for record in records])
        figures = dumped(self._summary | {"operate": operate})
        event = b'event: tick\nid: %b-%d\ndata: {"time":%b,"summary":%b,"lanes":%b,"ended":%b}\n\n' % (
            *(self._epoch.encode(), ended, dumped(self._time), figures, self._lanes_for(errors), jobs),
        )
        return Tick(event, ended)

    def _lanes_for(self, errors: bool) -> bytes:
        made = self._lanes_json.get(errors)
        if made is None:
            items = [lane.to_dict(errors=errors) for lane in self._lanes.items]
            made = self._lanes_json[errors] = dumped({"items": items, "total": self._lanes.total})
        return made


class Watch:
    """Pictures of one executor for the clients that watch it. It does not keep the executor alive."""

    def __init__(self) -> None:
        self.clients: int = 0
        self._number = 0
        self._picture: Picture | None = None
        self._version = -1  # of what the last picture shows
        self._due = 0.0
        self._silences = 0  # how often nothing had changed for a while
        self._building: anyio.Event | None = None

    def join(self) -> None:
        self.clients += 1

    def leave(self) -> None:
        """The last one to leave takes the picture along: nobody would bring it up to date."""
        self.clients -= 1
        if not self.clients:
            self._picture, self._version = None, -1

    async def after(self, executor: ShownExecutor, seen: int) -> Picture | None:
        """The picture after the one numbered `seen`; None if nothing has changed for a while.

        With `seen=0`, the one there is. Raises `ExecutorClosed` when the executor closes.
        """
        silences = self._silences
        while self._picture is None or self._picture.number <= seen:
            if self._building is None:
                await self._build(executor)
            else:  # its builder may leave before it is done: then another one builds it
                await self._building.wait()
            if self._silences != silences:
                return None
        return self._picture

    async def _build(self, executor: ShownExecutor) -> None:
        self._building = built = anyio.Event()
        try:
            await self._pause(executor)
            version = None
            with anyio.move_on_after(HEARTBEAT):
                version = await executor.changed(self._version)
            if version is None:
                self._silences += 1
                return
            began = anyio.current_time()
            last = await executor.last_end()  # first: what ends from here on comes with the next picture
            lanes = await executor.lanes(limit=LANES)
            summary = await figures(executor, lanes)
            self._number += 1
            self._picture = Picture(self._number, *last, summary, lanes)
            self._version = version
            done = anyio.current_time()
            self._due = done + PAUSE + PAUSE_PER_CLIENT * self.clients + PAUSE_TO_WORK * (done - began)
        finally:
            self._building = None
            built.set()

    async def _pause(self, executor: ShownExecutor) -> None:
        """Until the next picture is due, or the executor closes."""
        while executor.is_open and self._picture is not None:
            left = self._due - anyio.current_time()
            if left <= 0:
                return
            await anyio.sleep(min(left, PAUSE))
