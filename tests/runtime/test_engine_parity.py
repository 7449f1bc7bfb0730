"""Scheduler, batches, paged attention and models together, against transformers, in this process."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from epd_runtime.engine.limits import Limits
from epd_runtime.engine.model_runner import ModelRunner
from epd_runtime.engine.request import Request
from epd_runtime.engine.scheduler import Scheduler
from epd_runtime.kvcache.allocator import PageAllocator
from epd_runtime.kvcache.layout import KVLayout
from epd_runtime.kvcache.pool import KVPool, page_bytes
from epd_runtime.messages import GenerateRequest, RequestFailed, SamplingParams
from epd_runtime.model_config import load_model_config
from epd_runtime.models.registry import load_language_model
from reference import TextReference

PAGE = 16
PAGES = 60
CPU = torch.device("cpu")


def generate(folder: Path, prompts: list[list[int]], lengths: list[int], chunk: int) -> list[list[int]]:
    """Greedy tokens of all prompts in one engine; fewer pages than they need together, so that some must queue."""
    config = load_model_config(folder)
    model = load_language_model(config, folder, CPU, torch.float32, 2048, None)
    size = page_bytes(config, torch.float32, PAGE)
    layout = KVLayout("test", "float32", PAGE, size, PAGES)
    garbage = torch.full((PAGES * size // 4,), float("nan"))  # what an earlier owner left must not matter
    allocator = PageAllocator(PAGES)
    scheduler = Scheduler(Limits(2048, PAGE, 8, chunk, frozenset(), 10**6), allocator)
    runner = ModelRunner(model, KVPool(layout, config, torch.float32, garbage.view(torch.uint8)), CPU)
    for index, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        scheduler.add(Request(GenerateRequest(str(index), prompt, SamplingParams(length, temperature=0.0))))
    tokens: dict[str, list[int]] = {str(index): [] for index in range(len(prompts))}
    while scheduler.requests:
        work = scheduler.schedule()
        scheduler.commit(work, runner.run(work))
        for output in scheduler.outbox:
            assert not isinstance(output, RequestFailed)
            tokens[output.rid].extend(output.token_ids)
        scheduler.outbox.clear()
    assert allocator.num_used == 0
    return list(tokens.values())


@pytest.mark.parametrize("chunk", [4096, 16, 7])
def test_mixed_lengths_equal_transformers(llama: Path, seed: int, chunk: int) -> None:
    draw = random.Random(seed)
    prompts = [[draw.randrange(2, 300) for _ in range(n)] for n in (1, 5, 15, 16, 17, 40, 100, 33, 64, 3, 300)]
    lengths = [draw.randrange(1, 40) for _ in prompts]
    reference = TextReference(llama)
    expected = [reference.generate(prompt, length) for prompt, length in zip(prompts, lengths, strict=True)]
    assert len({token for answer in expected for token in answer}) > 20, "the model repeats itself: nothing is proven"
    assert generate(llama, prompts, lengths, chunk) == expected
