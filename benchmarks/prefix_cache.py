"""What a prefix hit saves: time to the first token of a prompt of which a share is cached, as a ratio to a miss.

    python benchmarks/prefix_cache.py [--tokens 1024] [--share 0.9] [--rounds 5] [--output FILE]

A Llama of the shape of SmolLM2-135M with random weights, float32 on the CPU, in this process; misses and hits in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from epd_runtime.engine.limits import Limits
from epd_runtime.engine.model_runner import ModelRunner
from epd_runtime.engine.request import Request
from epd_runtime.engine.scheduler import Scheduler
from epd_runtime.kvcache.allocator import PageAllocator
from epd_runtime.kvcache.layout import KVLayout
from epd_runtime.kvcache.pool import KVPool, page_bytes
from epd_runtime.messages import GenerateRequest, SamplingParams
from epd_runtime.model_config import load_model_config
from epd_runtime.models.registry import load_language_model

PAGE = 16
SHAPE = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 49152, "hidden_size": 576,
    "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "hidden_act": "silu",
    "tie_word_embeddings": True, "torch_dtype": "float32", "eos_token_id": 0,
}  # fmt: skip


def open_engine(num_pages: int) -> tuple[Scheduler, ModelRunner]:
    """An engine with random weights."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "config.json").write_text(json.dumps(SHAPE))
        config = load_model_config(Path(name))
        model = load_language_model(config, Path(name), torch.device("cpu"), torch.float32, 8192, 1)
    size = page_bytes(config, torch.float32, PAGE)
    storage = torch.zeros(num_pages * size, dtype=torch.uint8)
    pool = KVPool(KVLayout("benchmark", "float32", PAGE, size, num_pages), config, torch.float32, storage)
    scheduler = Scheduler(Limits(8192, PAGE, 8, 4096, frozenset(), 1 << 20), PageAllocator(num_pages))
    return scheduler, ModelRunner(model, pool, torch.device("cpu"))


def first_token(scheduler: Scheduler, runner: ModelRunner, prompt: list[int]) -> tuple[float, int]:
    """Seconds from arrival to the only token, and how many tokens came from the cache."""
    request = Request(GenerateRequest("measured", prompt, SamplingParams(1, 0.0, ignore_eos=True)))
    start = time.perf_counter()
    scheduler.add(request)
    while scheduler.requests:
        work = scheduler.schedule()
        scheduler.commit(work, runner.run(work))
    return time.perf_counter() - start, request.cached_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--share", type=float, default=0.9, help="part of the prompt that is cached")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", help="file for the figures as JSON")
    arguments = parser.parse_args()
    count, common = arguments.tokens, int(arguments.tokens * arguments.share)
    scheduler, runner = open_engine(4 * -(-count // PAGE))
    misses, hits = [], []
    for index in range(2 * arguments.rounds + 2):
        scheduler.flush()
        prompt = [5 + (7 * place + index) % 40000 for place in range(count)]
        seconds, cached = first_token(scheduler, runner, prompt)
        again, found = first_token(scheduler, runner, prompt[:common] + [9] * (count - common))
        assert cached == 0
        assert found == common // PAGE * PAGE
        if index > 1:  # the first two warm up
            misses.append(seconds)
            hits.append(again)
    ratio = statistics.median(hit / miss for hit, miss in zip(hits, misses, strict=True))
    figures = {"miss": statistics.median(misses), "hit": statistics.median(hits), "ratio": ratio}
    print(
        f"{count} tokens, {found} cached: miss {figures['miss']:.3f} s, hit {figures['hit']:.3f} s, ratio {ratio:.3f}"
    )
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
