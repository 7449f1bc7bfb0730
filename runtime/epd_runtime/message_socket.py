"""Messages over a Unix stream socket between the two processes of a server: 8 bytes of length, then that many bytes.

Neither side ever waits: what the socket does not take is kept and goes out with flush(), when the descriptor is
writable again. The reader is the event loop or poller of its process; a messaging library's thread would cost two more
wake-ups per step of the engine.
"""

from __future__ import annotations

import socket
import struct

HEADER = struct.Struct("<Q")
READ_BYTES = 1 << 16  # at once; more would be mapped and unmapped for every call


class MessageSocket:
    """One end. Bounded by what its owner has under way: nothing is dropped, nothing is refused."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._inbox = bytearray()
        self._outbox = bytearray()
        self.is_open = True  # until the other side is gone

    def fileno(self) -> int:
        """For pollers and event loops."""
        return self._sock.fileno()

    @property
    def has_backlog(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._outbox)

    def send(self, message: bytes) -> None:
        """Send or keep one message."""
        header = HEADER.pack(len(message))
        if self._outbox:
            self._outbox += header
            self._outbox += message
            self.flush()
            return
        sent = self._try_send(header, message)
        if sent < len(header) + len(message):
            self._outbox += (header + message)[sent:]

    def flush(self) -> None:
        """Send what was kept, as far as the socket takes it."""
        while self._outbox:
            sent = self._try_send(self._outbox[: 4 * READ_BYTES])
            if not sent:
                return
            del self._outbox[:sent]

    def receive(self, max_reads: int = 1) -> list[bytes]:
        """Messages that are complete after so many reads, in their order; is_open tells whether more can come."""
        for _ in range(max_reads):
            try:
                data = self._sock.recv(READ_BYTES)
            except BlockingIOError:
                break
            except ConnectionError:
                data = b""
            self.is_open = bool(data)
            self._inbox += data
            if len(data) < READ_BYTES:
                break
        return self._split()

    def close(self) -> None:
        """Close the socket; what was not sent is lost."""
        self._sock.close()

    def _split(self) -> list[bytes]:
        inbox, messages, start = self._inbox, [], 0
        while len(inbox) - start >= HEADER.size:
            (size,) = HEADER.unpack_from(inbox, start)
            end = start + HEADER.size + size
            if end > len(inbox):
                break
            messages.append(bytes(inbox[start + HEADER.size : end]))
            start = end
        del inbox[:start]
        return messages

    def _try_send(self, *parts: bytes | bytearray) -> int:
        """Bytes taken; all of them when the other side is gone, as nobody will read them."""
        try:
            return self._sock.sendmsg(parts)
        except BlockingIOError:
            return 0
        except ConnectionError:
            return sum(map(len, parts))
