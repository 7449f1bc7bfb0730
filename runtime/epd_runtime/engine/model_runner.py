"""Owns everything that lives on the device for the language model, and runs one step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from epd_runtime.attention.registry import open_attention
from epd_runtime.engine.batch_builder import BatchBuilder
from epd_runtime.engine.request import Request
from epd_runtime.engine.sampling.logprobs import prompt_rows, record_prompt
from epd_runtime.engine.sampling.sampler import Sampler
from epd_runtime.engine.scheduler import Work
from epd_runtime.kvcache.pool import KVPool
from epd_runtime.models.decoder import LanguageModel

PROMPT_LOGPROBS_AT_ONCE = 64  # tokens


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
        wanted = [(start, item, tokens) for start, item, tokens in _prompt_logprobs(work) if tokens]
        if wanted:
            x, residual = self._model.hidden(batch, self._attention)
            for start, item, tokens in wanted:
                self._record_prompt(x, residual, start, item.request, tokens)
            logits = self._model.logits(x, residual, batch.logit_rows)
        else:
            logits = self._model(batch, self._attention)
        return self._sampler.sample(logits, [item.request for item in work if item.samples])

    def _record_prompt(self, x: Tensor, residual: Tensor, start: int, request: Request, tokens: range) -> None:
        """Logprobs of a prompt's tokens, a few at a time: a chunk's logits over a large vocabulary are gigabytes."""
        for first in range(tokens.start, tokens.stop, PROMPT_LOGPROBS_AT_ONCE):
            count = min(PROMPT_LOGPROBS_AT_ONCE, tokens.stop - first)
            row = start + first - 1 - request.num_computed
            rows = torch.arange(row, row + count, device=x.device)
            record_prompt(self._model.logits(x, residual, rows).log_softmax(dim=-1), request, first)


def _prompt_logprobs(work: Sequence[Work]) -> Iterator[tuple[int, Work, range]]:
    """First row of every work's tokens, and the tokens of its prompt whose logprobs they give."""
    start = 0
    for item in work:
        yield start, item, prompt_rows(item.request, item.num_tokens)
        start += item.num_tokens
