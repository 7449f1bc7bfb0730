"""Receives embeddings for an engine: a thread that checks and acknowledges parts while the engine computes.

Parts wait in `take()` until the engine attaches them to a request. Encoders can be faster than the engine's
message loop, so a part may precede its request: the engine parks such parts (`Parking`), bounded in number, bytes and
time. Garbage is answered with an error and logged; it costs nobody else anything. Parts that come faster than the
engine takes them are refused, and the encoder's client sees an error.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

import zmq

from epd_runtime.disaggregation.embeddings.wire import (
    MAX_ERROR,
    MAX_PAYLOAD,
    UNKNOWN_PART,
    EmbeddingAck,
    EmbeddingHeader,
    WireError,
    check_part,
    decode_header,
    encode,
)

log = logging.getLogger(__name__)

PARK_SECONDS = 30.0
MAX_PARKED = 1024  # parts
MAX_PARKED_BYTES = 1 << 30
MAX_WAITING = 4096  # parts
MAX_WAITING_BYTES = 2 * MAX_PAYLOAD
OVERLOADED = "the receiver is overloaded; send the embedding again later"
MAX_UNREAD = 16  # parts of one encoder that the socket holds


@dataclasses.dataclass(frozen=True)
class Part:
    """A checked embedding; payload is num_rows * hidden values of header.dtype, arrived a time.time()."""

    header: EmbeddingHeader
    payload: memoryview
    arrived: float


class EmbeddingReceiver:
    """Owns the ROUTER socket and its thread."""

    def __init__(self, host: str, wake: Callable[[], None]) -> None:
        """Listen on a free port of host; wake() is called, from the thread, when parts wait.

        Raises zmq.ZMQError when host is no address of this machine.
        """
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_PAYLOAD)
        self._socket.setsockopt(zmq.RCVHWM, MAX_UNREAD)
        self._socket.setsockopt(zmq.IPV6, ":" in host)
        self.port = self._socket.bind_to_random_port(f"tcp://[{host}]" if ":" in host else f"tcp://{host}")
        self._wake = wake
        self._lock = threading.Lock()  # guards the two below
        self._parts: list[Part] = []
        self._nbytes = 0
        self._thread = threading.Thread(target=self._run, name="embedding-receiver", daemon=True)
        self._thread.start()

    def take(self) -> list[Part]:
        """Every part that has arrived since the last call."""
        with self._lock:
            parts, self._parts, self._nbytes = self._parts, [], 0
        return parts

    def close(self) -> None:
        """Stop listening and end the thread."""
        self._context.term()

    def _run(self) -> None:
        while True:
            try:
                frames = self._socket.recv_multipart(copy=False)
            except zmq.ContextTerminated:
                self._socket.close()
                return
            ack = self._accept(frames[1:])
            self._socket.send_multipart([frames[0].bytes, encode(ack)])
            if not ack.error:
                self._wake()
            elif ack.error != OVERLOADED:
                log.warning("refused an embedding from %s: %s", frames[0].get("Peer-Address"), ack.error)

    def _accept(self, frames: list[zmq.Frame]) -> EmbeddingAck:
        request_id, part_idx = "", UNKNOWN_PART
        try:
            if len(frames) != 2:
                raise WireError(f"{len(frames)} frames instead of 2")
            header = decode_header(frames[0].bytes)
            request_id, part_idx = header.request_id, header.part_idx
            check_part(header, frames[1].buffer)
        except WireError as error:
            return EmbeddingAck(request_id, part_idx, str(error)[:MAX_ERROR])
        part = Part(header, frames[1].buffer, time.time())
        return EmbeddingAck(request_id, part_idx, "" if self._put(part) else OVERLOADED)

    def _put(self, part: Part) -> bool:
        """Keep a part for take(); False when too much waits there already."""
        with self._lock:
            if len(self._parts) >= MAX_WAITING or self._nbytes + len(part.payload) > MAX_WAITING_BYTES:
                return False
            self._parts.append(part)
            self._nbytes += len(part.payload)
            return True


class Parking:
    """Parts whose request the engine has not seen yet."""

    def __init__(self) -> None:
        self._parts: OrderedDict[tuple[str, int], Part] = OrderedDict()
        self._nbytes = 0

    def put(self, part: Part) -> None:
        """Keep a part for a while; the oldest give way when too many, or too many bytes, wait."""
        key = (part.header.request_id, part.header.part_idx)
        self._remove(key)
        self._parts[key] = part
        self._nbytes += len(part.payload)
        while len(self._parts) > MAX_PARKED or self._nbytes > MAX_PARKED_BYTES:
            self._remove(next(iter(self._parts)))

    def take(self, request_id: str, num_parts: int) -> list[Part]:
        """The parked parts of a request that has just arrived."""
        found = [self._remove((request_id, index)) for index in range(num_parts)]
        return [part for part in found if part is not None]

    def expire(self, now: float) -> None:
        """Forget parts of requests that never came."""
        while self._parts:
            key, part = next(iter(self._parts.items()))
            if now - part.arrived < PARK_SECONDS:
                return
            self._remove(key)

    def _remove(self, key: tuple[str, int]) -> Part | None:
        part = self._parts.pop(key, None)
        if part is not None:
            self._nbytes -= len(part.payload)
        return part

    def __len__(self) -> int:
        return len(self._parts)
