"""Milliseconds to sample a batch, beside the logits processors of transformers on the same logits.

    python benchmarks/sampler.py [--vocab 151936] [--batches 1 16 64] [--threads 1] [--repeat 5]

Probabilities fall as rank ** -1.5: a few dozen tokens for top_p 0.9, like a language model's. `flat` has rank ** -0.5,
which no small set of candidates covers. Every case takes the fastest of several steps. With one thread the time is the
CPU's own, so that a busy machine does not count; with more it is the clock's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from epd_runtime.engine.request import Request
from epd_runtime.engine.sampling.sampler import Sampler
from epd_runtime.messages import GenerateRequest, SamplingParams

PROMPT, ANSWER = 1000, 200  # tokens that penalties count
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {},
    "top_p 0.9": {"top_p": 0.9},
    "top_k 50": {"top_k": 50},
    "penalties": {"temperature": 0.0, "repetition_penalty": 1.1, "frequency_penalty": 0.5},
    "top_p 0.9 flat": {"top_p": 0.9},
    "logprobs 5": {"temperature": 0.0, "logprobs": 5},
}


def zipf(rows: int, vocab: int, exponent: float) -> torch.Tensor:
    """Logits [rows, vocab] whose probabilities fall as rank ** -exponent; every row has its own order."""
    ranked = -exponent * torch.arange(1, vocab + 1, dtype=torch.float32).log()
    return torch.stack([ranked[torch.randperm(vocab)] for _ in range(rows)])


def requests(count: int, vocab: int, params: dict[str, Any]) -> list[Request]:
    """Requests in the middle of their answers."""
    made = []
    for row in range(count):
        prompt = torch.randint(vocab, (PROMPT,)).tolist()
        made.append(Request(GenerateRequest(str(row), prompt, SamplingParams(1 << 20, seed=row, **params))))
        made[-1].output_ids = torch.randint(vocab, (ANSWER,)).tolist()
    return made


def reference(params: SamplingParams, ids: torch.Tensor) -> Callable[[torch.Tensor], list[int]]:
    """The same through transformers: its processors, then argmax or multinomial."""
    processors = LogitsProcessorList()
    if params.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.temperature not in (0.0, 1.0):
        processors.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        processors.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        processors.append(TopPLogitsWarper(params.top_p))

    def run(logits: torch.Tensor) -> list[int]:
        if params.logprobs >= 0:
            logits.log_softmax(-1).topk(params.logprobs)
        scores = processors(ids, logits)
        if params.temperature == 0:
            return scores.argmax(-1).tolist()  # type: ignore[no-any-return]
        return torch.multinomial(scores.softmax(-1), 1)[:, 0].tolist()  # type: ignore[no-any-return]

    return run


def fastest(run: Callable[[torch.Tensor], object], logits: torch.Tensor, repeat: int) -> float:
    """Milliseconds; every run has fresh logits."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times = []
    for _ in range(repeat):
        fresh = logits.clone()
        start = clock()
        run(fresh)
        times.append(clock() - start)
    return min(times) * 1e3


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    print(f"{'case':16s} {'batch':>5s} {'ours ms':>9s} {'transformers ms':>16s} {'ratio':>7s}")
    for name, params in CASES.items():
        for batch in args.batches:
            logits = zipf(batch, args.vocab, 0.5 if name.endswith("flat") else 1.5)
            rows, sampler = requests(batch, args.vocab, params), Sampler()
            ids = torch.tensor([row.input_ids + row.output_ids for row in rows])
            ours = fastest(lambda x, s=sampler, r=rows: s.sample(x, r), logits, args.repeat)  # type: ignore[misc]
            theirs = fastest(reference(rows[0].sampling, ids), logits, args.repeat)
            print(f"{name:16s} {batch:5d} {ours:9.3f} {theirs:16.3f} {theirs / ours:7.1f}", flush=True)


if __name__ == "__main__":
    main()
