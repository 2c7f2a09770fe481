"""A TCP proxy in front of PostgreSQL that reads the protocol and breaks the line at a chosen message."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec

from pgtick.config import DatabaseConfig

__all__ = ["MANNERS", "POINTS", "Cut", "Proxy"]


class _Point(msgspec.Struct, frozen=True):
    """Which message it is; ``says``: what is in its body; ``is_forwarded``: it gets through before the cut."""

    is_from_client: bool
    kind: bytes
    says: bytes = b""
    is_forwarded: bool = False

    def is_met(self, is_from_client: bool, kind: bytes, body: bytes) -> bool:
        return is_from_client == self.is_from_client and kind == self.kind and self.says in body


#: https://www.postgresql.org/docs/current/protocol-message-formats.html; the startup message has no type.
POINTS = {
    "startup": _Point(True, b""),
    "auth": _Point(False, b"R"),
    "begin": _Point(True, b"Q", b"BEGIN; "),
    "begin_answer": _Point(False, b"C", b"BEGIN"),
    "ledger_answer": _Point(False, b"C", b"INSERT"),
    "copy": _Point(True, b"Q", b"COPY "),
    "copy_ready": _Point(False, b"G"),
    "copy_data": _Point(True, b"d"),
    "copy_done": _Point(True, b"c"),
    "copy_done_sent": _Point(True, b"c", is_forwarded=True),
    "copy_answer": _Point(False, b"C", b"COPY "),
    "commit": _Point(True, b"Q", b"COMMIT\0"),
    "commit_sent": _Point(True, b"Q", b"COMMIT\0", is_forwarded=True),
    "commit_answer": _Point(False, b"C", b"COMMIT\0"),
    "ready": _Point(False, b"Z", b"I"),
}
MANNERS = ("reset", "close", "black hole")


class Cut(msgspec.Struct):
    """Where the line breaks, once, and how; ``at_byte`` counts the bytes of CopyData from the arming on.

    With ``action`` that is called instead, and the line goes on. ``cut_s``: when it was, by the monotonic clock.
    """

    where: str
    how: str = "reset"
    at_byte: int = 0
    action: Callable[[], object] | None = None
    cut_s: float | None = None


class Proxy:
    """Listens on a port of 127.0.0.1; ``cut`` is armed until it was made.

    A black hole takes bytes and forwards none, on all lines and new ones, until ``heal``; the server's side of its
    lines stays open, as with a peer that lost its power. ``delay_s`` holds up each message.
    """

    def __init__(self, target: DatabaseConfig) -> None:
        self.target = target
        self.port = 0
        self.cut: Cut | None = None
        self.is_dark = False
        self.delay_s = 0.0
        self.n_lines = 0
        self._n_copied = 0
        self._server: asyncio.Server | None = None
        self._lines: set[_Line] = set()
        self.made = asyncio.Event()

    def config(self) -> DatabaseConfig:
        """Return the target's configuration by way of the proxy."""
        return msgspec.structs.replace(self.target, host="127.0.0.1", port=self.port)

    async def __aenter__(self) -> Proxy:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()
        for line in list(self._lines):
            await line.end()

    async def listen(self) -> None:
        """Take connections, on the same port as before."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, reuse_address=True)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Refuse new connections."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def arm(self, cut: Cut) -> Cut:
        """Cut there next."""
        self.cut, self._n_copied = cut, 0
        self.made.clear()
        return cut

    def heal(self) -> None:
        """Forward again, on new lines."""
        self.is_dark = False

    def reset_all(self) -> None:
        """Reset every line."""
        for line in self._lines:
            line.reset()

    def switch(self, target: DatabaseConfig) -> None:
        """Lead new lines elsewhere: the address of a fail-over."""
        self.target = target
        self.reset_all()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.n_lines += 1
        line = _Line(self, reader, writer)
        self._lines.add(line)
        try:
            await line.run()
        finally:
            self._lines.discard(line)

    async def pass_on(self, line: _Line, is_from_client: bool, head: bytes, body: bytes, put: _Put) -> None:
        """Forward a message, or break the line at it."""
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        cut = self.cut
        kind = head[:1] if len(head) == 5 else b""
        if cut is None or not POINTS[cut.where].is_met(is_from_client, kind, body):
            await put(head + body)
            return
        whole = head + body
        if cut.where == "copy_data":
            self._n_copied += len(body)
            if self._n_copied < cut.at_byte:
                await put(whole)
                return
            await put(whole[: len(whole) - (self._n_copied - cut.at_byte)])
        elif POINTS[cut.where].is_forwarded:
            await put(whole)
        self.cut, cut.cut_s = None, time.monotonic()
        self.made.set()
        if cut.action is not None:
            cut.action()
        elif cut.how == "black hole":
            self.is_dark = True
        elif cut.how == "reset":
            line.reset()
        else:
            line.close()


_Put = Callable[[bytes], Awaitable[None]]


class _Line:
    """A client's connection and the server's, and a task for each way."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.proxy = proxy
        self.client = (reader, writer)
        self.server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.is_lost = False
        self._tasks: list[asyncio.Task[None]] = []
        self._task = asyncio.current_task()

    async def run(self) -> None:
        target = self.proxy.target
        try:
            if target.host.startswith("/"):
                self.server = await asyncio.open_unix_connection(f"{target.host}/.s.PGSQL.{target.port}")
            else:
                self.server = await asyncio.open_connection(target.host, target.port)
        except OSError:
            self.close()
            return
        self._tasks = [
            asyncio.create_task(self._pump(True, self.client[0], self.server[1])),
            asyncio.create_task(self._pump(False, self.server[0], self.client[1])),
        ]
        try:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            if self.is_lost:  # the server does not learn that its peer is gone
                await asyncio.Event().wait()
        except asyncio.CancelledError:  # ended by its proxy
            pass
        finally:
            for task in self._tasks:
                task.cancel()
            self.close()

    async def end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def close(self) -> None:
        for end in (self.client, self.server):
            if end is not None:
                end[1].close()

    def reset(self) -> None:
        for end in (self.client, self.server):
            if end is not None:
                with suppress(OSError):
                    raw = end[1].get_extra_info("socket")
                    if raw.family != socket.AF_UNIX:
                        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end[1].transport.abort()

    async def _pump(self, is_from_client: bool, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def put(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        is_first = is_from_client
        try:
            while True:
                head = await reader.readexactly(4 if is_first else 5)
                body = await reader.readexactly(int.from_bytes(head[-4:], "big") - 4)
                is_first = False
                self.is_lost = self.is_lost or self.proxy.is_dark
                if not self.is_lost:
                    await self.proxy.pass_on(self, is_from_client, head, body, put)
        except (asyncio.IncompleteReadError, OSError):
            return
