"""A rank that is not its node's first: `python -m epd_runtime.engine.rank_main`, started by that one, never by hand."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from typing import NoReturn

from epd_runtime.config import from_values
from epd_runtime.engine.channel import exit_with_parent, read_order
from epd_runtime.engine.loading import StartError, choose_threads, place_model
from epd_runtime.engine.ranks.follower import Follower
from epd_runtime.engine.ranks.wire import RankError
from epd_runtime.kernels import ops

log = logging.getLogger("epd_runtime.rank")


def main() -> int:
    """Compute until rank 0 or this node's first rank is gone; returns the exit status."""
    order = json.loads(read_order())
    exit_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the engine
    server = from_values(order["config"])
    name = f"rank {server.node_rank * server.ranks_per_node + order['local_rank']}"
    logging.basicConfig(level=server.log_level.upper(), format=f"%(asctime)s %(levelname)s {name}: %(message)s")
    choose_threads(server)
    try:
        placement = place_model(server, order["local_rank"])
        ops.choose(ops.fastest(placement.device))
        Follower(server, placement, order["address"], _leave).serve(lambda weights, kv: None)
    except (StartError, RankError) as error:
        log.error("%s", error)
    except Exception:
        log.exception("cannot go on")
    return 1


def _leave(reason: str) -> NoReturn:
    log.info("%s", reason)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
