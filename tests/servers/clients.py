"""A crowd of clients for the chaos tests: what each of them asks for comes from one seed.

Plain asyncio streams, so that a client can leave at any moment, politely (FIN) or not (RST).
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from dataclasses import dataclass
from typing import Any

TIMEOUT = 15  # seconds for one answer: reached only if something hangs


@dataclass(frozen=True)
class Client:
    """One request, and how its client behaves."""

    uid: str
    path: str
    ending: str
    failing: str | None  # the task that fails
    leaves: float | None  # seconds after which it goes, or None
    after_first_chunk: bool  # it goes when the first bytes have come
    reset: bool

    @property
    def patient(self) -> bool:
        return self.leaves is None and not self.after_first_chunk

    @property
    def awaits_answer(self) -> bool:
        """Whether it gets a whole answer.

        A `BaseHTTPMiddleware` of Starlette 0.27 does not end a stream whose background task has failed.
        """
        return self.patient and not (self.failing is not None and self.ending == "stream")

    @property
    def drops(self) -> bool:
        """Whether the request never awaits its tasks, whatever the client does."""
        return self.ending in ("raise", "http", "own", "plain")

    @property
    def status(self) -> int:
        return {"raise": 500, "http": 409}.get(self.ending, 200)


def plan(seed: int, count: int, *, stall: int = 0, streams: float = 0.2) -> list[Client]:
    """`count` clients, a share of `streams`.

    With `stall`, every 29th handler waits that many milliseconds after `add_task`.
    """
    dice = random.Random(seed)
    return [_client(dice, n, stall, streams) for n in range(count)]


def _client(dice: random.Random, n: int, stall: int, streams: float) -> Client:
    kind = dice.choice(["async", "async", "def", "def", "async-dependency", "def-dependency"])
    tasks = [f"{dice.choice('sa')}{dice.choice((0, 0, 1, 2))}" for _ in range(dice.choice((2, 3)))]
    failing = None
    if n % 17 == 16:
        fails = dice.randrange(len(tasks))
        tasks[fails] += dice.choice("!!?")
        failing = f"task_{n}_{fails}"
    if n % 23 == 22:
        tasks[dice.randrange(len(tasks))] += "+"
    ending = "stream" if dice.random() < streams else "answer"
    if n % 13 == 12:
        ending = dice.choice(["raise", "http", "own", "plain"])
    after = stall if stall and n % 29 == 28 else dice.randrange(15)
    path = (
        f"/{kind}/{n}?before={dice.randrange(15)}&between={dice.randrange(4)}&after={after}"
        f"&tasks={','.join(tasks).replace('+', '%2B')}&ending={ending}"
    )
    return Client(
        uid=str(n),
        path=path,
        ending=ending,
        failing=failing,
        leaves=dice.choice((0, dice.random() * 0.06)) if n % 11 == 10 else None,
        after_first_chunk=ending == "stream" and dice.random() < 0.4,
        reset=dice.random() < 0.5,
    )


async def visit(port: int, clients: list[Client], at_once: int) -> dict[str, int | str]:
    """Send all requests, so many at a time; returns the status that each client got who had to get one."""
    room = asyncio.Semaphore(at_once)
    statuses: dict[str, int | str] = {}

    async def one(client: Client) -> None:
        async with room:
            try:
                status: int | str | None = await asyncio.wait_for(_ask(port, client), TIMEOUT)
            except (OSError, EOFError, asyncio.TimeoutError) as error:
                status = repr(error)
            if client.awaits_answer:
                assert status is not None
                statuses[client.uid] = status

    await asyncio.gather(*map(one, clients))
    return statuses


async def _ask(port: int, client: Client) -> int | None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        if client.reset:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.write(_request(client.path))
        await writer.drain()
        if client.leaves is not None:
            await asyncio.sleep(client.leaves)
            return None
        if client.after_first_chunk:
            await reader.readuntil(b"x")
            return None
        status, _ = await _answer(reader)
        return status
    finally:
        writer.close()
        try:
            await writer.wait_closed()
        except OSError:
            pass  # the server was faster


def _request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: chaos\r\nConnection: close\r\n\r\n".encode()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    status = int(head.split()[1])
    length = head.partition("content-length:")[2].partition("\r\n")[0]
    if length:
        return status, await reader.readexactly(int(length))
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):  # chunked
        body += await reader.readexactly(size)
        await reader.readuntil(b"\r\n")
    return status, body


async def report(port: int) -> dict[str, Any]:
    """What the app recorded; the app answers when nothing is pending any more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(_request("/report"))
        _, body = await asyncio.wait_for(_answer(reader), TIMEOUT)
    finally:
        writer.close()
        await writer.wait_closed()
    recorded: dict[str, Any] = json.loads(body)
    return recorded
