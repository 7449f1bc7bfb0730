"""What deciding costs: CPU time of one step of the engine without its model.

    python benchmarks/scheduler.py [--running 64] [--context 1000] [--steps 300] [--output FILE]

A step is schedule(), the batch's tensors and commit(). Measured with all requests decoding, with the same plus a queue
that waits for pages, and for the admission of a long prompt that is found in the prefix cache. Process CPU time, median
of the steps; beside it, as a yardstick of this machine, a loop of a million additions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from epd_runtime.engine.batch_builder import BatchBuilder
from epd_runtime.engine.limits import Limits
from epd_runtime.engine.request import TO_END_OF_CONTEXT, Request
from epd_runtime.engine.scheduler import Scheduler, Work
from epd_runtime.kvcache.allocator import PageAllocator
from epd_runtime.messages import GenerateRequest, SamplingParams

PAGE = 16
CONTEXT_LENGTH = 1 << 17


def ask(rid: str, prompt: int, first: int) -> Request:
    """A request that never ends by itself; first sets its prompt apart."""
    ids = [first, *range(10, 9 + prompt)]
    return Request(GenerateRequest(rid, ids, SamplingParams(TO_END_OF_CONTEXT, 0.0, ignore_eos=True)))


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """CPU microseconds of a call, and its result."""
    start = time.process_time_ns()
    result = function()
    return (time.process_time_ns() - start) / 1000, result


class Engine:
    """A scheduler and a batch builder; the model's answer is always the same token."""

    def __init__(self, running: int, num_pages: int) -> None:
        limits = Limits(CONTEXT_LENGTH, PAGE, running + 1, 4096, frozenset(), 1 << 17)
        self.scheduler = Scheduler(limits, PageAllocator(num_pages))
        self._builder = BatchBuilder(PAGE, torch.device("cpu"), 1)

    def step(self) -> dict[str, float]:
        """CPU microseconds of the parts of one step."""
        schedule, work = timed(self.scheduler.schedule)
        build, _ = timed(lambda: self._builder.build(work))
        commit, _ = timed(lambda: self._commit(work))
        return {"schedule": schedule, "build": build, "commit": commit, "step": schedule + build + commit}

    def _commit(self, work: Sequence[Work]) -> None:
        self.scheduler.commit(work, [7] * sum(item.samples for item in work))
        self.scheduler.outbox.clear()

    def fill(self, running: int, prompt: int) -> None:
        """Compute the prompts."""
        for index in range(running):
            self.scheduler.add(ask(f"r{index}", prompt, 1000 + index))
        while any(request.num_computed < prompt for request in self.scheduler.requests.values()):
            self.step()


def measure(engine: Engine, steps: int) -> dict[str, float]:
    """Medians in microseconds."""
    rows = [engine.step() for _ in range(steps)]
    return {name: round(statistics.median(row[name] for row in rows), 1) for name in rows[0]}


def measure_hit(prompt: int) -> dict[str, float]:
    """One prompt of which all full pages are cached: from arrival to its batch."""
    engine = Engine(2, 4 * prompt // PAGE + 8)
    engine.scheduler.add(ask("first", prompt, 1))
    while engine.scheduler.requests["first"].num_computed < prompt:
        engine.step()
    engine.scheduler.abort("first")
    second = ask("second", prompt, 1)
    add, _ = timed(lambda: engine.scheduler.add(second))
    schedule, work = timed(engine.scheduler.schedule)
    assert sum(item.num_tokens for item in work) <= PAGE
    return {"add": round(add, 1), "schedule": round(schedule, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--running", type=int, default=64)
    parser.add_argument("--context", type=int, default=1000, help="tokens of each prompt")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--output", help="file for the figures as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    running, context, steps = arguments.running, arguments.context, arguments.steps
    num_pages = running * -(-(context + 2 * steps + 200) // PAGE)
    engine = Engine(running, num_pages)
    engine.fill(running, context)
    results: dict[str, Any] = {"decoding": measure(engine, steps)}
    engine.scheduler.add(ask("waiting", num_pages * PAGE * 3 // 4, 1))
    results["decoding, one waits for pages"] = measure(engine, steps)
    results["hit of 8192 tokens"] = measure_hit(8192)
    results["a million additions"] = {"step": round(timed(lambda: sum(index for index in range(10**6)))[0], 1)}
    for name, figures in results.items():
        print(f"{name:32}" + "  ".join(f"{part} {value:8.1f} µs" for part, value in figures.items()))
    if arguments.output:
        with open(arguments.output, "w") as file:
            json.dump({"running": running, "context": context, "microseconds": results}, file, indent=1)


if __name__ == "__main__":
    main()
