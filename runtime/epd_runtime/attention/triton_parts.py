"""Attention by the Triton kernels: CUDA, or CPU under TRITON_INTERPRET=1."""

from __future__ import annotations

import torch
from torch import Tensor

from epd_runtime.accelerator import to_device
from epd_runtime.attention.batch import ForwardBatch
from epd_runtime.kernels.triton_ops.decode import decode_attention, num_splits
from epd_runtime.kernels.triton_ops.prefill import plan_tiles, prefill_attention, tokens_per_tile
from epd_runtime.kvcache.pool import KVPool

PROGRAMS_PER_PROCESSOR = 4  # decode programs for each multiprocessor of the GPU; as many fit by their registers


class TritonPrefill:
    """All chunks of a step in one launch per layer."""

    is_capturable = False  # tiles and launch size change from step to step

    def __init__(self, pool: KVPool, num_heads: int) -> None:
        self._device = pool.device
        self._page_size = pool.layout.page_size
        keys, _ = pool.layer(0)
        self._tokens = tokens_per_tile(num_heads, keys.shape[2], keys.shape[3], keys.element_size())
        self._tiles = self._pages = torch.empty(0)

    def prepare(self, batch: ForwardBatch) -> None:
        """Cut the chunks into tiles, once for all layers."""
        chunks = [(sequence.start, sequence.q_len, sequence.kv_len) for sequence in batch.prefills]
        self._tiles = to_device(plan_tiles(chunks, self._page_size, self._tokens), self._device)
        self._pages = torch.cat([sequence.pages for sequence in batch.prefills])

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, batch: ForwardBatch, out: Tensor
    ) -> None:
        """See AttentionPart.attend."""
        prefill_attention(q, keys, values, self._pages, self._tiles, self._tokens, out)


class TritonDecode:
    """All decode steps in two launches per layer: splits of the keys, and their sum."""

    is_capturable = True

    def __init__(self, pool: KVPool, num_heads: int) -> None:
        self._page_size = pool.layout.page_size
        processors = (
            torch.cuda.get_device_properties(pool.device).multi_processor_count if pool.device.type == "cuda" else 1
        )
        self._num_programs = processors * PROGRAMS_PER_PROCESSOR

    def prepare(self, batch: ForwardBatch) -> None:
        """Nothing is shared between layers."""

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, batch: ForwardBatch, out: Tensor
    ) -> None:
        """See AttentionPart.attend."""
        rows, table, lengths = batch.decode_rows, batch.decode_pages, batch.decode_lengths
        assert rows is not None
        assert table is not None
        assert lengths is not None
        splits = num_splits(len(rows), keys.shape[2], table.shape[1] * self._page_size, self._num_programs)
        decode_attention(q, keys, values, rows, table, lengths, splits, out)
