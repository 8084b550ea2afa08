"""HTTP connections of aiohttp that a server can neither flood nor use to give one URL's answer to another.

All connections share one event loop, so work that a server can cause without limit takes time from every other row.
"""

from __future__ import annotations

import asyncio
import functools
import select
import time
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

PIECE = 4 << 10  # bytes of a head that are parsed at once
MAX_HEAD = 64 << 10  # bytes before a body: headers, and informational responses (1xx) with theirs
MAX_INFORMATIONAL = 16  # responses of 1xx before the final one
CHUNKS_PIECE = 16 << 10  # bytes of a chunked body that are parsed at once
FRAMING_SLACK, FRAMING_SHARE = 16 << 10, 1.0  # bytes of chunk headers: these, and this share of the body
QUIET = 0.02  # seconds without a byte before a connection is used again


class FloodError(aiohttp.ClientError):
    """The server sends more than an answer needs: informational responses, headers or tiny chunks without end."""


class UnaskedBytesError(aiohttp.ClientError):
    """The server answered before it was asked."""


class GuardedConnection(ResponseHandler):
    """One connection: bounded work before and around a body, and no use of bytes that no request asked for."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._awaiting = False  # the head of a final response
        self._head = self._informational = self._around = 0
        self._chunked = self._spoiled = False
        self.unasked = False  # whether bytes came that no request asked for

    def set_response_params(self, **parameters: Any) -> None:
        """Begins a request; aiohttp calls it before it sends one."""
        early = bool(self._tail or self._buffer) or self._has_unread()
        self._tail = b""
        self._awaiting, self._head, self._informational, self._around = True, 0, 0, 0
        super().set_response_params(**parameters)
        if early:
            self.set_exception(UnaskedBytesError("an answer before the request"))

    def is_connected(self) -> bool:
        """Returns whether this may be used; the connector asks before it takes an idle connection."""
        if self._tail or self._buffer:
            self.unasked = True
        usable = super().is_connected() and not (self.unasked or self._spoiled)
        return usable and not self._has_unread()

    def _has_unread(self) -> bool:
        """Returns whether the kernel holds bytes, or the end of the connection, that nobody has read."""
        held = self.transport.get_extra_info("socket") if self.transport is not None else None
        if held is None:
            return False
        poll = select.poll()
        poll.register(held.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def feed_data(self, data: Any, size: int = 0) -> None:
        """Takes a parsed response: drops informational ones and those after the final one."""
        code = data[0].code
        if not self._awaiting:
            self.unasked = self._spoiled = True
            self.force_close()
        elif self._spoiled:
            pass  # the rest of a piece that was refused
        elif 100 <= code < 200 and code != 101:
            self._informational += 1
            if self._informational > MAX_INFORMATIONAL:
                self._refuse(FloodError("informational responses without end"))
        else:
            self._awaiting, self._chunked = False, data[0].chunked
            super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        """Parses bytes of the server, of a head in small pieces."""
        if self._parser is None or not data:
            super().data_received(data)
            return
        place = 0
        while place < len(data) and self._may_go_on():
            if self._awaiting:
                piece = data[place : place + PIECE]
                self._head += len(piece)
                super().data_received(piece)
                if self._awaiting and self._head > MAX_HEAD and self._may_go_on():
                    self._refuse(FloodError("a head without end"))
            elif self._chunked:
                piece = data[place : place + CHUNKS_PIECE]
                self._receive_chunks(piece)
            else:
                piece = data[place:] if place else data
                super().data_received(piece)
            place += len(piece)

    def _may_go_on(self) -> bool:
        return not self._spoiled and self._exception is None

    def _receive_chunks(self, piece: bytes) -> None:
        """Parses a piece of a chunked body, and refuses one that is mostly chunk headers: each costs 9 microseconds."""
        payload = self._payload
        before = payload.total_bytes if payload is not None else 0
        super().data_received(piece)
        if payload is None:
            return
        self._around += len(piece) - (payload.total_bytes - before)
        if self._around > FRAMING_SLACK + FRAMING_SHARE * payload.total_bytes and not payload.is_eof():
            payload.set_exception(FloodError("a body of tiny chunks"))
            self._refuse(FloodError("a body of tiny chunks"))

    def _refuse(self, error: FloodError) -> None:
        self._spoiled = True
        self.set_exception(error)
        if self.transport is not None:
            self.transport.pause_reading()  # closed by the request that gets the error


class GuardedConnector(aiohttp.TCPConnector):
    """A connector of guarded connections, which are used again after a quiet time alone.

    Bytes that come after the next request has been sent would be taken for its answer. So a connection has to lie idle
    for `QUIET` seconds, and those of a host that ever sent such bytes are never used twice.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = functools.partial(GuardedConnection, loop=self._loop)  # type: ignore[assignment]
        self._talkative: set[Any] = set()  # keys of such hosts

    async def _get(self, key: Any, traces: Any) -> Any:
        """Returns an idle connection, or None to make one; called by aiohttp for each request."""
        while idle := self._conns.get(key):
            for connection, _ in idle:
                self._note(key, connection)
            connection, since = idle[0]
            if key in self._talkative or not connection.is_connected():
                idle.popleft()  # here, since aiohttp would go on to the next one, which may not have lain long enough
                connection.close()
                continue
            wait = since + QUIET - time.monotonic()
            if wait <= 0:
                break
            await asyncio.sleep(wait)
        return await super()._get(key, traces)

    def _release(self, key: Any, protocol: Any, *, should_close: bool = False) -> None:
        """Takes a connection back; called by aiohttp after each response."""
        self._note(key, protocol)
        super()._release(key, protocol, should_close=should_close or key in self._talkative)

    def _note(self, key: Any, connection: Any) -> None:
        if connection.unasked:
            self._talkative.add(key)
