"""What an engine and its compile server say to each other: msgpack behind its length, over two pipes.

engine ──▶ server   Setup, once; then Order after Order
engine ◀── server   Begun, then Compiled or Failed, for each order; both in any order among orders
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TypeAlias

import msgspec

from epd_runtime.messages import Grammar

_LENGTH = struct.Struct("<Q")


class Setup(msgspec.Struct, frozen=True):
    """Whose grammars are compiled, and how many seconds of a processor each may take."""

    folder: str
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    seconds: float


class Order(msgspec.Struct, frozen=True):
    """Compile this."""

    number: int
    grammar: Grammar


class Begun(msgspec.Struct, frozen=True, tag=True):
    """It is being compiled."""

    number: int


class Compiled(msgspec.Struct, frozen=True, tag=True):
    """xgrammar's serialised form."""

    number: int
    content: bytes


class Failed(msgspec.Struct, frozen=True, tag=True):
    """It cannot be compiled, for that reason; is_overdue: not within Setup.seconds."""

    number: int
    reason: str
    is_overdue: bool = False


Answer: TypeAlias = Begun | Compiled | Failed

decode_setup = msgspec.msgpack.Decoder(Setup).decode
decode_order = msgspec.msgpack.Decoder(Order).decode
decode_answer: Callable[[bytes], Answer] = msgspec.msgpack.Decoder(Answer).decode


def frame(message: Setup | Order | Answer) -> bytes:
    """A message as it stands in the pipe."""
    content = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(content)) + content


def read_frame(read: Callable[[int], bytes]) -> bytes | None:
    """One message's bytes, by a read(n) that gives n bytes or, at the end, fewer; None at the end."""
    head = read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (size,) = _LENGTH.unpack(head)
    content = read(size)
    return content if len(content) == size else None
