"""Owns everything that lives on the device for the language model, and runs one step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from epd_runtime.attention.registry import open_attention
from epd_runtime.engine.batch_builder import BatchBuilder
from epd_runtime.engine.sampling.sampler import Sampler
from epd_runtime.engine.scheduler import Work
from epd_runtime.kvcache.pool import KVPool
from epd_runtime.models.decoder import LanguageModel


class ModelRunner:
    """Language model, KV pool and attention of one engine."""

    def __init__(
        self,
        model: LanguageModel,
        pool: KVPool,
        device: torch.device,
        prefill_attention: str | None = None,
        decode_attention: str | None = None,
        eos_token_ids: frozenset[int] = frozenset(),
    ) -> None:
        """The attention implementations by name; None is the device's default."""
        num_axes = 3 if model.config.mrope_section else 1
        self._model = model
        self._pool = pool
        self._attention = open_attention(pool, model.config.num_heads, prefill_attention, decode_attention)
        self._builder = BatchBuilder(pool.layout.page_size, device, num_axes)
        self._sampler = Sampler(eos_token_ids)

    @torch.inference_mode()
    def run(self, work: Sequence[Work]) -> list[int]:
        """Compute a step; returns the next token of every work that samples, in order (NO_TOKEN: none valid)."""
        batch = self._builder.build(work)
        self._pool.clear(batch.begun_pages)
        self._attention.prepare(batch)
        logits = self._model(batch, self._attention)
        return self._sampler.sample(logits, [item.request for item in work if item.samples])
