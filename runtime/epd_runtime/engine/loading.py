"""From a configuration to loaded components: device, data type, sizes of the KV pool, models."""

from __future__ import annotations

import dataclasses
import mmap
from pathlib import Path

import torch
from torch import Tensor

from epd_runtime.config import Role, ServerConfig
from epd_runtime.container import available_memory, usable_cpus
from epd_runtime.kvcache.layout import KVLayout
from epd_runtime.kvcache.pool import page_bytes
from epd_runtime.model_config import ModelConfig, ModelConfigError, load_model_config
from epd_runtime.models.shard import WHOLE, Shard

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CPU_KV_FRACTION = 0.2  # of the memory that is free beside the weights; pages are touched only when used
MIRROR_FRACTION = 0.5  # of the host's free memory, for what a handoff copies KV through (kvcache/mirror.py)
CUDA_STATIC_FRACTION = 0.85  # of all memory, for weights and KV together


class StartError(RuntimeError):
    """The engine cannot start; the message is for the user."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where and how a model runs."""

    config: ModelConfig
    folder: Path
    device: torch.device
    dtype: torch.dtype
    context_length: int
    shard: Shard = WHOLE  # the part of the language model that is this process's

    @property
    def part(self) -> ModelConfig:
        """The model with the sizes of this process's part."""
        return dataclasses.replace(self.config, text=self.shard.part_of(self.config.text))


def choose_threads(server: ServerConfig) -> None:
    """Threads of this process: as asked, else its share of the cores."""
    torch.set_num_threads(server.num_threads or max(usable_cpus() // server.ranks_per_node, 1))


def place_model(server: ServerConfig, local_rank: int = 0) -> Placement:
    """Read the model's configuration and settle device, data type and context, for one of the ranks of this node.

    Raises StartError, ModelConfigError.
    """
    folder = Path(server.model_path)
    config = load_model_config(folder)
    if config.vision is None and (server.encoder_only or server.language_only):
        raise StartError(f"{folder} is a text-only model: --encoder-only and --language-only make no sense for it")
    shard = Shard(server.node_rank * server.ranks_per_node + local_rank, server.tp_size)
    try:
        shard.part_of(config.text)
    except ModelConfigError as error:
        raise StartError(f"--tp-size {server.tp_size}: {error}") from None
    device = _device(server.device, server.ranks_per_node, local_rank)
    context = server.context_length or config.text.max_positions
    if context > config.text.max_positions:
        raise StartError(f"--context-length {context} exceeds the model's {config.text.max_positions} positions")
    return Placement(config, folder, device, _dtype(server.dtype, config.dtype, device), context, shard)


def _device(name: str, count: int, index: int) -> torch.device:
    """The device of one of `count` processes of this machine; from now on "cuda" means it."""
    if name == "cuda" and not torch.cuda.is_available():
        raise StartError("--device cuda: torch finds no CUDA device; use --device cpu or check the driver")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if count > torch.cuda.device_count():
        raise StartError(
            f"--tp-size needs {count} CUDA devices on each node, this one has {torch.cuda.device_count()}; "
            "lower --tp-size, or spread it over more --nnodes"
        )
    if count > 1:
        torch.cuda.set_device(index)
    return torch.device("cuda")


def _dtype(asked: str, native: str, device: torch.device) -> torch.dtype:
    """auto: the checkpoint's own type on CUDA, float32 on CPU (where half types are slow, see docs/perf-log.md)."""
    name = asked if asked != "auto" else ("float32" if device.type == "cpu" else native)
    return DTYPES[name]


def plan_kv(server: ServerConfig, placement: Placement) -> KVLayout:
    """How many pages the pool has: as asked, else what free memory and the batch can use."""
    size = page_bytes(placement.part, placement.dtype, server.page_size)
    if server.max_total_tokens is not None:
        num_pages = server.max_total_tokens // server.page_size
    else:
        useful = server.max_running_requests * -(-placement.context_length // server.page_size)
        nbytes = _kv_bytes(placement.device, server.mem_fraction_static, server.ranks_per_node)
        num_pages = min(useful, nbytes // size)
        if is_disaggregated(server) and placement.device.type == "cuda":
            num_pages = min(num_pages, int(available_memory() * MIRROR_FRACTION) // server.ranks_per_node // size)
    if num_pages < 1:
        raise StartError(
            f"no memory for one KV page of {size} bytes; lower --page-size, or raise --max-total-tokens or "
            "--mem-fraction-static"
        )
    return KVLayout(
        model=placement.config.fingerprint,
        dtype=str(placement.dtype).removeprefix("torch."),
        page_size=server.page_size,
        page_bytes=size,
        num_pages=num_pages,
    )


def _kv_bytes(device: torch.device, fraction: float | None, num_ranks: int) -> int:
    """Bytes for the KV pool of one of the machine's ranks, now that the weights are loaded."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return max(int(total * (fraction or CUDA_STATIC_FRACTION)) - (total - free), 0)
    return int(available_memory() * (fraction or CPU_KV_FRACTION)) // num_ranks


def anonymous_storage(nbytes: int, device: torch.device) -> Tensor:
    """uint8 memory for a pool that no other engine reads; on CPU untouched pages cost nothing. Raises StartError."""
    if device.type == "cuda":
        return torch.empty(nbytes, dtype=torch.uint8, device=device)
    try:
        return torch.frombuffer(mmap.mmap(-1, nbytes), dtype=torch.uint8)
    except (OSError, OverflowError):
        raise StartError(
            f"no memory for {nbytes} bytes of KV cache; lower --max-total-tokens or --mem-fraction-static"
        ) from None


def is_disaggregated(server: ServerConfig) -> bool:
    """Whether KV crosses between this engine and another."""
    return server.role in (Role.PREFILL, Role.DECODE)
