"""The tcp backend's receiver: reads pages from data connections straight into the pool.

States of a data connection: PREAMBLE (who writes?) → HEADER (where does it belong?) ⇄ PAYLOAD (read into
place). What is wrong closes that connection, with a line in the log, and nothing else: an unknown token, a
preamble that does not come in time, a range that is not granted to the ticket. A wrong checksum leaves the stream
intact and is only reported.

All of it runs on one event loop, where a read and the memory it goes to are chosen in one step. A revoked range
therefore cannot be written later: a connection that is inside it is closed by revoke().
"""

from __future__ import annotations

import asyncio
import enum
import hmac
import logging
import socket
from collections.abc import Sequence

import msgspec
import numpy as np

from epd_runtime.transfer.base import STALL_SECONDS, Inbound, Receiver
from epd_runtime.transfer.grants import GrantTable, permits
from epd_runtime.transfer.tcp_wire import (
    ACK_CORRUPT,
    ACK_OK,
    HEADER_BYTES,
    MAGIC,
    PREAMBLE_BYTES,
    Header,
    TcpDescriptor,
    checksum,
    new_token,
    unpack_header,
)

log = logging.getLogger(__name__)

MAX_STRANGERS = 64  # connections that have not shown a token
MAX_CONNECTIONS_PER_WRITER = 8
MAX_UNREAD_ACKS = 1024


class TcpReceiver(Receiver):
    """Owns the listening socket; knows every writer by its token."""

    def __init__(self, pool: memoryview, page_bytes: int, host: str) -> None:
        self.pool = pool.cast("B")
        self.page_bytes = page_bytes
        self.strangers: set[_DataConnection] = set()
        self._host = host
        self._inbounds: dict[bytes, TcpInbound] = {}
        self._server: asyncio.Server | None = None
        self._port = 0

    async def start(self) -> None:
        """Listen on a free port; raises OSError."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _DataConnection(self), self._host, 0)
        self._port = self._server.sockets[0].getsockname()[1]

    def open(self) -> Inbound:
        """Expect a writer that shows the token of this descriptor."""
        inbound = TcpInbound(self, TcpDescriptor(self._host, self._port, new_token()))
        self._inbounds[inbound.token] = inbound
        return inbound

    def identify(self, token: bytes) -> TcpInbound | None:
        """The writer with this token; takes as long for a wrong one."""
        found = None
        for known, inbound in self._inbounds.items():
            if hmac.compare_digest(known, token):
                found = inbound
        return found

    def forget(self, inbound: TcpInbound) -> None:
        """Accept its token no longer."""
        self._inbounds.pop(inbound.token, None)

    def close(self) -> None:
        """Stop listening and drop all writers."""
        if self._server is not None:
            self._server.close()
        for inbound in list(self._inbounds.values()):
            inbound.close()
        for connection in list(self.strangers):
            connection.abort("the receiver closes", logging.DEBUG)


class TcpInbound(Inbound):
    """Grants of one writer, and its data connections."""

    def __init__(self, receiver: TcpReceiver, target: TcpDescriptor) -> None:
        num_pages = len(receiver.pool) // receiver.page_bytes
        self.token = target.token
        self.owners = np.zeros(num_pages, np.uint64)
        self.connections: set[_DataConnection] = set()
        self._receiver = receiver
        self._table = GrantTable(self.owners)
        self._descriptor = msgspec.msgpack.encode(target)

    @property
    def descriptor(self) -> bytes:
        """TcpDescriptor in msgpack."""
        return self._descriptor

    def grant(self, ticket: int, pages: Sequence[int]) -> None:
        """See Inbound."""
        self._table.grant(ticket, pages)

    def revoke(self, ticket: int) -> bool:
        """Closes a connection that is in the middle of the ticket's pages; others stay."""
        self._table.revoke(ticket)
        for connection in list(self.connections):
            if connection.is_inside(ticket):
                connection.abort(f"ticket {ticket} ended in the middle of a write", logging.INFO)
        return True

    def close(self) -> None:
        """Drop the writer's connections."""
        self._receiver.forget(self)
        for connection in list(self.connections):
            connection.abort("the writer's control connection ended", logging.DEBUG)


class _DataConnection(asyncio.BufferedProtocol):
    """One data connection; `_target` is where the next bytes go, of which `_filled` are there."""

    class State(enum.Enum):
        PREAMBLE = enum.auto()
        HEADER = enum.auto()
        PAYLOAD = enum.auto()

    def __init__(self, receiver: TcpReceiver) -> None:
        self._receiver = receiver
        self._state = self.State.PREAMBLE
        self._small = bytearray(PREAMBLE_BYTES)
        self._target = memoryview(self._small)
        self._filled = 0
        self._header = Header(0, 0, 0, 0)
        self._corrupt = False
        self._inbound: TcpInbound | None = None
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._peer = "?"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._peer = str(transport.get_extra_info("peername"))
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._receiver.strangers.add(self)
        if len(self._receiver.strangers) > MAX_STRANGERS:
            self.abort(f"more than {MAX_STRANGERS} connections wait to show a token")
            return
        self._timer = asyncio.get_running_loop().call_later(STALL_SECONDS, self.abort, "no token came in time")

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._target[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        if self._filled < len(self._target):
            return
        if self._state is self.State.PREAMBLE:
            self._preamble_complete()
        elif self._state is self.State.HEADER:
            self._header_complete(unpack_header(self._target))
        else:
            self._corrupt |= checksum(self._target) != self._header.checksum
            self._expect_header()

    def is_inside(self, ticket: int) -> bool:
        """Whether the next byte would be written into pages of the ticket."""
        return self._state is self.State.PAYLOAD and self._header.ticket == ticket

    def abort(self, reason: str, level: int = logging.WARNING) -> None:
        """Close at once; nothing is read any more."""
        if self._transport is not None and not self._transport.is_closing():
            log.log(level, "closed the KV data connection from %s: %s", self._peer, reason)
            self._transport.abort()
        self._leave()

    def _leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._receiver.strangers.discard(self)
        if self._inbound is not None:
            self._inbound.connections.discard(self)

    def _expect_header(self) -> None:
        self._state = self.State.HEADER
        self._target, self._filled = memoryview(self._small)[:HEADER_BYTES], 0

    def _preamble_complete(self) -> None:
        magic, token = bytes(self._small[: len(MAGIC)]), bytes(self._small[len(MAGIC) :])
        inbound = self._receiver.identify(token) if magic == MAGIC else None
        if inbound is None:
            self.abort("it is no writer of ours: wrong protocol, or a token that is not valid (any more)")
            return
        if len(inbound.connections) >= MAX_CONNECTIONS_PER_WRITER:
            self.abort(f"this writer has {MAX_CONNECTIONS_PER_WRITER} connections already")
            return
        self._leave()
        self._inbound = inbound
        inbound.connections.add(self)
        self._small = bytearray(HEADER_BYTES)
        self._expect_header()

    def _header_complete(self, header: Header) -> None:
        assert self._inbound is not None
        assert self._transport is not None
        if header.nbytes == 0:
            if self._transport.get_write_buffer_size() > MAX_UNREAD_ACKS:
                self.abort("it does not read its acknowledgements")
                return
            self._transport.write(bytes([ACK_CORRUPT if self._corrupt else ACK_OK]))
            self._corrupt = False
            self._expect_header()
            return
        if not permits(self._inbound.owners, self._receiver.page_bytes, header.ticket, header.offset, header.nbytes):
            self.abort(
                f"ticket {header.ticket} has no grant for bytes {header.offset} to {header.offset + header.nbytes}"
            )
            return
        self._header = header
        self._state = self.State.PAYLOAD
        self._target = self._receiver.pool[header.offset : header.offset + header.nbytes]
        self._filled = 0
