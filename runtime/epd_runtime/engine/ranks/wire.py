"""Messages between rank 0 and another rank: msgpack behind a length of four bytes, over TCP."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from typing import TypeAlias, TypeVar

import msgspec

from epd_runtime.engine.ranks import SILENCE_SECONDS, STEP_SECONDS

MAX_FROM_RANK = 1 << 16
MAX_FROM_LEADER = 1 << 28  # a step's page table: 512 sequences of a million tokens are 128 MiB


class RankError(RuntimeError):
    """A rank is gone, silent or says what it must not; the message is for the user."""


class Hello(msgspec.Struct, frozen=True, tag=True):
    """The first message of a rank."""

    rank: int
    settings: dict[str, str]


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """A rank has its weights; num_pages of KV fit beside them."""

    num_pages: int
    weight_bytes: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    """A rank cannot go on."""

    message: str


class Welcome(msgspec.Struct, frozen=True, tag=True):
    """Every rank has come; the process group's store is at this port of the address that the rank connected to."""

    store_port: int


class Refused(msgspec.Struct, frozen=True, tag=True):
    """Rank 0 does not take this rank."""

    message: str


class Begin(msgspec.Struct, frozen=True, tag=True):
    """Every rank has loaded; pools have so many pages."""

    num_pages: int


class Ints(msgspec.Struct, frozen=True, array_like=True):
    """A tensor of integers below 2^31, as int32 in C order."""

    shape: tuple[int, ...]
    data: bytes


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """attention.batch.Sequence."""

    start: int
    q_len: int
    kv_len: int
    pages: Ints


class Step(msgspec.Struct, frozen=True, tag=True):
    """One forward pass. embedding_width 0: no embeddings follow."""

    tensors: dict[str, Ints]  # fields of ForwardBatch
    prefills: list[Chunk]
    embedding_width: int
    scored: list[tuple[int, int]]  # runs of rows (first, count) whose logits are wanted before those of the batch


FromRank: TypeAlias = Hello | Loaded | Failed
FromLeader: TypeAlias = Welcome | Refused | Begin | Step

Message = TypeVar("Message")

_encode = msgspec.msgpack.Encoder().encode
_from_rank: msgspec.msgpack.Decoder[FromRank] = msgspec.msgpack.Decoder(FromRank)
_from_leader: msgspec.msgpack.Decoder[FromLeader] = msgspec.msgpack.Decoder(FromLeader)


class Connection:
    """One end of a connection. One thread may send while another receives."""

    def __init__(self, sock: socket.socket) -> None:
        """sock: connected; owned from now on."""
        self._sock = sock
        self.peer, self.address = sock.getpeername()[0], sock.getsockname()[0]
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        seconds = int(SILENCE_SECONDS)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            (socket.TCP_KEEPIDLE, seconds // 4),
            (socket.TCP_KEEPINTVL, seconds // 4),
            (socket.TCP_KEEPCNT, 3),
            (socket.TCP_USER_TIMEOUT, 1000 * seconds),  # the same for bytes that were sent
        ):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        limit = int(STEP_SECONDS).to_bytes(8, "little") + bytes(8)  # a struct timeval
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def fileno(self) -> int:
        """For pollers."""
        return self._sock.fileno()

    def send(self, message: FromRank | FromLeader) -> None:
        """Raises RankError when the other end is gone or takes nothing for STEP_SECONDS."""
        body = _encode(message)
        try:
            self._sock.sendall(len(body).to_bytes(4, "little") + body)
        except OSError as error:
            raise RankError(f"cannot send to {self.peer}: {error.strerror or error}") from None

    def receive_from_rank(self, deadline: float | None) -> FromRank:
        """The next message, at rank 0; deadline in seconds of time.monotonic(). Raises RankError."""
        return self._decoded(_from_rank, self._read(MAX_FROM_RANK, deadline))

    def receive_from_leader(self, deadline: float | None) -> FromLeader:
        """The next message, at another rank; deadline in seconds of time.monotonic(). Raises RankError."""
        return self._decoded(_from_leader, self._read(MAX_FROM_LEADER, deadline))

    def wait_for_end(self) -> None:
        """Return when the other end is gone, whatever else it has sent."""
        poller = select.poll()
        poller.register(self._sock, select.POLLRDHUP)
        poller.poll()

    def shut_down(self) -> None:
        """End the connection for both sides, and for threads that wait for it."""
        with contextlib.suppress(OSError):  # the other end was first
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection; nobody may use it any more."""
        self._sock.close()

    def _decoded(self, decoder: msgspec.msgpack.Decoder[Message], body: bytearray) -> Message:
        try:
            return decoder.decode(body)
        except msgspec.MsgspecError as error:
            raise RankError(f"{self.peer} sent no message of a rank: {error}") from None

    def _read(self, limit: int, deadline: float | None) -> bytearray:
        length = int.from_bytes(self._read_exactly(4, deadline), "little")
        if length > limit:
            raise RankError(f"{self.peer} sent no message of a rank: {length} bytes")
        return self._read_exactly(length, deadline)

    def _read_exactly(self, count: int, deadline: float | None) -> bytearray:
        data = bytearray(count)
        view, done = memoryview(data), 0
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        while done < count:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0) * 1000
            if not poller.poll(left):
                raise RankError(f"{self.peer} says nothing")
            try:
                got = self._sock.recv_into(view[done:])
            except OSError as error:
                raise RankError(f"{self.peer} is gone: {error.strerror or error}") from None
            if not got:
                raise RankError(f"{self.peer} closed the connection")
            done += got
        return data
