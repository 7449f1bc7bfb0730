"""KV over a plain TCP connection: works everywhere, needs nothing.

The writer gathers headers and pages into few system calls straight from the pool; the receiver (tcp_receiver) reads
straight into the pool. The end of a batch is acknowledged, so a completed write is in the other engine's memory.

Failure cases of the writer, all TransferError: nobody listens, the receiver closes (token unknown, a page not
granted, its process ended), no byte accepted for STALL_SECONDS, a checksum wrong at the receiver.
"""

from __future__ import annotations

import contextlib
import mmap
import socket
from collections.abc import Callable, Sequence

import msgspec

from epd_runtime.transfer.base import (
    STALL_SECONDS,
    Backend,
    Connection,
    Entry,
    Pool,
    Receiver,
    TransferError,
    chunks,
)
from epd_runtime.transfer.tcp_receiver import TcpReceiver
from epd_runtime.transfer.tcp_wire import ACK_OK, MAGIC, Header, TcpDescriptor, checksum, pack_header

_GATHER_BYTES = 1 << 20
_GATHER_BUFFERS = 256  # below IOV_MAX

Buffer = bytes | memoryview


class TcpConnection(Connection):
    """One socket to the receiver of one decode engine."""

    def __init__(self, pool: memoryview, descriptor: TcpDescriptor) -> None:
        """Connect; blocks for at most STALL_SECONDS. Raises TransferError."""
        self._pool = pool
        self._peer = f"decode's data port {descriptor.host}:{descriptor.port}"
        try:
            self._socket = socket.create_connection((descriptor.host, descriptor.port), timeout=STALL_SECONDS)
        except (OSError, OverflowError, ValueError) as error:
            raise TransferError(f"cannot connect to {self._peer}: {error}") from None
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._send([MAGIC + descriptor.token])

    def write(self, entries: Sequence[Entry], ticket: int, stop: Callable[[], bool]) -> None:
        """Send all entries and wait until the receiver has them."""
        gathered: list[Buffer] = []
        size = 0
        for entry in chunks(entries):
            if stop():
                break
            payload = self._pool[entry.source : entry.source + entry.nbytes]
            gathered += [pack_header(Header(ticket, entry.destination, entry.nbytes, checksum(payload))), payload]
            size += entry.nbytes
            if size >= _GATHER_BYTES or len(gathered) >= _GATHER_BUFFERS:
                self._send(gathered)
                gathered, size = [], 0
        gathered.append(pack_header(Header(ticket, 0, 0, 0)))
        self._send(gathered)
        self._await_ack()

    def interrupt(self) -> None:
        """Break the connection under a write that may be blocked in it."""
        with contextlib.suppress(OSError):  # closed before, or the other side was first
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """See Connection."""
        self._socket.close()

    def _send(self, buffers: list[Buffer]) -> None:
        """Send everything; the socket's timeout starts again with every byte that leaves."""
        views = [memoryview(buffer) for buffer in buffers]
        try:
            while views:
                sent = self._socket.sendmsg(views)
                while views and sent >= len(views[0]):
                    sent -= len(views.pop(0))
                if sent:
                    views[0] = views[0][sent:]
        except TimeoutError:
            raise TransferError(f"{self._peer} took no byte for {STALL_SECONDS:.0f} s") from None
        except OSError as error:
            raise TransferError(f"{self._peer} closed the connection: {error}") from None

    def _await_ack(self) -> None:
        """The receiver answers as soon as it has read everything; meanwhile the send buffer shows its progress."""
        try:
            answer = self._socket.recv(1)
        except TimeoutError:
            raise TransferError(f"{self._peer} did not confirm a write within {STALL_SECONDS:.0f} s") from None
        except OSError as error:
            raise TransferError(f"{self._peer} closed the connection: {error}") from None
        if not answer:
            raise TransferError(f"{self._peer} closed the connection; its log says why")
        if answer[0] != ACK_OK:
            raise TransferError(f"KV pages arrived corrupted at {self._peer}: their checksum is wrong")


class TcpBackend(Backend):
    """The backend's entry in the registry."""

    def allocate_pool(self, nbytes: int) -> Pool:
        """Private memory: the receiver itself writes into it."""
        return Pool(mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))

    def open_receiver(self, pool: memoryview, page_bytes: int, host: str) -> Receiver:
        """Listen on a free port of host."""
        return TcpReceiver(pool, page_bytes, host)

    def connect(self, pool: memoryview, descriptor: bytes) -> Connection:
        """Connect to a TcpReceiver."""
        try:
            target = msgspec.msgpack.decode(descriptor, type=TcpDescriptor)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise TransferError(f"decode's descriptor is malformed: {error}; does it use backend tcp too?") from None
        return TcpConnection(pool, target)


BACKEND = TcpBackend()
