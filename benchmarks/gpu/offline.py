"""The offline workload of nano-vllm's README: 256 sequences, 100-1,024 tokens in and out, the shape of Qwen3-0.6B.

    python -m benchmarks.gpu.offline [--tiny] [--disable-cuda-graph] [--attention NAME] [--json FILE]

Counted are output tokens per second over the whole run. Roofline: per step the larger of the time to read all weights
and the KV of every sequence once, and the time of its products, at the rates of a copy and a product in the same run.
"""

from __future__ import annotations

import random
import time

from benchmarks.gpu.common import PAGE, QWEN3_06B, Engine, Machine, arguments, limits, model_config, report

BATCH = 256


def main() -> None:
    """Print one row."""
    options = arguments(__doc__)
    machine = Machine.measure(options.tiny)
    draw = random.Random(0)
    count, shortest, longest = (6, 2, 24) if options.tiny else (BATCH, 100, 1024)
    config = model_config(QWEN3_06B, options.tiny)
    engine = Engine(
        config, machine, options, limits(2 * longest + 2, count, 16384, config.text.vocab_size),
        num_pages=count * (2 * longest // PAGE + 1),
    )  # fmt: skip
    wanted = 0
    engine.add("warm-up", [2] * longest, 4)
    while engine.scheduler.requests:
        engine.step()
    for index in range(count):
        prompt = [draw.randrange(2, 200) for _ in range(draw.randint(shortest, longest))]
        wanted += (new_tokens := draw.randint(shortest, longest))
        engine.add(str(index), prompt, new_tokens)
    steps, bound, start = 0, 0.0, time.perf_counter()
    while engine.scheduler.requests:
        cached = sum(request.num_computed for request in engine.scheduler.running)
        computed, _ = engine.step()
        steps += 1
        read = engine.weights * machine.dtype.itemsize + cached * engine.token_bytes
        bound += max(read / machine.bytes_per_second, 2 * engine.weights * computed / machine.flops_per_second)
    taken = time.perf_counter() - start
    row = {
        "sequences": count, "output_tokens": wanted, "steps": steps, "seconds": taken,
        "tokens_per_second": wanted / taken, "roofline_seconds": bound, "of_roofline": bound / taken,
    }  # fmt: skip
    report(machine, options, [row])


if __name__ == "__main__":
    main()
