"""What the GPU benchmarks share: model shapes, an engine without its processes, and the machine's own limits.

Weights are random; shapes are those of published models. `--tiny` shrinks everything: the same code then runs on CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from epd_runtime.engine.cuda_graphs import graph_sizes
from epd_runtime.engine.limits import Limits
from epd_runtime.engine.loading import anonymous_storage
from epd_runtime.engine.model_runner import LaunchedStep, ModelRunner
from epd_runtime.engine.overlap import StepPipeline
from epd_runtime.engine.request import Request
from epd_runtime.engine.scheduler import Scheduler, Work
from epd_runtime.kernels import ops
from epd_runtime.kvcache.allocator import PageAllocator
from epd_runtime.kvcache.layout import KVLayout
from epd_runtime.kvcache.pool import KVPool, page_bytes
from epd_runtime.messages import GenerateRequest, RequestFailed, SamplingParams
from epd_runtime.model_config import ModelConfig, load_model_config
from epd_runtime.models.registry import load_language_model

PAGE = 16
LLAMA_8B = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 5e5, "tie_word_embeddings": False,
}  # fmt: skip
QWEN3_06B = {
    "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072,
    "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
    "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True,
}  # fmt: skip
TINY = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip


def arguments(description: str | None) -> argparse.Namespace:
    """The options of every benchmark."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="Shrink model and workload: tries the code only.")
    parser.add_argument("--disable-cuda-graph", action="store_true")
    parser.add_argument("--disable-overlap-schedule", action="store_true")
    parser.add_argument("--attention", choices=("reference", "triton", "flashinfer"), help="Default: by device.")
    parser.add_argument("--json", type=Path, help="Write the figures there.")
    return parser.parse_args()


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where the benchmark runs, and what a copy and a matrix product reach there."""

    name: str
    device: torch.device
    dtype: torch.dtype
    bytes_per_second: float
    flops_per_second: float

    @classmethod
    def measure(cls, tiny: bool) -> Machine:
        """bfloat16 on CUDA, float32 on CPU; chooses the kernels, too."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        ops.choose("triton" if device.type == "cuda" else "plain")
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        block = torch.zeros((1 << 20) if tiny else (1 << 31), dtype=torch.uint8, device=device)
        target = torch.empty_like(block)
        side = 256 if tiny else 8192
        matrix = torch.randn(side, side, device=device).to(dtype)
        copy = median_seconds(lambda: target.copy_(block), device)
        product = median_seconds(lambda: matrix @ matrix, device)
        name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
        return cls(name, device, dtype, 2 * len(block) / copy, 2 * side**3 / product)


def median_seconds(run: Callable[[], object], device: torch.device, repeat: int = 10) -> float:
    """Seconds of one call, the device's work included; two calls before do not count."""
    times = []
    for _ in range(repeat + 2):
        synchronise(device)
        start = time.perf_counter()
        run()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def model_config(values: dict[str, Any], tiny: bool) -> ModelConfig:
    """The configuration that a checkpoint of this shape would have."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(values | (TINY if tiny else {})))
        return load_model_config(Path(folder))


class Engine:
    """Scheduler and model runner in this process, over random weights."""

    def __init__(
        self, config: ModelConfig, machine: Machine, options: argparse.Namespace, limits: Limits, num_pages: int
    ) -> None:
        size = page_bytes(config, machine.dtype, PAGE)
        layout = KVLayout("benchmark", str(machine.dtype), PAGE, size, num_pages)
        self.model = load_language_model(config, Path(), machine.device, machine.dtype, limits.context_length, 0)
        storage = anonymous_storage((num_pages + 1) * size, machine.device)
        pool = KVPool(layout, config, machine.dtype, storage)
        self.scheduler = Scheduler(limits, PageAllocator(num_pages))
        self.runner = ModelRunner(self.model, pool, machine.device, options.attention, options.attention)
        if not options.disable_cuda_graph:
            self.runner.pad_decode(graph_sizes(limits.max_running_requests), limits.context_length)
        overlaps = machine.device.type == "cuda" and not options.disable_overlap_schedule
        self._steps = StepPipeline(self.scheduler, self._launch, overlaps)
        self._begun: Sequence[Work] = ()
        self.token_bytes = size // PAGE  # of KV, all layers
        self.weights = sum(p.numel() for p in self.model.parameters()) - self._looked_up()

    def _looked_up(self) -> int:
        """Parameters that a step looks up and does not multiply by."""
        table = self.model.embed_tokens.weight
        return 0 if getattr(self.model.lm_head, "weight", None) is table else table.numel()

    def _launch(self, work: Sequence[Work]) -> LaunchedStep:
        self._begun = work
        return self.runner.launch(work)

    def add(self, name: str, prompt: list[int], new_tokens: int) -> None:
        """Queue a request that never stops early."""
        sampling = SamplingParams(new_tokens, temperature=0.0, ignore_eos=True)
        self.scheduler.add(Request(GenerateRequest(name, prompt, sampling)))

    def step(self) -> tuple[int, int]:
        """Begin one step; returns the tokens it computes, and how many of them are decodes."""
        self._begun = ()
        self._steps.step()
        count, decodes = sum(item.num_tokens for item in self._begun), sum(item.num_tokens == 1 for item in self._begun)
        for output in self.scheduler.outbox:
            assert not isinstance(output, RequestFailed), output
        self.scheduler.outbox.clear()
        return count, decodes


def limits(context: int, batch: int, chunk: int, vocab: int) -> Limits:
    """Limits of a scheduler that never ends a request early and computes every prompt anew."""
    return Limits(context, PAGE, batch, chunk, frozenset(), vocab, keeps_prefixes=False)


def report(machine: Machine, options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Print the figures beside the machine's limits, and write them as JSON where asked."""
    measured = {
        "device": machine.name, "copy_gb_per_second": machine.bytes_per_second / 1e9,
        "product_tflops": machine.flops_per_second / 1e12,
    }  # fmt: skip
    for row in (measured, *rows):
        shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()}
        print("  ".join(f"{name} {value}" for name, value in shown.items()))
    if options.json:
        options.json.write_text(json.dumps({"machine": measured, "tiny": options.tiny, "rows": rows}, indent=1))
