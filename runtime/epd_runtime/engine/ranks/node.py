"""The first rank of a node that is not node 0: what stands in its engine process for the loop of an engine."""

from __future__ import annotations

import subprocess
import threading
from typing import NoReturn

from epd_runtime.child_process import describe_exit
from epd_runtime.config import ServerConfig
from epd_runtime.engine.channel import Channel
from epd_runtime.engine.loading import Placement
from epd_runtime.engine.ranks.follower import Follower
from epd_runtime.engine.ranks.leader import start_ranks
from epd_runtime.messages import EngineReady, EngineStats


class WorkerNode:
    """A follower that starts the other ranks of its node and tells its API process how they are."""

    def __init__(self, server: ServerConfig, placement: Placement, channel: Channel) -> None:
        """Waits for rank 0 and all others; raises StartError."""
        assert server.dist_init_addr is not None
        self._server, self._channel = server, channel
        self._context_length = placement.context_length
        for rank, child in start_ranks(server, server.dist_init_addr).items():
            threading.Thread(target=self._watch, args=[rank, child], name=f"rank-{rank}", daemon=True).start()
        self._follower = Follower(server, placement, server.dist_init_addr, channel.abandon)

    def run(self) -> NoReturn:
        """Compute until rank 0 is gone; raises RankError."""
        self._follower.serve(self._report_ready)

    def _report_ready(self, weight_bytes: int, kv_bytes: int) -> None:
        self._channel.send(
            EngineReady(
                context_length=self._context_length,
                embedding_port=0,
                bootstrap_port=0,
                weight_bytes={"vision": 0, "language": weight_bytes},
                kv_bytes=kv_bytes,
                stats=EngineStats(),
            )
        )

    def _watch(self, rank: int, child: subprocess.Popen[bytes]) -> None:
        self._channel.abandon(f"rank {rank} {describe_exit(child.wait())}")
