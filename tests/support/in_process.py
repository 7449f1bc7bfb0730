"""An engine without its processes: prompt builder, vision runner, scheduler, model runner, all in the test's own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from epd_runtime.config import ServerConfig
from epd_runtime.engine.image_source import LocalImages
from epd_runtime.engine.loading import place_model
from epd_runtime.engine.model_runner import ModelRunner
from epd_runtime.engine.request import Request
from epd_runtime.engine.scheduler import Limits, Scheduler
from epd_runtime.engine.waker import Waker
from epd_runtime.frontend.chat import Chat
from epd_runtime.frontend.images import ImageLimits
from epd_runtime.frontend.media import MediaFetcher
from epd_runtime.frontend.model_folder import load_model_folder
from epd_runtime.frontend.prompt import Prompt, PromptBuilder
from epd_runtime.kvcache.allocator import PageAllocator
from epd_runtime.kvcache.layout import KVLayout
from epd_runtime.kvcache.pool import KVPool, page_bytes
from epd_runtime.messages import GenerateRequest, RequestFailed, SamplingParams
from epd_runtime.models.registry import load_language_model, load_vision_tower

PAGE = 16
CONTEXT = 4096
LIMITS = ImageLimits(max_images=16, max_file_bytes=1 << 24, max_pixels=1 << 24)


class InProcessEngine:
    """One model. Every call of generate() starts from an empty cache of `num_pages` pages."""

    def __init__(self, folder: Path, num_pages: int = 400, dtype: str = "float32") -> None:
        self._server = ServerConfig(model_path=str(folder), device="cpu", dtype=dtype)
        self._placement = place_model(self._server)
        place = (folder, self._placement.device, self._placement.dtype)
        self._model = load_language_model(self._placement.config, *place, CONTEXT, None)
        self._tower = load_vision_tower(self._placement.config, *place, None)
        self._num_pages = num_pages
        self._builder = PromptBuilder(load_model_folder(str(folder)), MediaFetcher(LIMITS, 1.0, ()), LIMITS, CONTEXT)

    def chat(self, messages: list[dict[str, Any]]) -> Prompt:
        """The prompt of one conversation."""
        return asyncio.run(self._builder.from_chat(Chat(messages)))

    def generate(self, prompts: Sequence[Prompt], lengths: Sequence[int], chunk: int) -> list[list[int]]:
        """Greedy tokens of all prompts in one batch, prompts computed `chunk` tokens at a time."""
        config, dtype = self._placement.config, self._placement.dtype
        size = page_bytes(config, dtype, PAGE)
        garbage = torch.full((self._num_pages * size // dtype.itemsize,), float("nan"), dtype=dtype)
        layout = KVLayout("test", str(dtype), PAGE, size, self._num_pages)
        allocator = PageAllocator(self._num_pages)
        scheduler = Scheduler(Limits(CONTEXT, PAGE, 8, chunk, frozenset(), 10**6), allocator)
        runner = ModelRunner(self._model, KVPool(layout, config, dtype, garbage.view(torch.uint8)), torch.device("cpu"))
        self._submit(scheduler, prompts, lengths)
        tokens: dict[str, list[int]] = {str(index): [] for index in range(len(prompts))}
        while scheduler.requests:
            work = scheduler.schedule()
            scheduler.commit(work, runner.run(work))
            for output in scheduler.outbox:
                assert not isinstance(output, RequestFailed), output
                tokens[output.rid].extend(output.token_ids)
            scheduler.outbox.clear()
        assert allocator.num_used == 0
        return list(tokens.values())

    def _submit(self, scheduler: Scheduler, prompts: Sequence[Prompt], lengths: Sequence[int]) -> None:
        """Queue every prompt, its images encoded."""
        images = None
        if self._tower is not None:
            images = LocalImages(self._tower, self._server, self._placement, Waker())
        for index, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
            request = Request(
                GenerateRequest(
                    str(index), prompt.input_ids, SamplingParams(length, temperature=0.0, ignore_eos=True),
                    prompt.images, prompt.positions, prompt.position_delta,
                )
            )  # fmt: skip
            scheduler.add(request)
            if images is not None:
                images.fetch(request)
        deadline = time.monotonic() + 60
        while images is not None and images.num_pending:
            assert time.monotonic() < deadline, "an image never came"
            for request, error in images.step():
                assert error is None, error
                scheduler.image_arrived(request)
            time.sleep(0.002)
