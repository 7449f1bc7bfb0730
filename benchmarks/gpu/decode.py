"""Decode steps of an 8B-shaped model at batch 1 and 64, each sequence 1,024 tokens long, beside their roofline.

    python -m benchmarks.gpu.decode [--tiny] [--disable-cuda-graph] [--attention NAME] [--json FILE]

A step is scheduling, forward and sampling, as the engine runs it. Roofline: the bytes that a step must read (all
weights once, the KV of every sequence) at the bandwidth of a copy, measured in the same run. syncs: how often the host
waited for the device in one step.
"""

from __future__ import annotations

import statistics
import time
import warnings
from typing import Any

import torch

from benchmarks.gpu.common import LLAMA_8B, PAGE, Engine, Machine, arguments, limits, model_config, report

STEPS = 64


def main() -> None:
    """Print one row per batch size."""
    options = arguments(__doc__)
    machine = Machine.measure(options.tiny)
    length, steps, batches = (20, 4, (1, 3)) if options.tiny else (1024, STEPS, (1, 64))
    config = model_config(LLAMA_8B, options.tiny)
    context = length + 2 * steps
    engine = Engine(
        config, machine, options, limits(context, batches[-1], 4096, config.text.vocab_size),
        num_pages=batches[-1] * (context // PAGE + 1),
    )  # fmt: skip
    report(machine, options, [measure(engine, machine, batch, length, steps) for batch in batches])


def measure(engine: Engine, machine: Machine, batch: int, length: int, steps: int) -> dict[str, Any]:
    """The median of `steps` decode steps."""
    for index in range(batch):
        engine.add(str(index), [2 + index % 200] * length, steps + 8)
    while engine.step()[1] < batch:  # prompts, and the first step of decodes alone
        pass
    syncs = count_syncs(engine) if machine.device.type == "cuda" else 0
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - start)
    while engine.scheduler.requests:
        engine.step()
    step = statistics.median(times)
    needed = engine.weights * machine.dtype.itemsize + batch * (length + steps / 2) * engine.token_bytes
    bound = needed / machine.bytes_per_second
    return {
        "batch": batch, "step_ms": step * 1e3, "tokens_per_second": batch / step, "roofline_ms": bound * 1e3,
        "of_roofline": bound / step, "syncs": syncs,
    }  # fmt: skip


def count_syncs(engine: Engine) -> int:
    """Times that one step makes the host wait for the device."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        engine.step()
    torch.cuda.set_sync_debug_mode("default")
    return len(seen)


if __name__ == "__main__":
    main()
