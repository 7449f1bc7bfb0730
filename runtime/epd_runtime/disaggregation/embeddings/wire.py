"""One image's embedding on its way from an encoder to the engine that needs it.

ZMQ, encoder DEALER → receiver ROUTER, so that delivery is acknowledged: the encoder answers its HTTP request
only after the receiver has the bytes. Frames of a part: header (msgpack EmbeddingHeader), payload (raw rows, C
order, native float type). Frames of the answer: EmbeddingAck. Nothing is pickled; sizes and a checksum are
verified before the payload is used. Answers come in the order of the parts; either end may be a stranger, so whatever
does not parse is a WireError.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import TypeVar

import msgspec

from epd_runtime.messages import Span

WIRE_VERSION = 1
MAX_PAYLOAD = 1 << 30  # bytes of one embedding
MAX_HEADER = 1 << 16  # bytes of a header, and of an answer
MAX_ERROR = 1000  # characters of an error that are passed on
UNKNOWN_PART = -1  # part_idx of the answer to a part whose header could not be read
ITEM_SIZE = {"float32": 4, "bfloat16": 2, "float16": 2}


class EmbeddingHeader(msgspec.Struct, frozen=True):
    """Everything about a part but its rows."""

    version: int
    request_id: str
    part_idx: int
    num_rows: int
    hidden: int
    dtype: str
    checksum: int  # crc32 of the payload
    spans: list[Span]
    sent_at: float  # time.time()


class EmbeddingAck(msgspec.Struct, frozen=True):
    """The receiver has the part, or refused it and says why. Without its header: request_id "" and UNKNOWN_PART."""

    request_id: str
    part_idx: int
    error: str = ""


class WireError(ValueError):
    """A frame that no encoder of ours sends; the message says what is wrong with it."""


Message = TypeVar("Message", EmbeddingHeader, EmbeddingAck)

encode = msgspec.msgpack.Encoder().encode
_decode_ack = msgspec.msgpack.Decoder(EmbeddingAck).decode
_decode_header = msgspec.msgpack.Decoder(EmbeddingHeader).decode


def checksum(payload: memoryview | bytes) -> int:
    """The checksum that EmbeddingHeader carries."""
    return zlib.crc32(payload)


def decode_ack(frame: bytes) -> EmbeddingAck:
    """Parse an answer; raises WireError."""
    return _decode("answer", _decode_ack, frame)


def decode_header(frame: bytes) -> EmbeddingHeader:
    """Parse a header; raises WireError. What it says is checked by check_part()."""
    return _decode("header", _decode_header, frame)


def _decode(what: str, decode: Callable[[bytes], Message], frame: bytes) -> Message:
    if len(frame) > MAX_HEADER:
        raise WireError(f"{what} of {len(frame)} bytes, at most {MAX_HEADER} are allowed")
    try:
        return decode(frame)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:  # the latter two: wrong UTF-8, deep nesting
        raise WireError(f"malformed {what}: {error}") from None


def check_part(header: EmbeddingHeader, payload: memoryview) -> None:
    """Check a header's values, and the payload against them; raises WireError."""
    if header.version != WIRE_VERSION:
        raise WireError(f"wire version {header.version}, this engine speaks {WIRE_VERSION}")
    if header.dtype not in ITEM_SIZE:
        raise WireError(f"data type {header.dtype!r} is none of {', '.join(ITEM_SIZE)}")
    if header.num_rows < 1 or header.hidden < 1:
        raise WireError(f"shape ({header.num_rows}, {header.hidden}) is empty")
    expected = header.num_rows * header.hidden * ITEM_SIZE[header.dtype]
    if expected > MAX_PAYLOAD or len(payload) != expected:
        raise WireError(f"payload of {len(payload)} bytes, the header promises {expected}")
    if not all(
        map(math.isfinite, [header.sent_at, *(time for span in header.spans for time in (span.start, span.end))])
    ):
        raise WireError("a time is not a finite number")
    if checksum(payload) != header.checksum:
        raise WireError("payload does not match its checksum")
