"""What only a GPU can show of the engine. With those of the kernels, which run there too where there is one:

python -m pytest tests/gpu tests/runtime/test_kernels_*.py
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from epd_runtime.engine.cuda_graphs import graph_sizes
from epd_runtime.engine.limits import Limits
from epd_runtime.engine.model_runner import ModelRunner
from epd_runtime.engine.overlap import StepPipeline
from epd_runtime.engine.request import Request
from epd_runtime.engine.scheduler import Scheduler
from epd_runtime.kernels import ops
from epd_runtime.kvcache.allocator import PageAllocator
from epd_runtime.kvcache.layout import KVLayout
from epd_runtime.kvcache.mirror import PageMirror
from epd_runtime.kvcache.pool import KVPool, page_bytes
from epd_runtime.messages import GenerateRequest, RequestFailed, SamplingParams
from epd_runtime.model_config import load_model_config
from epd_runtime.models.registry import load_language_model
from epd_runtime.transfer.base import allocate_pool
from random_models import make_llama
from triton_device import DEVICE

pytestmark = pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a CUDA device")

PAGE, CONTEXT, BATCH = 16, 512, 6


@pytest.fixture(scope="module")
def draw() -> random.Random:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture(scope="module")
def folder(draw: random.Random, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("model"), draw.randrange(2**31))


@pytest.fixture(scope="module")
def wanted(draw: random.Random) -> list[GenerateRequest]:
    """Prompts of several chunks, greedy and drawn answers, with cuts and without."""
    asked = ({"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.9, "top_k": 30})
    return [
        GenerateRequest(
            str(index),
            [draw.randrange(2, 300) for _ in range(draw.randrange(1, 150))],
            SamplingParams(draw.randrange(1, 90), seed=index, **asked[index % 3]),
        )
        for index in range(12)
    ]


def open_pool(folder: Path, num_pages: int, dtype: torch.dtype) -> KVPool:
    config = load_model_config(folder)
    layout = KVLayout("test", str(dtype), PAGE, page_bytes(config, dtype, PAGE), num_pages)
    garbage = torch.full(((num_pages + 1) * layout.page_bytes // dtype.itemsize,), float("nan"), dtype=dtype)
    return KVPool(layout, config, dtype, garbage.to(DEVICE).view(torch.uint8))


def serve(
    folder: Path, wanted: list[GenerateRequest], *, kernels: str = "triton", graphs: bool = True,
    overlaps: bool = True, num_pages: int = 200, dtype: torch.dtype = torch.float32,
) -> dict[str, list[int]]:  # fmt: skip
    """Everybody's tokens."""
    config = load_model_config(folder)
    model = load_language_model(config, folder, DEVICE, dtype, CONTEXT, None)
    limits = Limits(CONTEXT, PAGE, BATCH, 40, frozenset(), config.text.vocab_size, reserve=0)
    scheduler = Scheduler(limits, PageAllocator(num_pages))
    attention = "triton" if kernels == "triton" else "reference"
    ops.choose(kernels)
    try:
        runner = ModelRunner(model, open_pool(folder, num_pages, dtype), DEVICE, attention, attention)
        if graphs:
            runner.pad_decode(graph_sizes(BATCH), CONTEXT)
        steps = StepPipeline(scheduler, runner.launch, overlaps)
        for one in wanted:
            scheduler.add(Request(one))
        tokens: dict[str, list[int]] = {one.rid: [] for one in wanted}
        while scheduler.requests:
            steps.step()
            for output in scheduler.outbox:
                assert not isinstance(output, RequestFailed), output
                tokens[output.rid] += output.token_ids
            scheduler.outbox.clear()
    finally:
        ops.choose("plain")
    return tokens


def test_graphs_overlap_and_kernels_change_no_token(folder: Path, wanted: list[GenerateRequest]) -> None:
    """Against plain PyTorch, step by step; the last time with too few pages for all."""
    expected = serve(folder, wanted, kernels="plain", graphs=False, overlaps=False)
    assert serve(folder, wanted, graphs=False, overlaps=False) == expected
    assert serve(folder, wanted, overlaps=False) == expected
    assert serve(folder, wanted) == expected
    assert serve(folder, wanted, num_pages=20) == expected


def test_overlap_changes_no_token_in_half_precision(folder: Path, wanted: list[GenerateRequest]) -> None:
    """The same kernels on the same batches round alike; which batches there are depends on lengths alone."""
    greedy = [GenerateRequest(one.rid, one.input_ids, SamplingParams(40, 0.0)) for one in wanted[:BATCH]]
    first, second = (serve(folder, greedy, overlaps=overlaps, dtype=torch.bfloat16) for overlaps in (False, True))
    assert first == second


def test_a_step_waits_for_the_device_only_to_read_its_tokens(folder: Path, wanted: list[GenerateRequest]) -> None:
    """Launching steps of greedy decodes never synchronises."""
    config = load_model_config(folder)
    model = load_language_model(config, folder, DEVICE, torch.float32, CONTEXT, None)
    scheduler = Scheduler(Limits(CONTEXT, PAGE, BATCH, 400, frozenset(), config.text.vocab_size), PageAllocator(200))
    ops.choose("triton")
    try:
        runner = ModelRunner(model, open_pool(folder, 200, torch.float32), DEVICE)
        runner.pad_decode(graph_sizes(BATCH), CONTEXT)
        for one in wanted[:3]:
            scheduler.add(Request(GenerateRequest(one.rid, one.input_ids, SamplingParams(60, 0.0))))
        steps = StepPipeline(scheduler, runner.launch, overlaps=True)
        for _ in range(8):
            steps.step()
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(8):
            work = scheduler.schedule()
            step = runner.launch(work)
            scheduler.advance(work)
            steps._settle()
            scheduler.settle(work, step.tokens())
    finally:
        torch.cuda.set_sync_debug_mode("default")
        ops.choose("plain")


@pytest.mark.parametrize("backend", ["tcp", "shm"])
def test_pages_pass_through_host_memory(folder: Path, backend: str) -> None:
    """Out of one pool and into another, beside work that is queued on the device."""
    source, target = (open_pool(folder, 40, torch.float32) for _ in range(2))
    source.storage.copy_(torch.randint(0, 256, source.storage.shape, dtype=torch.uint8))
    hosts = [allocate_pool(backend, len(source.storage)) for _ in range(2)]
    out, into = (PageMirror(pool, host.buffer) for pool, host in zip((source, target), hosts, strict=True))
    busy = torch.randn(2048, 2048, device=DEVICE)
    for _ in range(50):
        busy = busy @ busy / 2048
    pages = [3, 4, 5, 39, 0]
    copy = out.to_host(pages)
    while not copy.is_done():
        pass
    hosts[1].buffer[:] = hosts[0].buffer
    into.to_device(pages)
    size = source.layout.page_bytes
    for page in pages:
        part = slice(page * size, (page + 1) * size)
        assert torch.equal(source.storage[part], target.storage[part])
