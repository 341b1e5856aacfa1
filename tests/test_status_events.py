"""The event stream: nothing is lost or doubled, everybody sees one picture, and it ends."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from starlette.middleware.gzip import GZipMiddleware

from fifo_background import SerialExecutor
from fifo_background.status import watch as watch_module
from tests.support.apps import Work
from tests.support.status import FACES, Asks, Site, events_of

pytestmark = pytest.mark.virtual_clock


class Stream:
    """An open event stream, which a test reads."""

    def __init__(self, site: Site, group: Any, path: str = "/events", **more: Any) -> None:
        self.exchange = site.exchange(path, **more)
        group.start_soon(self.exchange.run)

    async def events(self, least: int = 1) -> list[tuple[str, str, Any]]:
        while len(events_of(self.exchange)) < least:
            await anyio.sleep(0.01)
        return events_of(self.exchange)

    async def close(self) -> None:
        self.exchange.disconnected.set()
        await self.exchange.ended.wait()


def ended(events: list[tuple[str, str, Any]]) -> list[int]:
    return [job["number"] for _, _, data in events for job in data.get("ended", [])]


async def run(site: Site, count: int) -> None:
    async def task() -> None: ...

    for _ in range(count):
        site.executor.submit_nowait(task)
    await site.executor.join()


async def test_first_connection(site: Site, work: Work) -> None:
    """A stream begins with the time after which to come back, and a tick that has no ended jobs."""
    await run(site, 3)
    async with anyio.create_task_group() as group:
        stream = Stream(site, group)
        ((name, event_id, data),) = await stream.events()
        await stream.close()
    assert stream.exchange.messages[1]["body"] == b"retry: 1000\n\n"
    assert (name, event_id) == ("tick", f"{site.executor.epoch}-3")
    assert data.keys() == {"time", "summary", "lanes", "ended"}
    assert data["ended"] == []
    assert (data["summary"]["succeeded"], data["summary"]["operate"]) == (3, True)
    assert data["lanes"].keys() == {"items", "total"}
    assert data["time"].endswith("Z")
    headers = dict(stream.exchange.messages[0]["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert (headers[b"cache-control"], headers[b"x-accel-buffering"]) == (b"no-store", b"no")
    assert b"content-length" not in headers


async def test_compression(site: Site) -> None:
    """A middleware that compresses does not hold the events back until the stream ends."""
    site.app.app = GZipMiddleware(site.app.app)
    async with anyio.create_task_group() as group:
        stream = Stream(site, group, headers={"accept-encoding": "gzip"})
        await stream.events()
        await run(site, 1)
        await stream.events(2)
        assert dict(stream.exchange.messages[0]["headers"])[b"content-encoding"] == b"identity"
        await stream.close()


async def test_ticks(site: Site, work: Work) -> None:
    """A tick comes when something has changed, at most every 100 ms, with the jobs that have ended since."""
    async with anyio.create_task_group() as group:
        stream = Stream(site, group)
        await stream.events()
        await anyio.sleep(2)
        assert len(events_of(stream.exchange)) == 1
        await run(site, 2)
        await stream.events(2)
        began = anyio.current_time()
        await run(site, 1)
        events = await stream.events(3)
        assert anyio.current_time() - began >= 0.08
        await stream.close()
    assert sorted(ended(events)) == [1, 2, 3]
    assert events[-1][1] == f"{site.executor.epoch}-3"


async def test_reconnect(site: Site) -> None:
    """Who comes back with `Last-Event-ID`, or `after`, loses no job and gets none twice."""
    seen: list[int] = []
    last = ""
    for round_ in range(4):
        async with anyio.create_task_group() as group:
            if round_ % 2:
                stream = Stream(site, group, headers={"last-event-id": last})
            else:
                stream = Stream(site, group, f"/events?after={last}" if last else "/events")
            await stream.events()
            await run(site, 3)
            seen += ended(await stream.events(2))
            last = events_of(stream.exchange)[-1][1]
            await stream.close()
        await run(site, 2)  # while nobody looks
    assert seen == list(range(1, 19))


async def test_nothing_missed(site: Site) -> None:
    """Who comes back where nothing has ended gets a tick at once, without a reset."""
    await run(site, 2)
    async with anyio.create_task_group() as group:
        stream = Stream(site, group, headers={"last-event-id": f"{site.executor.epoch}-2"})
        ((name, _, data),) = await stream.events()
        await stream.close()
    assert (name, data["ended"]) == ("tick", [])


@pytest.mark.parametrize(
    "last", ["{other}-1", "{epoch}-9", "{epoch}", "1", "x", "{epoch}--1", "{epoch}-1 ", "💥", "a" * 500, "-"]
)
async def test_unknown_id(site: Site, last: str) -> None:
    """An id of another executor, or none at all, begins anew with a reset."""
    await run(site, 2)
    sent = last.format(epoch=site.executor.epoch, other="other")
    async with anyio.create_task_group() as group:
        stream = Stream(site, group, f"/events?after={sent}")
        reset, (name, event_id, data) = await stream.events(2)
        await stream.close()
    assert reset == ("reset", "", {})
    assert (name, event_id, data["ended"]) == ("tick", f"{site.executor.epoch}-2", [])


@pytest.mark.parametrize("face", FACES)
async def test_too_old(face: str) -> None:
    """Who has missed more than the history keeps gets a reset, also in the middle of a stream."""
    site = Site(face, {"history": 5})
    await run(site, 10)
    async with anyio.create_task_group() as group:
        stream = Stream(site, group, headers={"last-event-id": f"{site.executor.epoch}-4"})
        assert [name for name, _, _ in await stream.events(2)] == ["reset", "tick"]
        await stream.close()
        stream = Stream(site, group, headers={"last-event-id": f"{site.executor.epoch}-5"})
        assert ended(await stream.events()) == [6, 7, 8, 9, 10]
        await run(site, 20)  # in one turn of the clock
        events = await stream.events(3)
        await stream.close()
    assert [name for name, _, _ in events] == ["tick", "reset", "tick"]
    assert (events[2][2]["ended"], events[2][1]) == ([], f"{site.executor.epoch}-30")


async def test_many_at_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where more jobs have ended than one tick takes, the next ticks follow at once."""
    async with anyio.create_task_group() as group:
        stream = Stream(site, group)
        await stream.events()
        await run(site, 450)
        events = await stream.events(4)
        await stream.close()
    assert [len(data["ended"]) for _, _, data in events] == [0, 200, 200, 50]
    assert ended(events) == list(range(1, 451))
    assert len({data["time"] for _, _, data in events[1:]}) == 1


async def test_one_picture(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture is built once for all clients; each has its own place in the history."""
    looks: list[int] = []
    lanes = SerialExecutor.lanes

    async def count(executor: SerialExecutor, limit: int = 50) -> Any:
        looks.append(limit)
        return await lanes(executor, limit=limit)

    monkeypatch.setattr(SerialExecutor, "lanes", count)
    await run(site, 3)
    async with anyio.create_task_group() as group:
        last = {"last-event-id": f"{site.executor.epoch}-1"}
        streams = [Stream(site, group, headers=last if n % 2 else None) for n in range(20)]
        for stream in streams:
            await stream.events()
        assert len(looks) == 1
        await run(site, 2)
        for n, stream in enumerate(streams):
            assert ended(await stream.events(2)) == ([2, 3, 4, 5] if n % 2 else [4, 5])
        assert len(looks) == 2
        for stream in streams:
            await stream.close()


async def test_few_ticks_are_kept(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one picture few ticks are kept, however many ended jobs clients come back behind."""
    monkeypatch.setattr(watch_module, "TICKS", 3)
    pictures: list[Any] = []
    after = watch_module.Watch.after

    async def noted(self: Any, *args: Any) -> Any:
        pictures.append(await after(self, *args))
        return pictures[-1]

    monkeypatch.setattr(watch_module.Watch, "after", noted)
    await run(site, 20)
    async with anyio.create_task_group() as group:
        first = Stream(site, group)
        await first.events()
        for last in range(20):
            stream = Stream(site, group, f"/events?after={site.executor.epoch}-{last}")
            assert ended(await stream.events()) == [*range(last + 1, 21)]
            await stream.close()
        await first.close()
    assert max(len(picture._ticks) for picture in pictures if picture is not None) == 3


async def test_pause_between_pictures(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The more clients there are, and the longer a picture takes, the rarer pictures are."""
    lanes = SerialExecutor.lanes

    async def slow(executor: SerialExecutor, limit: int = 50) -> Any:
        await anyio.sleep(0.05)
        return await lanes(executor, limit=limit)

    monkeypatch.setattr(SerialExecutor, "lanes", slow)
    async with anyio.create_task_group() as group:
        streams = [Stream(site, group) for _ in range(100)]
        for stream in streams:
            await stream.events()
        began = anyio.current_time()
        await run(site, 1)
        await streams[0].events(2)
        assert anyio.current_time() - began == pytest.approx(0.1 + 100 * 0.001 + 10 * 0.05 + 0.05, abs=0.2)
        for stream in streams:
            await stream.close()


async def test_builder_leaves(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the client that builds the picture leaves in the middle of it, another one builds it."""
    gates = [anyio.Event(), anyio.Event()]
    lanes, looks = SerialExecutor.lanes, []

    async def gated(executor: SerialExecutor, limit: int = 50) -> Any:
        looks.append(limit)
        if len(looks) == 1:
            await gates[0].wait()
        return await lanes(executor, limit=limit)

    monkeypatch.setattr(SerialExecutor, "lanes", gated)
    async with anyio.create_task_group() as group:
        first = Stream(site, group)
        await wait_all_tasks_blocked()
        second = Stream(site, group)
        await wait_all_tasks_blocked()
        assert len(looks) == 1
        await first.close()
        assert len(await second.events()) == 1
        await second.close()
    assert len(looks) == 2


@pytest.mark.parametrize("face", FACES)
async def test_heartbeat(face: str) -> None:
    """Every client of a silent executor hears every 5 seconds that nothing has changed."""
    site = Site(face, stream_seconds=15)
    async with anyio.create_task_group() as group:
        streams = [Stream(site, group) for _ in range(3)]
        await anyio.sleep(11)
        for stream in streams:
            assert [name for name, _, _ in await stream.events()] == ["tick", "unchanged", "unchanged"]
            await stream.close()


@pytest.mark.parametrize("face", FACES)
async def test_stream_ends(face: str) -> None:
    """A stream ends by itself after `stream_seconds`, with its last message."""
    site = Site(face, stream_seconds=3)
    began = anyio.current_time()
    exchange = await site.exchange("/events").run()
    assert anyio.current_time() - began == pytest.approx(3, abs=0.2)
    assert exchange.messages[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_disconnect(site: Site) -> None:
    """A client that leaves ends its stream; nothing is sent to it then."""
    async with anyio.create_task_group() as group:
        stream = Stream(site, group)
        await stream.events()
        await stream.close()
    assert stream.exchange.messages[-1]["more_body"] is True


async def test_executor_closes(site: Site, work: Work) -> None:
    """Streams end at once when the executor closes, before it has run what is left."""
    job = site.executor.submit_nowait(work.gated, 1)
    async with anyio.create_task_group() as group:
        streams = [Stream(site, group) for _ in range(3)]
        for stream in streams:
            await stream.events()
        began = anyio.current_time()
        group.start_soon(site.executor.aclose)
        for stream in streams:
            await stream.exchange.ended.wait()
            assert stream.exchange.messages[-1]["more_body"] is False
        assert anyio.current_time() - began < 0.2
        assert not job.done()
        work.gate(1).set()
    assert (await site.exchange("/events").run()).status == 200  # and so do later ones


async def test_executor_closes_between_pictures(site: Site, work: Work) -> None:
    """Also where the next picture is waited for."""
    async with anyio.create_task_group() as group:
        stream = Stream(site, group)
        await stream.events()
        await run(site, 1)
        began = anyio.current_time()
        await site.executor.aclose()
        await stream.exchange.ended.wait()
        assert anyio.current_time() - began < 0.2


class Stuck(Asks):
    """A client that reads nothing more after some messages."""

    reads = 2

    async def send(self, message: dict[str, Any]) -> None:
        if len(self.messages) >= self.reads:
            await anyio.sleep_forever()
        await super().send(message)


@pytest.mark.parametrize("face", FACES)
async def test_client_that_does_not_read(face: str) -> None:
    """A client that does not read holds up nobody, and its request ends a second after the stream."""
    site = Site(face, stream_seconds=5)
    example = site.exchange("/events")
    stuck = Stuck(
        site.app,
        scope_of := example.scope["path"],
        **{key: example.scope[key] for key in ("headers", "client", "query_string")},
    )
    assert scope_of == "/tasks/events"
    async with anyio.create_task_group() as group:
        began = anyio.current_time()
        group.start_soon(stuck.run)
        stream = Stream(site, group)
        await stream.events()
        await run(site, 2)
        assert ended(await stream.events(2)) == [1, 2]
        await stuck.ended.wait()
        assert anyio.current_time() - began == pytest.approx(6, abs=0.3)
        assert stuck.error is None
        await stream.close()


class Gone(Asks):
    """A client to which newer servers say that they cannot send."""

    async def send(self, message: dict[str, Any]) -> None:
        if len(self.messages) >= 3:
            raise OSError("gone")
        await super().send(message)


async def test_server_cannot_send(site: Site) -> None:
    """A server that raises OSError, as the client is gone, ends the stream without a word."""
    example = site.exchange("/events")
    gone = Gone(
        site.app,
        "/tasks/events",
        **{key: example.scope[key] for key in ("headers", "client", "query_string")},
    )
    with anyio.fail_after(20):
        await gone.run()  # it hears of it with the next message
    assert gone.error is None


@pytest.mark.parametrize("face", FACES)
async def test_each_sees_its_own(face: str) -> None:
    """One picture serves an operator on this machine, and a reader elsewhere, who sees no error's message."""

    def authorize(request: Any) -> Any:
        return "operate" if request.client.host == "127.0.0.1" else "read"

    site = Site(face, {"lane_after_failure": "stop"}, authorize=authorize)

    async def fail() -> None:
        raise ValueError("card declined")

    async with anyio.create_task_group() as group:
        streams = [Stream(site, group, client=client) for client in ("127.0.0.1", "10.0.0.1")]
        for stream in streams:
            await stream.events()
        await site.executor.lane("a").submit_nowait(fail).wait()
        for stream, operate, message in zip(streams, (True, False), ("card declined", None), strict=True):
            data = (await stream.events(2))[1][2]
            assert data["summary"]["operate"] is operate
            assert data["ended"][0]["error"]["message"] == message
            assert data["lanes"]["items"][0]["head"]["error"]["message"] == message
            await stream.close()
    site.executor.lane("a").clear()


async def test_executor_is_freed(site: Site) -> None:
    """What a status keeps for its clients keeps no executor."""
    async with anyio.create_task_group() as group:
        stream = Stream(site, group)
        await stream.events()
        await stream.close()
    executor = weakref.ref(site.executor)
    await site.executor.aclose()
    status = site.app.app
    del site.app, stream
    gc.collect()
    assert status is not None
    assert executor() is None


def test_time() -> None:
    """Times are UTC with milliseconds."""
    assert len(watch_module.now()) == len("2026-11-26T08:00:00.123Z")
