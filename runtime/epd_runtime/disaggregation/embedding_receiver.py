"""Receives embeddings for an engine: a thread that checks and acknowledges parts while the engine computes.

Parts wait in `take()` until the engine attaches them to a request. Encoders can be faster than the engine's
message loop, so a part may precede its request: the engine parks such parts (`Parking`), bounded in number and
time. Garbage is answered with an error and logged; it costs nobody else anything.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable

import zmq

from epd_runtime.disaggregation.embedding_wire import EmbeddingAck, EmbeddingHeader, WireError, decode_header, encode

log = logging.getLogger(__name__)

PARK_SECONDS = 30.0
MAX_PARKED = 1024
MAX_WAITING = 4096


@dataclasses.dataclass(frozen=True)
class Part:
    """A checked embedding; payload is num_rows * hidden values of header.dtype."""

    header: EmbeddingHeader
    payload: memoryview
    arrived: float


class EmbeddingReceiver:
    """Owns the ROUTER socket and its thread."""

    def __init__(self, host: str, wake: Callable[[], None]) -> None:
        """Listen on a free port of host; wake() is called, from the thread, when parts wait."""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, 1 << 31)
        self.port = self._socket.bind_to_random_port(f"tcp://{host}")
        self._wake = wake
        self._parts: deque[Part] = deque()
        self._thread = threading.Thread(target=self._run, name="embedding-receiver", daemon=True)
        self._thread.start()

    def take(self) -> list[Part]:
        """Every part that has arrived since the last call."""
        parts = []
        while self._parts:
            parts.append(self._parts.popleft())
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
            sender = frames[0].bytes
            try:
                ack = self._accept(frames[1:])
            except WireError as error:
                log.warning("refused an embedding from %s: %s", frames[0].get("Peer-Address"), error)
                ack = EmbeddingAck("", -1, str(error))
            self._socket.send_multipart([sender, encode(ack)])
            if not ack.error:
                self._wake()

    def _accept(self, frames: list[zmq.Frame]) -> EmbeddingAck:
        if len(frames) != 2:
            raise WireError(f"{len(frames)} frames instead of 2")
        payload = frames[1].buffer
        header = decode_header(frames[0].bytes, payload)
        if len(self._parts) >= MAX_WAITING:
            return EmbeddingAck(header.request_id, header.part_idx, "the receiver is overloaded")
        self._parts.append(Part(header, payload, time.time()))
        return EmbeddingAck(header.request_id, header.part_idx)


class Parking:
    """Parts whose request the engine has not seen yet."""

    def __init__(self) -> None:
        self._parts: OrderedDict[tuple[str, int], Part] = OrderedDict()

    def put(self, part: Part) -> None:
        """Keep a part for a while; the oldest gives way when too many wait."""
        self._parts[(part.header.request_id, part.header.part_idx)] = part
        while len(self._parts) > MAX_PARKED:
            self._parts.popitem(last=False)

    def take(self, request_id: str, num_parts: int) -> list[Part]:
        """The parked parts of a request that has just arrived."""
        found = [self._parts.pop((request_id, index), None) for index in range(num_parts)]
        return [part for part in found if part is not None]

    def expire(self, now: float) -> None:
        """Forget parts of requests that never came."""
        while self._parts:
            key, part = next(iter(self._parts.items()))
            if now - part.arrived < PARK_SECONDS:
                return
            del self._parts[key]

    def __len__(self) -> int:
        return len(self._parts)
