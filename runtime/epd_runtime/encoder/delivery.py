"""Pushes embeddings from an encoder to the engines that asked, and knows when each has arrived.

One DEALER socket per receiver, kept while it is used. A part is delivered when the receiver acknowledges it. Whoever
posts to /encode names the receiver, so it may be anybody:

    acknowledges nothing for ACK_SECONDS while parts wait    the socket is closed, all its parts fail
    answers what does not parse                              the same
    answers with an error                                    that part fails with it
    answers for parts that do not wait                       ignored
    answers without end                                      MAX_ANSWERS are read per call

so every part ends with exactly one call of its `done`, and the HTTP request that asked always ends.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable

import zmq

from epd_runtime.disaggregation.embeddings.wire import (
    MAX_ERROR,
    MAX_HEADER,
    UNKNOWN_PART,
    EmbeddingAck,
    EmbeddingHeader,
    WireError,
    decode_ack,
    encode,
)

ACK_SECONDS = 10.0
IDLE_SECONDS = 60.0
MAX_ANSWERS = 256
Done = Callable[[str], None]  # called with "" after delivery, else with the error


@dataclasses.dataclass(frozen=True, eq=False)
class _Sent:
    """A part that waits for its answer."""

    key: tuple[str, int]  # request_id, part_idx; may repeat when a request is encoded twice
    done: Done


@dataclasses.dataclass(eq=False)
class _Peer:
    """A receiver. Its answers come in the order of `waiting`."""

    url: str
    socket: zmq.Socket[bytes]
    last_progress: float  # time.monotonic() of the last answer, or of the first part after an idle time
    waiting: deque[_Sent] = dataclasses.field(default_factory=deque)


class Delivery:
    """All outgoing sockets of an encoder; used by its loop only."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], poller: zmq.Poller) -> None:
        """poller: gets every socket, so that the loop wakes when answers come."""
        self._context = context
        self._poller = poller
        self._peers: dict[str, _Peer] = {}

    @property
    def num_waiting(self) -> int:
        """Parts sent and not acknowledged."""
        return sum(len(peer.waiting) for peer in self._peers.values())

    def send(self, url: str, header: EmbeddingHeader, payload: memoryview, done: Done) -> None:
        """Send one part to tcp://host:port; done may be called before this returns."""
        try:
            peer = self._peers.get(url) or self._connect(url)
            peer.socket.send_multipart([encode(header), payload], zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            done(f"cannot send to {url}: {error}")
            return
        if not peer.waiting:
            peer.last_progress = time.monotonic()
        peer.waiting.append(_Sent((header.request_id, header.part_idx), done))

    def poll(self) -> None:
        """Take acknowledgements, give up receivers that are silent or talk nonsense, close idle sockets."""
        for peer in list(self._peers.values()):
            try:
                self._read_answers(peer)
            except WireError as error:
                self._close(peer, f"{peer.url} is not a receiver of embeddings: {error}")
                continue
            silence = time.monotonic() - peer.last_progress
            if peer.waiting and silence > ACK_SECONDS:
                self._close(peer, f"{peer.url} did not acknowledge the embedding within {ACK_SECONDS:.0f} s")
            elif not peer.waiting and silence > IDLE_SECONDS:
                self._close(peer, "")

    def _connect(self, url: str) -> _Peer:
        socket = self._context.socket(zmq.DEALER)
        try:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.MAXMSGSIZE, MAX_HEADER)
            socket.setsockopt(zmq.IPV6, "[" in url)
            socket.connect(url)
        except zmq.ZMQError:
            socket.close()
            raise
        self._poller.register(socket, zmq.POLLIN)
        peer = self._peers[url] = _Peer(url, socket, time.monotonic())
        return peer

    def _read_answers(self, peer: _Peer) -> None:
        for _ in range(MAX_ANSWERS):
            try:
                frames = peer.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if len(frames) != 1:
                raise WireError(f"{len(frames)} frames instead of 1")
            self._answered(peer, decode_ack(frames[0]))

    def _answered(self, peer: _Peer, ack: EmbeddingAck) -> None:
        """End the part that an answer is for; one that names no part is for the oldest."""
        key = (ack.request_id, ack.part_idx)
        unread = ack.part_idx == UNKNOWN_PART and ack.error != ""
        sent = next((sent for sent in peer.waiting if unread or sent.key == key), None)
        if sent is not None:
            peer.waiting.remove(sent)
            peer.last_progress = time.monotonic()
            sent.done(ack.error[:MAX_ERROR])

    def _close(self, peer: _Peer, reason: str) -> None:
        """Drop a socket with whatever is stuck in it; a receiver that comes back gets a new one."""
        self._poller.unregister(peer.socket)
        peer.socket.close()
        del self._peers[peer.url]
        for sent in peer.waiting:
            sent.done(reason)
