"""A text-only engine in the test's process, for requests with any sampling parameters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from epd_runtime.engine.limits import Limits
from epd_runtime.engine.model_runner import ModelRunner
from epd_runtime.engine.overlap import StepPipeline
from epd_runtime.engine.request import Request
from epd_runtime.engine.scheduler import Scheduler
from epd_runtime.kvcache.allocator import PageAllocator
from epd_runtime.kvcache.layout import KVLayout
from epd_runtime.kvcache.pool import KVPool, page_bytes
from epd_runtime.messages import RequestFailed, TokenOutput
from epd_runtime.model_config import load_model_config
from epd_runtime.models.registry import load_language_model

PAGE, PAGES, CONTEXT = 16, 100, 2048


class TextEngine:
    """Scheduler and runner of one model, on CPU."""

    def __init__(
        self,
        folder: Path,
        chunk: int = 4096,
        eos: frozenset[int] = frozenset(),
        num_pages: int = PAGES,
        reserve: int = 64,
        overlaps: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        config = load_model_config(folder)
        model = load_language_model(config, folder, torch.device("cpu"), dtype, CONTEXT, None)
        size = page_bytes(config, dtype, PAGE)
        pool = KVPool(
            KVLayout("test", str(dtype), PAGE, size, num_pages),
            config,
            dtype,
            torch.zeros(num_pages * size, dtype=torch.uint8),
        )
        limits = Limits(CONTEXT, PAGE, 8, chunk, eos, config.text.vocab_size, reserve=reserve)
        self.scheduler = Scheduler(limits, PageAllocator(num_pages))
        runner = ModelRunner(model, pool, torch.device("cpu"), eos_token_ids=eos)
        self._steps = StepPipeline(self.scheduler, runner.launch, overlaps)

    def step(self) -> list[TokenOutput | RequestFailed]:
        """Compute one step and take what it reports."""
        self._steps.step()
        outputs, self.scheduler.outbox = self.scheduler.outbox, []
        return outputs

    def run(self, requests: Sequence[Request]) -> dict[str, list[TokenOutput]]:
        """Every request's outputs; none may fail."""
        for request in requests:
            self.scheduler.add(request)
        outputs: dict[str, list[TokenOutput]] = {request.rid: [] for request in requests}
        while self.scheduler.requests:
            for output in self.step():
                assert isinstance(output, TokenOutput), output
                outputs[output.rid].append(output)
        return outputs
