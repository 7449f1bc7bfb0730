"""Prefill of 8,192 tokens by an 8B-shaped model, in chunks of 4,096 and at once, beside its roofline.

    python -m benchmarks.gpu.prefill [--tiny] [--attention NAME] [--json FILE]

Roofline: the floating-point operations of all matrix products and of causal attention at the rate of a large matrix
product, measured in the same run.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from benchmarks.gpu.common import LLAMA_8B, PAGE, Engine, Machine, arguments, limits, model_config, report
from epd_runtime.model_config import TextConfig

REPEAT = 5


def main() -> None:
    """Print one row per chunk size."""
    options = arguments(__doc__)
    machine = Machine.measure(options.tiny)
    tokens = 96 if options.tiny else 8192
    config = model_config(LLAMA_8B, options.tiny)
    rows = []
    for chunk in (tokens // 2, tokens):
        bounds = limits(tokens + 16, 1, chunk, config.text.vocab_size)
        engine = Engine(config, machine, options, bounds, num_pages=tokens // PAGE + 2)
        rows.append(measure(engine, config.text, machine, tokens, chunk))
        del engine
    report(machine, options, rows)


def measure(engine: Engine, text: TextConfig, machine: Machine, tokens: int, chunk: int) -> dict[str, Any]:
    """The median time to the first token; one prompt before does not count."""
    times = []
    for index in range(REPEAT + 1):
        engine.add(str(index), [2 + i % 200 for i in range(tokens)], 1)
        start = time.perf_counter()
        while engine.scheduler.requests:
            engine.step()
        times.append(time.perf_counter() - start)
    taken = statistics.median(times[1:])
    head = text.vocab_size * text.hidden_size  # multiplied for one row only
    attention = 2 * text.num_layers * text.num_heads * text.head_dim * tokens**2
    bound = (2 * (engine.weights - head) * tokens + attention) / machine.flops_per_second
    return {
        "tokens": tokens, "chunk": chunk, "prefill_ms": taken * 1e3, "tokens_per_second": tokens / taken,
        "roofline_ms": bound * 1e3, "of_roofline": bound / taken,
    }  # fmt: skip


if __name__ == "__main__":
    main()
