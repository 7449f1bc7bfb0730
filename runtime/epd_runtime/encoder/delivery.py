"""Pushes embeddings from an encoder to the engines that asked, and knows when each has arrived.

One DEALER socket per receiver, kept while it is used. A part is delivered when the receiver acknowledges it;
one that is not acknowledged in time is reported as failed (the receiver is gone or unreachable), so the HTTP
request that asked always ends.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import zmq

from epd_runtime.disaggregation.embedding_wire import EmbeddingHeader, decode_ack, encode

ACK_SECONDS = 10.0
IDLE_SECONDS = 60.0
Done = Callable[[str], None]  # called with "" after delivery, else with the error


@dataclasses.dataclass
class _Peer:
    socket: zmq.Socket[bytes]
    waiting: dict[tuple[str, int], tuple[float, Done]] = dataclasses.field(default_factory=dict)
    last_used: float = 0.0


class Delivery:
    """All outgoing sockets of an encoder; used by its loop only."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], poller: zmq.Poller) -> None:
        self._context = context
        self._poller = poller
        self._peers: dict[str, _Peer] = {}

    @property
    def num_waiting(self) -> int:
        """Parts sent and not acknowledged."""
        return sum(len(peer.waiting) for peer in self._peers.values())

    def send(self, url: str, header: EmbeddingHeader, payload: memoryview, done: Done) -> None:
        """Send one part to tcp://host:port."""
        try:
            peer = self._peer(url)
            peer.socket.send_multipart([encode(header), payload], zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            done(f"cannot send to {url}: {error}")
            return
        peer.last_used = time.monotonic()
        peer.waiting[(header.request_id, header.part_idx)] = (peer.last_used + ACK_SECONDS, done)

    def poll(self) -> None:
        """Take acknowledgements, fail what is overdue, close idle sockets."""
        now = time.monotonic()
        for url, peer in list(self._peers.items()):
            while peer.socket.poll(0):
                ack = decode_ack(peer.socket.recv(zmq.NOBLOCK))
                _, done = peer.waiting.pop((ack.request_id, ack.part_idx), (0.0, None))
                if done is not None:
                    done(ack.error)
            overdue = [key for key, (deadline, _) in peer.waiting.items() if deadline < now]
            for key in overdue:
                peer.waiting.pop(key)[1](f"{url} did not acknowledge the embedding within {ACK_SECONDS:.0f} s")
            if overdue or (not peer.waiting and now - peer.last_used > IDLE_SECONDS):
                self._close(url, peer)

    def _peer(self, url: str) -> _Peer:
        if (peer := self._peers.get(url)) is None:
            socket = self._context.socket(zmq.DEALER)
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(url)
            self._poller.register(socket, zmq.POLLIN)
            peer = self._peers[url] = _Peer(socket)
        return peer

    def _close(self, url: str, peer: _Peer) -> None:
        """Drop a socket with whatever is stuck in it; a receiver that comes back gets a new one."""
        for _, done in peer.waiting.values():
            done(f"the connection to {url} was given up")
        self._poller.unregister(peer.socket)
        peer.socket.close()
        del self._peers[url]
