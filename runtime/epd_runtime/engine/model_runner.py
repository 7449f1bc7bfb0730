"""Owns everything that lives on the device for the language model, and runs one step.

On CUDA launch() does not wait for the device, so that the host can prepare the next step: inputs are copied without
waiting, and nothing looks at a value on the device. Exceptions, which only cost time: experts that grouped products do
not take (each layer reads how many tokens go to each), attention by flashinfer, and what overlap.py says of sampling.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from epd_runtime.accelerator import HostCopy, to_device
from epd_runtime.attention.batch import ForwardBatch
from epd_runtime.attention.registry import open_attention
from epd_runtime.engine.batch_builder import BatchBuilder
from epd_runtime.engine.cuda_graphs import DecodeBuffers, PaddedDecode
from epd_runtime.engine.future_tokens import FutureTokens
from epd_runtime.engine.ranks.leader import Leader
from epd_runtime.engine.sampling.logprobs import prompt_rows, record_prompt
from epd_runtime.engine.sampling.sampler import Sampler
from epd_runtime.engine.scheduler import Work
from epd_runtime.kvcache.pool import KVPool
from epd_runtime.models.decoder import LanguageModel
from epd_runtime.models.experts import ExpertsMLP

log = logging.getLogger(__name__)

PROMPT_LOGPROBS_AT_ONCE = 64  # tokens

Wanted = tuple[int, Work, range]  # a work's first row in the batch, and the tokens of its prompt that want logprobs


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
        leader: Leader | None = None,
    ) -> None:
        """The attention implementations by name; None is the device's default. leader: when ranks are several."""
        self._leader = leader
        self._num_axes = 3 if model.config.mrope_section else 1
        self._model = model
        self._pool = pool
        self._device = device
        self._attention = open_attention(pool, model.config.num_heads, prefill_attention, decode_attention)
        self._sampler = Sampler(eos_token_ids)
        self._futures = FutureTokens(device)
        self._builder = BatchBuilder(pool.layout.page_size, device, self._num_axes)
        self._host_builder = BatchBuilder(pool.layout.page_size, torch.device("cpu"), self._num_axes)
        self._padded: PaddedDecode | None = None

    def pad_decode(self, sizes: Sequence[int], context_length: int) -> None:
        """From now on run steps of decodes alone in these batch sizes; on CUDA as graphs, where the model allows it.

        sizes ascending; the pool must have a scratch page.
        """
        experts = [module for module in self._model.modules() if isinstance(module, ExpertsMLP)]
        capturable = self._attention.is_decode_capturable and all(one.is_aligned for one in experts)
        if self._device.type == "cuda" and not capturable:
            log.info("decode steps run without CUDA graphs: attention or experts read values back from the device")
            return
        scratch = self._pool.scratch_page
        assert scratch is not None
        self._pool.clear(torch.tensor([scratch], device=self._device))
        max_pages = -(-context_length // self._pool.layout.page_size)
        buffers = DecodeBuffers(sizes[-1], max_pages, self._num_axes, self._device, scratch)
        self._padded = PaddedDecode(self._forward, buffers, sizes)
        if self._device.type == "cuda":
            self._padded.capture()

    def run(self, work: Sequence[Work]) -> list[int]:
        """Compute a step; returns the next token of every work that samples, in order (NO_TOKEN: none valid)."""
        return self.launch(work).tokens()

    @torch.inference_mode()
    def launch(self, work: Sequence[Work]) -> LaunchedStep:
        """Begin a step. Pending tokens of its requests are those of the step launched before it."""
        wanted = [(start, item, tokens) for start, item, tokens in _prompt_logprobs(work) if tokens]
        logits = None if wanted else self._decode(work)
        if logits is None:
            logits = self._compute(work, wanted) if self._leader is None else self._lead(self._leader, work, wanted)
        requests = [item.request for item in work if item.samples]
        tokens = self._sampler.choose(logits, requests)
        self._futures.keep(tokens, requests)
        return LaunchedStep(tokens)

    def _compute(self, work: Sequence[Work], wanted: Sequence[Wanted]) -> Tensor:
        batch = self._builder.build(work)
        self._futures.fill(work, batch.input_ids)
        return self._finish(batch, wanted)

    def _lead(self, leader: Leader, work: Sequence[Work], wanted: Sequence[Wanted]) -> Tensor:
        """Compute on all ranks. Does not return if it fails: the others would wait for ever."""
        batch = self._host_builder.build(work)
        scored = [(row, count) for one in wanted for _, row, count in _score_runs(*one)]
        try:
            return self._finish(leader.share(batch, scored), wanted)
        except Exception as error:
            log.exception("a step failed")
            leader.give_up(error)

    def _finish(self, batch: ForwardBatch, wanted: Sequence[Wanted]) -> Tensor:
        self._pool.clear(batch.begun_pages)
        return self._score_prompts(batch, wanted) if wanted else self._forward(batch)

    def _decode(self, work: Sequence[Work]) -> Tensor | None:
        """Logits of a step that runs padded; None if it cannot."""
        if self._padded is None or not self._padded.takes(len(work)) or any(item.num_tokens > 1 for item in work):
            return None
        batch = self._host_builder.build(work)
        if batch.image_rows is not None:  # a chunk of one token that is part of an image
            return None
        if len(batch.begun_pages):
            self._pool.clear(to_device(batch.begun_pages, self._device))
        return self._padded.run(batch, lambda input_ids: self._futures.fill(work, input_ids))

    def _forward(self, batch: ForwardBatch) -> Tensor:
        self._attention.prepare(batch)
        logits: Tensor = self._model(batch, self._attention)
        return logits

    def _score_prompts(self, batch: ForwardBatch, wanted: Sequence[Wanted]) -> Tensor:
        """Logits as _forward() gives them, and on the way the logprobs of prompt tokens that requests want."""
        self._attention.prepare(batch)
        x, residual = self._model.hidden(batch, self._attention)
        for start, item, tokens in wanted:
            for token, row, count in _score_runs(start, item, tokens):
                rows = torch.arange(row, row + count, device=x.device)
                record_prompt(self._model.logits(x, residual, rows), item.request, token)
        return self._model.logits(x, residual, batch.logit_rows)


class LaunchedStep:
    """The tokens of a step under way."""

    def __init__(self, tokens: Tensor) -> None:
        """tokens int64 [sampled sequences] on the device."""
        self._copy = HostCopy(tokens)

    def tokens(self) -> list[int]:
        """Wait for the step."""
        result: list[int] = self._copy.wait().tolist()
        return result


def _prompt_logprobs(work: Sequence[Work]) -> Iterator[Wanted]:
    start = 0
    for item in work:
        yield start, item, prompt_rows(item.request, item.num_tokens)
        start += item.num_tokens


def _score_runs(start: int, item: Work, tokens: range) -> Iterator[tuple[int, int, int]]:
    """(token, row, count): rows of the batch that give the logprobs of tokens from this one on.

    A few at a time: a chunk's logits over a large vocabulary are gigabytes.
    """
    for first in range(tokens.start, tokens.stop, PROMPT_LOGPROBS_AT_ONCE):
        count = min(PROMPT_LOGPROBS_AT_ONCE, tokens.stop - first)
        yield first, start + first - 1 - item.request.num_computed, count
