"""A TCP proxy before PostgreSQL's socket, which cuts connections, swallows bytes, or refuses."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any


class Proxy:
    """In a thread of its own; `port` is where it listens. Attributes may be set from any thread.

    `refuses`: new connections are closed at once. `swallows`: nothing is passed on anymore, in both
    directions, and nobody is told. `to_server` and `from_server`: after so many bytes of a connection in that
    direction, both ends of it are cut; None for never. `passed`: the numbers of bytes of the last connection
    that has ended. `eats`: the first answer with these bytes is not passed on, and its connection is cut.
    """

    def __init__(self, path: str, host: str = "127.0.0.1") -> None:
        self._path = path
        self._host = host
        self.refuses = False
        self.swallows = False
        self.to_server: int | None = None
        self.from_server: int | None = None
        self.eats: bytes | None = None
        self.passed: dict[str, int] = {}
        self.cuts = 0  # connections that were cut by a number of bytes
        self.connections = 0
        self.port = 0
        self._server: asyncio.Server | None = None
        self._open: set[_Connection] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Proxy:
        ready = threading.Event()
        self._loop.call_soon(lambda: asyncio.ensure_future(self._listen(ready), loop=self._loop))
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.refuses = True
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def dsn(self, host: str | None = None) -> str:
        # no TLS: its first message would be one more step
        plain = "sslmode=disable&gssencmode=disable"
        return f"postgresql://postgres@{host or self._host}:{self.port}/postgres?{plain}"

    @property
    def is_idle(self) -> bool:
        """Whether every connection has ended, and `passed` is that of the last one."""
        return not self._open

    def cut(self, choose: Callable[[], bool] = lambda: True) -> None:
        """End connections at both ends."""

        def here() -> None:
            for one in tuple(self._open):
                if choose():
                    one.abort()

        asyncio.run_coroutine_threadsafe(_do(here), self._loop).result(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.run_until_complete(self._close())
        self._loop.close()

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in tuple(self._open):
            one.abort()
        await asyncio.sleep(0.1)  # transports close

    async def _listen(self, ready: threading.Event) -> None:
        self._server = await asyncio.start_server(self._serve, self._host, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        ready.set()

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        if self.refuses:
            to_client.transport.abort()
            return
        try:
            server, to_server = await asyncio.open_unix_connection(self._path)
        except OSError:
            to_client.transport.abort()
            return
        one = _Connection(self, to_client, to_server)
        self.connections += 1
        self._open.add(one)
        try:
            await asyncio.gather(
                one.pump("to_server", client, to_server, self.to_server),
                one.pump("from_server", server, to_client, self.from_server),
            )
        except asyncio.CancelledError:
            pass  # at the end of the proxy; the server of asyncio would show it
        finally:
            self.passed = one.passed
            self._open.discard(one)
            one.abort()


class _Connection:
    def __init__(self, proxy: Proxy, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._ends = client, server
        self.passed = {"to_server": 0, "from_server": 0}

    async def pump(
        self, way: str, source: asyncio.StreamReader, sink: asyncio.StreamWriter, most: int | None
    ) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                if self._proxy.swallows:
                    continue
                if way == "from_server" and self._proxy.eats is not None and self._proxy.eats in data:
                    self._proxy.eats = None
                    self._proxy.cuts += 1
                    break
                before = self.passed[way]
                self.passed[way] += len(data)
                if most is not None and before + len(data) >= most:
                    sink.write(data[: most - before])
                    await sink.drain()
                    self._proxy.cuts += 1
                    break
                sink.write(data)
                await sink.drain()
        for end in self._ends:
            if end is sink and not self._proxy.swallows:
                end.close()  # what was written arrives
        self.abort_later()

    def abort_later(self) -> None:
        asyncio.get_running_loop().call_later(0.05, self.abort)

    def abort(self) -> None:
        for end in self._ends:
            end.transport.abort()


async def _do(what: Callable[[], Any]) -> None:
    what()
