"""One control connection, either end: frames in and out, heartbeats, and one end.

States: HELLO (frames are short, time is too) → OPEN → CLOSED. What closes a link, always with a reason and exactly
one call of `on_lost`:

    EOF, reset                            the peer's process has ended, or closed
    no byte for times.silence             the peer hangs, or the network is cut
    a frame unfinished for times.silence  half frames; also a hello that does not come
    garbage, an oversized frame           ProtocolError, also when on_message raises it
    MAX_UNSENT bytes wait to be sent      the peer does not read
    close()                               this side's decision

A side that was itself stopped for a while reads what has arrived meanwhile before it judges the peer: the event loop
handles sockets before timers.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

import msgspec

from epd_runtime.disaggregation.handoff.env import HandoffTimes
from epd_runtime.disaggregation.handoff.wire import MAX_FRAME, FrameReader, Message, Ping, ProtocolError, frame

log = logging.getLogger(__name__)

MAX_UNSENT = 64 << 20


class Link(asyncio.Protocol):
    """Callbacks run on the event loop; after on_lost there are none."""

    def __init__(
        self,
        times: HandoffTimes,
        on_connected: Callable[[Link], None],
        on_frame: Callable[[Link, bytes], None],
        on_lost: Callable[[Link, str], None],
    ) -> None:
        self.peer = "?"
        self._times = times
        self._on_connected = on_connected
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._reader = FrameReader()
        self._is_open = False
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._last_byte = 0.0
        self._last_frame = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        host, port = (transport.get_extra_info("peername") or ("?", 0))[:2]
        self.peer = f"{host}:{port}"
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._last_byte = self._last_frame = asyncio.get_running_loop().time()
        self._on_connected(self)
        self._beat()

    def established(self) -> None:
        """The hello was right: longer frames are allowed, pings begin."""
        self._is_open = True
        self._reader.limit = MAX_FRAME

    def send(self, message: Message) -> None:
        """Queue a message; swallowed when the link is closed."""
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(frame(message))
        if self._transport.get_write_buffer_size() > MAX_UNSENT:
            self.close(f"it does not read: {MAX_UNSENT} bytes wait to be sent to it")

    def close(self, reason: str, *, flush: bool = False) -> None:
        """End the link and report it lost; flush sends first what is queued."""
        transport, self._transport = self._transport, None
        if transport is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        if flush:
            transport.close()
        else:
            transport.abort()
        self._on_lost(self, reason)

    def data_received(self, data: bytes) -> None:
        now = asyncio.get_running_loop().time()
        self._last_byte = now
        self._reader.feed(data)
        try:
            while self._transport is not None and (body := self._reader.next()) is not None:
                self._last_frame = now
                self._on_frame(self, body)
        except (ProtocolError, msgspec.MsgspecError, ValueError, RecursionError) as error:
            self.close(f"it does not speak the handoff protocol: {error}")
        if not self._reader.is_inside_frame:
            self._last_frame = now

    def eof_received(self) -> None:
        self.close("it closed the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(f"the connection was lost: {exc}" if exc else "it closed the connection")

    def _beat(self) -> None:
        """Every heartbeat: is the peer alive? We are."""
        loop = asyncio.get_running_loop()
        self._timer = None
        silence = self._times.silence
        if loop.time() - self._last_byte > silence:
            self.close(f"it was silent for {silence:g} s")
        elif loop.time() - self._last_frame > silence and (self._reader.is_inside_frame or not self._is_open):
            self.close(f"it did not finish a message within {silence:g} s")
        else:
            if self._is_open:
                self.send(Ping())
            if self._transport is not None:
                self._timer = loop.call_later(self._times.heartbeat, self._beat)
