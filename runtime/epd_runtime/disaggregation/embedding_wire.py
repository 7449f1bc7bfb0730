"""One image's embedding on its way from an encoder to the engine that needs it.

ZMQ, encoder DEALER → receiver ROUTER, so that delivery is acknowledged: the encoder answers its HTTP request
only after the receiver has the bytes. Frames of a part: header (msgpack EmbeddingHeader), payload (raw rows, C
order, native float type). Frames of the answer: EmbeddingAck. Nothing is pickled; sizes and a checksum are
verified before the payload is used.
"""

from __future__ import annotations

import zlib

import msgspec

from epd_runtime.messages import Span

WIRE_VERSION = 1
MAX_PAYLOAD = 1 << 31  # bytes of one embedding
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
    sent_at: float


class EmbeddingAck(msgspec.Struct, frozen=True):
    """The receiver has the part, or refused it and says why."""

    request_id: str
    part_idx: int
    error: str = ""


class WireError(ValueError):
    """A frame that no encoder of ours sends; the message says what is wrong with it."""


encode = msgspec.msgpack.Encoder().encode
decode_ack = msgspec.msgpack.Decoder(EmbeddingAck).decode
_decode_header = msgspec.msgpack.Decoder(EmbeddingHeader).decode


def checksum(payload: memoryview | bytes) -> int:
    """The checksum that EmbeddingHeader carries."""
    return zlib.crc32(payload)


def decode_header(frame: bytes, payload: memoryview) -> EmbeddingHeader:
    """Parse a header and check the payload against it; raises WireError."""
    try:
        header = _decode_header(frame)
    except msgspec.MsgspecError as error:
        raise WireError(f"malformed header: {error}") from None
    if header.version != WIRE_VERSION:
        raise WireError(f"wire version {header.version}, this engine speaks {WIRE_VERSION}")
    if header.dtype not in ITEM_SIZE:
        raise WireError(f"data type {header.dtype!r} is none of {', '.join(ITEM_SIZE)}")
    if header.num_rows < 1 or header.hidden < 1:
        raise WireError(f"shape ({header.num_rows}, {header.hidden}) is empty")
    expected = header.num_rows * header.hidden * ITEM_SIZE[header.dtype]
    if expected > MAX_PAYLOAD or len(payload) != expected:
        raise WireError(f"payload of {len(payload)} bytes, the header promises {expected}")
    if checksum(payload) != header.checksum:
        raise WireError("payload does not match its checksum")
    return header
