"""Rank 0's hold on the other ranks: brings them together, tells them every step, and ends with any of them."""

from __future__ import annotations

import dataclasses
import json
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from epd_runtime.attention.batch import ForwardBatch
from epd_runtime.child_process import describe_exit, give_order, start_child
from epd_runtime.config import ServerConfig
from epd_runtime.engine.loading import Placement, StartError
from epd_runtime.engine.ranks import CAUSE_SECONDS, steps
from epd_runtime.engine.ranks.group import open_group, serve_store
from epd_runtime.engine.ranks.rendezvous import Rendezvous, listen, settings
from epd_runtime.engine.ranks.wire import Begin, Failed, Loaded, RankError, Welcome
from epd_runtime.models.ranks import Ranks

RANK_COMMAND = (sys.executable, "-m", "epd_runtime.engine.rank_main")
MESSAGE_SECONDS = 10.0  # for the rest of a message that has begun
REAP_SECONDS = 1.0

Abandon = Callable[[str], NoReturn]  # tell why, from any thread, and end the process
Children = dict[int, "subprocess.Popen[bytes]"]


def start_ranks(server: ServerConfig, address: str) -> Children:
    """The ranks of this node but the first, by rank. address: where they find rank 0."""
    first = server.node_rank * server.ranks_per_node
    children = {}
    for local in range(1, server.ranks_per_node):
        children[first + local] = child = start_child(RANK_COMMAND)
        order = {"config": dataclasses.asdict(server), "local_rank": local, "address": address}
        give_order(child, json.dumps(order).encode())
    return children


class Leader:
    """Rank 0 of several. `ranks` is what its model needs."""

    def __init__(self, server: ServerConfig, placement: Placement, abandon: Abandon) -> None:
        """Waits for all ranks; raises StartError. From then on abandon() is called when one of them is lost."""
        self._server = server
        self._device, self._dtype = placement.device, placement.dtype
        self._abandon = abandon
        self._is_closed = False
        self._loaded: queue.SimpleQueue[Loaded] = queue.SimpleQueue()
        with listen(server) as listener:
            host, port = listener.getsockname()[:2]
            self._children = start_ranks(server, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
            expected = settings(server, placement)
            self._connections = Rendezvous(listener, server, expected, self._children).gather()
        store = serve_store(host)
        for connection in self._connections.values():
            connection.send(Welcome(store.port))
        threading.Thread(target=self._watch, name="rank-watch", daemon=True).start()
        group = open_group(store, placement.shard, placement.device, host)
        self.ranks = Ranks(placement.shard, placement.config.text.vocab_size, group)

    def agree(self, num_pages: int, weight_bytes: int) -> tuple[int, int]:
        """Pages that every rank has room for, and bytes of all ranks' weights; raises StartError. The others begin."""
        deadline = time.monotonic() + self._server.dist_timeout
        for _ in self._connections:
            try:
                other = self._loaded.get(timeout=max(deadline - time.monotonic(), 0.0))
            except queue.Empty:
                raise StartError(
                    f"not all ranks have loaded within {self._server.dist_timeout} s; raise --dist-timeout"
                ) from None
            num_pages, weight_bytes = min(num_pages, other.num_pages), weight_bytes + other.weight_bytes
        for connection in self._connections.values():
            connection.send(Begin(num_pages))
        return num_pages, weight_bytes

    def share(self, batch: ForwardBatch, scored: Sequence[tuple[int, int]] = ()) -> ForwardBatch:
        """Tell all ranks to compute a batch, and return it on this rank's device.

        The batch's tensors, but for its embeddings, are on the host. scored: runs of rows (first, count) whose logits
        the model is asked for before those of the batch. Raises RankError.
        """
        step = steps.pack(batch, scored)
        for connection in self._connections.values():
            connection.send(step)
        batch = steps.place(batch, self._device)
        if batch.image_embeddings is not None:
            embeddings = batch.image_embeddings.to(self._dtype).contiguous()
            self.ranks.broadcast(embeddings)
            batch = dataclasses.replace(batch, image_embeddings=embeddings)
        return batch

    def give_up(self, error: Exception) -> NoReturn:
        """A step failed here: the others are in the middle of theirs. If one is lost, _watch() is first to say so."""
        time.sleep(CAUSE_SECONDS)
        self._abandon(f"rank 0 failed in a step of {self._server.tp_size} ranks: {type(error).__name__}: {error}")

    def close(self) -> None:
        """Let the other ranks end."""
        self._is_closed = True
        for connection in self._connections.values():
            connection.shut_down()

    def _watch(self) -> None:
        """Read what ranks say, until one of them is lost."""
        poller = select.poll()
        by_file = {connection.fileno(): rank for rank, connection in self._connections.items()}
        for file in by_file:
            poller.register(file, select.POLLIN)
        while True:
            for file, _ in poller.poll():
                rank = by_file[file]
                try:
                    message = self._connections[rank].receive_from_rank(time.monotonic() + MESSAGE_SECONDS)
                except RankError as error:
                    if self._is_closed:
                        return
                    self._abandon(self._describe_loss(rank, error))
                if isinstance(message, Failed):
                    self._abandon(f"rank {rank}: {message.message}")
                elif isinstance(message, Loaded):
                    self._loaded.put(message)

    def _describe_loss(self, rank: int, error: RankError) -> str:
        if (child := self._children.get(rank)) is None:
            return f"rank {rank} on node-rank {rank // self._server.ranks_per_node} is lost: {error}"
        try:
            return f"rank {rank} {describe_exit(child.wait(REAP_SECONDS))}"
        except subprocess.TimeoutExpired:
            return f"rank {rank} is lost: {error}"
