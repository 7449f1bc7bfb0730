"""Whole models by the Triton kernels, and decode steps padded to the sizes of CUDA graphs: the tokens stay the same."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from epd_runtime.attention.batch import ForwardBatch
from epd_runtime.engine.cuda_graphs import PaddedDecode, graph_sizes
from epd_runtime.engine.limits import Limits
from epd_runtime.engine.model_runner import ModelRunner
from epd_runtime.engine.overlap import StepPipeline
from epd_runtime.engine.request import Request
from epd_runtime.engine.scheduler import Scheduler
from epd_runtime.kernels import ops
from epd_runtime.kvcache.allocator import PageAllocator
from epd_runtime.kvcache.layout import KVLayout
from epd_runtime.kvcache.pool import KVPool, page_bytes
from epd_runtime.messages import GenerateRequest, RequestFailed, SamplingParams
from epd_runtime.model_config import ModelConfig, load_model_config
from epd_runtime.models.decoder import LanguageModel
from epd_runtime.models.registry import load_language_model, load_vision_tower
from random_models import make_llama, make_qwen2_5_vl
from triton_device import DEVICE

PAGE = 16
CONTEXT = 256
PAGES = 24


@pytest.fixture(scope="module")
def draw() -> random.Random:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture(scope="module", params=[make_llama, make_qwen2_5_vl], ids=["llama", "qwen2_5_vl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, draw: random.Random) -> Path:
    """Plain positions, and positions on three axes."""
    made: Path = request.param(tmp_path_factory.mktemp("model"), draw.randrange(2**31))
    return made


@pytest.fixture
def kernels() -> Iterator[None]:
    """Triton for everything that the test runs."""
    ops.choose("triton")
    yield
    ops.choose("plain")


class Engine:
    """Scheduler and runner over a pool full of NaN, the scratch page too."""

    def __init__(
        self, config: ModelConfig, model: LanguageModel, attention: str | None = None, chunk: int = 64
    ) -> None:
        layout = KVLayout("test", "float32", PAGE, page_bytes(config, torch.float32, PAGE), PAGES)
        self.storage = torch.full(((PAGES + 1) * layout.page_bytes // 4,), float("nan"), device=DEVICE)
        pool = KVPool(layout, config, torch.float32, self.storage.view(torch.uint8))
        self.allocator = PageAllocator(PAGES)
        self.scheduler = Scheduler(Limits(CONTEXT, PAGE, 8, chunk, frozenset(), 10**6), self.allocator)
        self.runner = ModelRunner(model, pool, DEVICE, attention, attention)

    def generate(self, prompts: list[list[int]], lengths: list[int], overlaps: bool = False) -> list[list[int]]:
        """Greedy tokens of all prompts."""
        steps = StepPipeline(self.scheduler, self.runner.launch, overlaps)
        for index, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
            sampling = SamplingParams(length, temperature=0.0, ignore_eos=True)
            self.scheduler.add(Request(GenerateRequest(str(index), prompt, sampling)))
        tokens: dict[str, list[int]] = {str(index): [] for index in range(len(prompts))}
        while self.scheduler.requests:
            steps.step()
            for output in self.scheduler.outbox:
                assert not isinstance(output, RequestFailed), output
                tokens[output.rid].extend(output.token_ids)
            self.scheduler.outbox.clear()
        return list(tokens.values())


def load(folder: Path) -> tuple[ModelConfig, LanguageModel]:
    config = load_model_config(folder)
    return config, load_language_model(config, folder, DEVICE, torch.float32, CONTEXT, None)


def drawn_prompts(draw: random.Random, sizes: list[int]) -> list[list[int]]:
    return [[draw.randrange(2, 300) for _ in range(size)] for size in sizes]


def test_padded_decode_gives_the_same_tokens(
    folder: Path, draw: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches shrink from five to one, so that every size is padded; pages of nobody are never written."""
    config, model = load(folder)
    prompts, lengths = drawn_prompts(draw, [1, 15, 16, 33, 40]), [3, 7, 12, 20, 33]
    expected = Engine(config, model).generate(prompts, lengths)
    counts: list[int] = []
    run = PaddedDecode.run

    def counted(self: PaddedDecode, batch: ForwardBatch, complete: Callable[[torch.Tensor], None]) -> torch.Tensor:
        counts.append(len(batch.input_ids))
        return run(self, batch, complete)

    monkeypatch.setattr(PaddedDecode, "run", counted)
    padded = Engine(config, model)
    padded.runner.pad_decode((1, 2, 4), CONTEXT)
    assert padded.generate(prompts, lengths, overlaps=True) == expected
    assert {1, 2, 3, 4} == set(counts), "five decodes fit no size and run as they are"
    pages = padded.storage.view(PAGES + 1, -1)
    assert pages[-1].isfinite().any(), "three decodes run as four: the fourth writes to the scratch page"


def test_sizes_of_graphs() -> None:
    assert graph_sizes(1) == (1,)
    assert graph_sizes(3) == (1, 2, 3)
    assert graph_sizes(8) == (1, 2, 4, 8)
    assert graph_sizes(28) == (1, 2, 4, 8, 16, 24, 28)


@pytest.mark.usefixtures("kernels")
def test_language_model_by_kernels(folder: Path, draw: random.Random) -> None:
    """Chunks after cached pages, mixed with decodes, then decodes padded: the tokens of plain PyTorch."""
    config, model = load(folder)
    prompts, lengths = drawn_prompts(draw, [5, 40]), [5, 2]
    engine = Engine(config, model, "triton", chunk=32)
    engine.runner.pad_decode((2,), CONTEXT)
    tokens = engine.generate(prompts, lengths)
    ops.choose("plain")
    assert tokens == Engine(config, model, "reference").generate(prompts, lengths)


def test_vision_tower_by_kernels(tmp_path: Path, draw: random.Random) -> None:
    """Windows and whole images of several sizes in one packed sequence."""
    folder = make_qwen2_5_vl(tmp_path, draw.randrange(2**31))
    tower = load_vision_tower(load_model_config(folder), folder, DEVICE, torch.float32, None)
    assert tower is not None
    grids = [(1, 4, 6), (1, 2, 2)]
    pixels = torch.randn(28, 3 * 2 * 14 * 14, device=DEVICE)[:, : 3 * 14 * 14]
    with torch.inference_mode():
        expected = tower(pixels, grids)
        ops.choose("triton")
        try:
            actual = tower(pixels, grids)
        finally:
            ops.choose("plain")
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
