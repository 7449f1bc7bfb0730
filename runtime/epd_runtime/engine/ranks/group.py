"""The process group of the ranks: NCCL between CUDA devices, gloo otherwise.

It is an object, not the process-wide default of torch.distributed: nothing else in the process can use it by accident.
"""

from __future__ import annotations

from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from epd_runtime.engine.ranks import STEP_SECONDS
from epd_runtime.models.ranks import Group
from epd_runtime.models.shard import Shard

TIMEOUT = timedelta(seconds=STEP_SECONDS)


def serve_store(host: str) -> TCPStore:
    """The store by which the ranks find each other, at rank 0, on any free port."""
    return TCPStore(host, 0, is_master=True, timeout=TIMEOUT, wait_for_workers=False)


def join_store(host: str, port: int) -> TCPStore:
    """The same store, at another rank."""
    return TCPStore(host, port, is_master=False, timeout=TIMEOUT, wait_for_workers=False)


def open_group(store: TCPStore, shard: Shard, device: torch.device, address: str) -> Group:
    """All ranks call this at the same time. address: this machine's, as the other ranks see it."""
    if device.type == "cuda":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = TIMEOUT
        return cast(Group, dist.ProcessGroupNCCL(store, shard.rank, shard.size, options))
    gloo = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    gloo._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
    gloo._timeout = TIMEOUT
    return cast(Group, dist.ProcessGroupGloo(store, shard.rank, shard.size, gloo))
