"""Decode and prefill on CPU beside transformers' generate: SmolLM2-135M, float32, in one process.

    python -m benchmarks.cpu.generate [--rounds 3] [--threads N] [--json FILE]     # needs the extra [benchmark]

Rounds of both alternate, so that a busy machine hurts both alike; figures are medians, and all tokens are compared.
Rates are output tokens per second after the first token; the yardstick is one stream of transformers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from benchmarks.cpu.smollm2 import model_folder
from epd_runtime.engine.limits import Limits
from epd_runtime.engine.loading import anonymous_storage
from epd_runtime.engine.model_runner import ModelRunner
from epd_runtime.engine.request import Request
from epd_runtime.engine.scheduler import Scheduler
from epd_runtime.kernels import ops
from epd_runtime.kvcache.allocator import PageAllocator
from epd_runtime.kvcache.layout import KVLayout
from epd_runtime.kvcache.pool import KVPool, page_bytes
from epd_runtime.messages import GenerateRequest, SamplingParams
from epd_runtime.model_config import load_model_config
from epd_runtime.models.registry import load_language_model

STREAMS = (1, 4, 16)
PROMPT, ANSWER, LONG_PROMPT = 32, 48, 512
PAGE, NUM_PAGES = 16, 512
TEXT = "The history of lighthouses begins long before electricity, when fires on hills guided ships into harbours. "


class Engine:
    """Scheduler and model runner of one engine, without its processes."""

    def __init__(self, folder: Path) -> None:
        config, device, dtype = load_model_config(folder), torch.device("cpu"), torch.float32
        ops.choose(ops.fastest(device))
        size = page_bytes(config, dtype, PAGE)
        model = load_language_model(config, folder, device, dtype, 2048, None)
        pool = KVPool(
            KVLayout("benchmark", "float32", PAGE, size, NUM_PAGES), config, dtype,
            anonymous_storage((NUM_PAGES + 1) * size, device),
        )  # fmt: skip
        limits = Limits(2048, PAGE, max(STREAMS), 2048, frozenset(), config.text.vocab_size, keeps_prefixes=False)
        self._scheduler = Scheduler(limits, PageAllocator(NUM_PAGES))
        self._runner = ModelRunner(model, pool, device)

    def generate(self, prompts: list[list[int]], new_tokens: int) -> tuple[list[list[int]], float, float]:
        """(answers, seconds to all first tokens, seconds of the rest)."""
        sampling = SamplingParams(new_tokens, temperature=0.0, ignore_eos=True)
        requests = [Request(GenerateRequest(str(n), prompt, sampling)) for n, prompt in enumerate(prompts)]
        start = time.perf_counter()
        for request in requests:
            self._scheduler.add(request)
        first = 0.0
        while self._scheduler.requests:
            work = self._scheduler.schedule()
            self._scheduler.commit(work, self._runner.run(work))
            self._scheduler.outbox.clear()
            first = first or time.perf_counter() - start
        return [request.output_ids for request in requests], first, time.perf_counter() - start - first


def transformers_generate(
    model: PreTrainedModel, prompts: list[list[int]], new_tokens: int
) -> tuple[list[list[int]], float, float]:
    """As Engine.generate."""
    ids = torch.tensor(prompts)

    def run(count: int) -> tuple[torch.Tensor, float]:
        start = time.perf_counter()
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, do_sample=False
        )
        return found[:, ids.shape[1] :], time.perf_counter() - start

    _, first = run(1)
    answers, whole = run(new_tokens)
    return answers.tolist(), first, whole - first


def measure(folder: Path, rounds: int) -> dict[str, float]:
    """All figures: rates in tokens per second, prefill in tokens per second, ratios to one stream of transformers."""
    tokens: list[int] = AutoTokenizer.from_pretrained(folder)(TEXT * 40).input_ids
    engine, peer = Engine(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    times: dict[str, list[float]] = {}
    for number in range(rounds + 1):  # the first is a warm-up
        for streams in STREAMS:
            prompts = [tokens[index : index + PROMPT] for index in range(streams)]
            answers, _, ours = engine.generate(prompts, ANSWER)
            if number:
                times.setdefault(f"{streams} streams", []).append(streams * (ANSWER - 1) / ours)
            if streams == 1 or number == 0:
                expected, _, theirs = transformers_generate(peer, prompts, ANSWER)
                assert answers == expected, f"answers differ at {streams} streams"
                if streams == 1 and number:
                    times.setdefault("transformers, 1 stream", []).append((ANSWER - 1) / theirs)
        long_prompt = [tokens[:LONG_PROMPT]]
        _, ours, _ = engine.generate(long_prompt, 2)
        _, theirs, _ = transformers_generate(peer, long_prompt, 2)
        if number:
            times.setdefault("prefill", []).append(LONG_PROMPT / ours)
            times.setdefault("transformers, prefill", []).append(LONG_PROMPT / theirs)
    figures = {name: statistics.median(values) for name, values in times.items()}
    one = figures["transformers, 1 stream"]
    ratios = {f"ratio, {streams} streams": figures[f"{streams} streams"] / one for streams in STREAMS}
    return {**figures, **ratios, "ratio, prefill": figures["prefill"] / figures["transformers, prefill"]}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures = measure(model_folder(), options.rounds)
    for name, value in figures.items():
        print(f"{name:<24}{value:10.2f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
