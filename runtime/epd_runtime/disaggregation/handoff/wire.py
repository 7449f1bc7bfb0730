"""Control messages of the KV handoff: what decode and prefill say to each other, and how it is framed.

One TCP connection per pair, opened by decode to prefill's bootstrap port. A frame is a 4-byte little-endian length and
one msgpack message of at most MAX_FRAME bytes (MAX_HELLO before the two know each other).

    decode → prefill                                  prefill → decode
    Hello      first, and once                        Welcome     first: the engines fit, or
                                                      Refused     the reason why not; the connection ends
    Join       the request of a room is here          Known       prefill's half is here too, and queues for pages
                                                      Prepared    it has pages; the prompt's length
    Accept     pages for it, granted                  Done        every page is in decode's memory
    Taken      the room has ended well                RoomFailed  the room has ended; prefill writes no more
    Abort      decode leaves the room                 AbortAck    the room has ended; prefill writes no more
    Ping       every second                           Ping        every second

A room number may be used again as soon as it has ended on one side, while messages of its earlier use are still on
their way. So decode draws a ticket for each join; every message about a room carries it, and so does every write. A
message with another ticket than the room's present one is ignored.

After its Join a room hears, in this order: at most one Known, at most one Prepared, then at most one Done, then
possibly RoomFailed or AbortAck; Done answered by Taken, RoomFailed and AbortAck are ends. Messages cross: either side
ignores one for a room that it does not know (any more). A message that fits no crossing is a ProtocolError and ends
the connection.
"""

from __future__ import annotations

import struct
from typing import Annotated, TypeAlias

import msgspec

from epd_runtime.disaggregation.handoff.contract import PrefillResult
from epd_runtime.kvcache.layout import KVLayout

VERSION = 1
MAX_FRAME = 16 << 20
MAX_HELLO = 64 << 10
MAX_ROOM = 1 << 63  # rooms are below
_LENGTH = struct.Struct("<I")

Room = Annotated[int, msgspec.Meta(ge=0, le=MAX_ROOM - 1)]
Ticket = Room
Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 40)]


class ProtocolError(ValueError):
    """The peer sent what no engine of ours sends; the message says what."""


class Hello(msgspec.Struct, frozen=True, tag=True):
    """Who decode is, and how to write into its memory (transfer.base: descriptor)."""

    version: int
    backend: str
    layout: KVLayout
    descriptor: bytes


class Join(msgspec.Struct, frozen=True, tag=True):
    """Decode has its half of the request."""

    room: Room
    ticket: Ticket


class Accept(msgspec.Struct, frozen=True, tag=True):
    """Pages of decode's pool, in the order of the prompt; granted until the room ends."""

    room: Room
    ticket: Ticket
    pages: list[Count]


class Taken(msgspec.Struct, frozen=True, tag=True):
    """Answer to Done: the pages belong to decode's request now."""

    room: Room
    ticket: Ticket


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Decode leaves; status and message are for prefill's client."""

    room: Room
    ticket: Ticket
    status: int
    message: str


class Ping(msgspec.Struct, frozen=True, tag=True):
    """Still here."""


class Welcome(msgspec.Struct, frozen=True, tag=True):
    """Prefill knows decode now."""

    version: int


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The engines do not fit together, or prefill takes no more of them."""

    status: int
    message: str


class Known(msgspec.Struct, frozen=True, tag=True):
    """Prefill has its half and will say Prepared; until then no deadline runs."""

    room: Room
    ticket: Ticket


class PromptReady(msgspec.Struct, frozen=True, tag="Prepared"):
    """Prefill has pages for its half; the prompt has num_tokens tokens."""

    room: Room
    ticket: Ticket
    num_tokens: Count


class Done(msgspec.Struct, frozen=True, tag=True):
    """Every page is written. started: time.time() at prefill when the first one was on its way."""

    room: Room
    ticket: Ticket
    result: PrefillResult
    started: float


class RoomFailed(msgspec.Struct, frozen=True, tag=True):
    """Prefill cannot serve the room; nothing is written into its pages any more."""

    room: Room
    ticket: Ticket
    status: int
    message: str


class AbortAck(msgspec.Struct, frozen=True, tag=True):
    """Answer to Abort: nothing is written into the room's pages any more."""

    room: Room
    ticket: Ticket


ToPrefill: TypeAlias = Join | Accept | Taken | Abort | Ping
ToDecode: TypeAlias = Welcome | Refused | Known | PromptReady | Done | RoomFailed | AbortAck | Ping
Message: TypeAlias = Hello | ToPrefill | ToDecode

_encoder = msgspec.msgpack.Encoder()
decode_hello = msgspec.msgpack.Decoder(Hello).decode
decode_to_prefill = msgspec.msgpack.Decoder(ToPrefill).decode
decode_to_decode = msgspec.msgpack.Decoder(ToDecode).decode


def frame(message: Message) -> bytes:
    """A message on the wire; raises ProtocolError when it is too long to send."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME:
        raise ProtocolError(f"{type(message).__name__} of {len(body)} bytes; a message has at most {MAX_FRAME}")
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Cuts a byte stream into frames. Holds at most one incomplete frame."""

    def __init__(self) -> None:
        self.limit = MAX_HELLO  # bytes of a frame
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Take bytes from the connection."""
        self._buffer += data

    def next(self) -> bytes | None:
        """The next complete frame; raises ProtocolError on one that is too long."""
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > self.limit:
            raise ProtocolError(f"a frame of {length} bytes; at most {self.limit} are allowed here")
        end = _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[_LENGTH.size : end])
        del self._buffer[:end]
        return body

    @property
    def is_inside_frame(self) -> bool:
        """Whether part of a frame has arrived and the rest has not."""
        return bool(self._buffer)


def mismatch(hello: Hello, layout: KVLayout, backend: str) -> str | None:
    """Why decode's KV cannot be written by this prefill engine; None if it can. The number of pages may differ."""
    if hello.version != VERSION:
        return f"decode speaks version {hello.version} of the handoff, prefill version {VERSION}; run one release"
    if hello.backend != backend:
        return f"--disaggregation-transfer-backend differs: decode has {hello.backend!r}, prefill {backend!r}"
    for name in ("model", "dtype", "page_size", "page_bytes"):
        theirs, ours = getattr(hello.layout, name), getattr(layout, name)
        if theirs != ours:
            return f"the KV layouts differ in {name}: decode has {theirs!r}, prefill {ours!r}; start both alike"
    return None
