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
from epd_runtime.engine.limits import Limits
from epd_runtime.engine.loading import place_model
from epd_runtime.engine.model_runner import ModelRunner
from epd_runtime.engine.overlap import StepPipeline
from epd_runtime.engine.ranks.leader import Leader
from epd_runtime.engine.request import Request
from epd_runtime.engine.scheduler import Scheduler
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
    """One model. Every call of generate() or serve() starts from an empty cache."""

    def __init__(self, folder: Path, dtype: str = "float32", leader: Leader | None = None, ranks: int = 1) -> None:
        """leader: of so many ranks that compute together."""
        self._server = ServerConfig(model_path=str(folder), device="cpu", dtype=dtype, tp_size=ranks)
        self._placement = place_model(self._server)
        self._leader = leader
        place = (folder, self._placement.device, self._placement.dtype)
        together = leader.ranks if leader is not None else None
        self._model = load_language_model(self._placement.config, *place, CONTEXT, None, together)
        if leader is not None:
            leader.agree(400, 0)
        self._tower = load_vision_tower(self._placement.config, *place, None)
        self._builder = PromptBuilder(load_model_folder(str(folder)), MediaFetcher(LIMITS, 1.0, ()), LIMITS, CONTEXT)

    def chat(self, messages: list[dict[str, Any]]) -> Prompt:
        """The prompt of one conversation."""
        return asyncio.run(self._builder.from_chat(Chat(messages)))

    def generate(self, prompts: Sequence[Prompt], lengths: Sequence[int], chunk: int) -> list[list[int]]:
        """Greedy tokens of all prompts in one batch, prompts computed `chunk` tokens at a time."""
        return self.serve(Limits(CONTEXT, PAGE, 8, chunk, frozenset(), 10**6)).generate(prompts, lengths)

    def serve(self, limits: Limits, num_pages: int = 400) -> Serving:
        """Start with an empty pool of so many pages; what it computes is cached until it is gone."""
        config, dtype = self._placement.part, self._placement.dtype
        size = page_bytes(config, dtype, limits.page_size)
        garbage = torch.full((num_pages * size // dtype.itemsize,), float("nan"), dtype=dtype)
        layout = KVLayout("test", str(dtype), limits.page_size, size, num_pages)
        pool = KVPool(layout, config, dtype, garbage.view(torch.uint8))
        runner = ModelRunner(self._model, pool, torch.device("cpu"), leader=self._leader)
        images = None
        if self._tower is not None:
            images = LocalImages(self._tower, self._server, self._placement, Waker())
        return Serving(Scheduler(limits, PageAllocator(num_pages)), runner, images)


class Serving:
    """An engine's loop, as far as it concerns scheduling."""

    def __init__(self, scheduler: Scheduler, runner: ModelRunner, images: LocalImages | None) -> None:
        self.scheduler = scheduler
        self._runner = runner
        self._images = images

    def generate(
        self, prompts: Sequence[Prompt], lengths: Sequence[int], temperature: float = 0.0, overlaps: bool = False
    ) -> list[list[int]]:
        """Tokens of all prompts at once; greedy, or sampled with the prompt's number as the seed."""
        scheduler = self.scheduler
        steps = StepPipeline(scheduler, self._runner.launch, overlaps)
        for index, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
            sampling = SamplingParams(length, temperature, seed=index, ignore_eos=True)
            message = GenerateRequest(
                str(index), prompt.input_ids, sampling, prompt.images, prompt.positions, prompt.position_delta
            )
            scheduler.add(Request(message))
        tokens: dict[str, list[int]] = {str(index): [] for index in range(len(prompts))}
        while scheduler.requests:
            self._encode()
            steps.step()
            for output in scheduler.outbox:
                assert not isinstance(output, RequestFailed), output
                tokens[output.rid].extend(output.token_ids)
            scheduler.outbox.clear()
        assert scheduler.allocator.num_used == 0
        return list(tokens.values())

    def _encode(self) -> None:
        """Give requests the images that they wait for."""
        wanted, deadline = self.scheduler.images_wanted, time.monotonic() + 60
        while self._images is not None and (wanted or self._images.num_pending or self._images.has_work()):
            while wanted:
                self._images.fetch(wanted.pop())
            for request, error in self._images.step():
                assert error is None, error
                self.scheduler.image_arrived(request)
            assert time.monotonic() < deadline, "an image never came"
            time.sleep(0.001)
