"""The engine process: `python -m epd_runtime.engine.main`, started by the API process, never by hand.

Reads one JSON line from standard input, loads the model, reports EngineReady or EngineFailed, and runs its loop
until the API process closes that pipe.
"""

from __future__ import annotations

import json
import logging
import signal
import sys

import zmq

from epd_runtime.accelerator import DeviceLostError
from epd_runtime.attention.registry import AttentionUnavailableError
from epd_runtime.config import Role, ServerConfig, from_values
from epd_runtime.encoder.encoder_loop import EncoderLoop
from epd_runtime.engine.channel import Channel, exit_with_parent, read_order
from epd_runtime.engine.language_loop import LanguageLoop
from epd_runtime.engine.loading import Placement, StartError, choose_threads, place_model
from epd_runtime.engine.ranks.node import WorkerNode
from epd_runtime.engine.ranks.wire import RankError
from epd_runtime.kernels import ops
from epd_runtime.messages import EngineFailed
from epd_runtime.model_config import ModelConfigError
from epd_runtime.models.loader import WeightError

log = logging.getLogger("epd_runtime.engine")


def main() -> int:
    """Run the engine; returns the exit status."""
    order = json.loads(read_order())
    exit_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the API process decides
    server = from_values(order["config"])
    logging.basicConfig(level=server.log_level.upper(), format="%(asctime)s %(levelname)s engine: %(message)s")
    choose_threads(server)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    channel = Channel(order["socket"])
    try:
        placement = place_model(server)
        ops.choose(ops.fastest(placement.device))
        loop = _open_loop(server, placement, context, channel)
    except (StartError, RankError, AttentionUnavailableError, ModelConfigError, WeightError, OSError) as error:
        channel.send(EngineFailed(str(error)))
        channel.close()
        return 1
    except Exception as error:
        log.exception("the engine cannot start")
        channel.send(EngineFailed(f"{type(error).__name__}: {error}"))
        channel.close()
        return 1
    if isinstance(loop, WorkerNode):
        try:
            loop.run()
        except Exception as error:
            log.exception("this node cannot go on")
            channel.abandon(f"{type(error).__name__}: {error}")
    channel.send(loop.ready())
    try:
        loop.run()
    except DeviceLostError as error:  # the API process ends with this one, and the pod starts anew
        log.critical("%s; the engine ends so that it can be started anew", error)
        return 1
    return 0


def _open_loop(
    server: ServerConfig, placement: Placement, context: zmq.Context[zmq.Socket[bytes]], channel: Channel
) -> EncoderLoop | LanguageLoop | WorkerNode:
    if server.node_rank > 0:
        return WorkerNode(server, placement, channel)
    return (EncoderLoop if server.role is Role.ENCODER else LanguageLoop)(server, placement, context, channel)


if __name__ == "__main__":
    sys.exit(main())
