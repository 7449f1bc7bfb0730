"""What travels on a data connection of the tcp backend. Little-endian, fixed sizes, no pickle.

    writer → receiver   PREAMBLE: magic, token of the Inbound. Then any number of
                        HEADER: ticket, destination offset, length, checksum; then that many bytes
                        HEADER with length 0: everything so far is to be acknowledged
    receiver → writer   one byte for each such request: ACK_OK, or ACK_CORRUPT if a checksum since the last one
    was wrong

The checksum is the sum of the payload's 64-bit words: 20 to 50 GB/s here against 3 for crc32, which would cost
as much as the copy itself. It finds what TCP's own checksum lets through and what a mistake in offsets does;
words that change places within one entry it does not find.
"""

from __future__ import annotations

import secrets
import struct
from typing import NamedTuple

import msgspec
import numpy as np

MAGIC = b"EPDKV\x00\x00\x01"
TOKEN_BYTES = 16
PREAMBLE_BYTES = len(MAGIC) + TOKEN_BYTES
HEADER_BYTES = 32
ACK_OK = 0
ACK_CORRUPT = 1

_HEADER = struct.Struct("<QQQQ")


class Header(NamedTuple):
    """What follows, and where it belongs; offset and nbytes in bytes."""

    ticket: int
    offset: int
    nbytes: int
    checksum: int


class TcpDescriptor(msgspec.Struct, frozen=True):
    """Where and as whom a writer connects."""

    host: str
    port: int
    token: bytes


def new_token() -> bytes:
    """A secret that only one writer learns."""
    return secrets.token_bytes(TOKEN_BYTES)


def pack_header(header: Header) -> bytes:
    """The header on the wire."""
    return _HEADER.pack(*header)


def unpack_header(data: bytes | bytearray | memoryview) -> Header:
    """A header from HEADER_BYTES bytes; every such string is one."""
    return Header(*_HEADER.unpack(data))


def checksum(payload: memoryview) -> int:
    """Sum of 64-bit words modulo 2^64, the rest of the bytes as one more word."""
    words = len(payload) // 8
    total = int(np.frombuffer(payload, np.uint64, words).sum(dtype=np.uint64)) if words else 0
    return (total + int.from_bytes(payload[words * 8 :], "little")) % (1 << 64)
