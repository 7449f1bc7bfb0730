"""Attention by FlashInfer (the extra "cuda"), CUDA only.

Written from the documentation of its batch wrappers (docs.flashinfer.ai, 0.2 to 0.7); no GPU has run it yet, so
nothing chooses it by default. It plans on the host, so decode reads lengths back from the device, and no CUDA graph can
hold it.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from epd_runtime.attention.batch import ForwardBatch
from epd_runtime.kvcache.pool import KVPool

WORKSPACE_BYTES = 128 << 20  # as its documentation recommends


class FlashInferPrefill:
    """All chunks of a step in one call per layer."""

    is_capturable = False

    def __init__(self, pool: KVPool, num_heads: int) -> None:
        self._shape = _Shape(pool, num_heads)
        self._wrapper = self._shape.open("BatchPrefillWithPagedKVCacheWrapper")
        self._rows = torch.empty(0, dtype=torch.int64)  # of the chunks, in the flat batch

    def prepare(self, batch: ForwardBatch) -> None:
        """Hand over the chunks' lengths and pages."""
        q_lens = torch.tensor([sequence.q_len for sequence in batch.prefills])
        kv_lens = torch.tensor([sequence.kv_len for sequence in batch.prefills])
        pages = torch.cat([sequence.pages for sequence in batch.prefills])
        self._rows = torch.cat(
            [torch.arange(sequence.start, sequence.start + sequence.q_len) for sequence in batch.prefills]
        ).to(pages.device, non_blocking=True)
        shape = self._shape
        self._wrapper.plan(
            shape.offsets(q_lens), *shape.page_lists(kv_lens, pages), shape.num_heads, shape.num_kv_heads,
            shape.head_dim, shape.page_size, causal=True, q_data_type=shape.dtype, kv_data_type=shape.dtype,
        )  # fmt: skip

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, batch: ForwardBatch, out: Tensor
    ) -> None:
        """See AttentionPart.attend."""
        out[self._rows] = self._wrapper.run(q[self._rows], (keys, values))


class FlashInferDecode:
    """All decode steps in one call per layer."""

    is_capturable = False

    def __init__(self, pool: KVPool, num_heads: int) -> None:
        self._shape = _Shape(pool, num_heads)
        self._wrapper = self._shape.open("BatchDecodeWithPagedKVCacheWrapper")

    def prepare(self, batch: ForwardBatch) -> None:
        """Hand over the sequences' lengths and pages."""
        assert batch.decode_pages is not None
        assert batch.decode_lengths is not None
        shape, lengths = self._shape, batch.decode_lengths.cpu()
        counts = -(-batch.decode_lengths // shape.page_size)
        columns = torch.arange(batch.decode_pages.shape[1], device=counts.device)
        pages = batch.decode_pages[columns < counts[:, None]]
        self._wrapper.plan(
            *shape.page_lists(lengths, pages), shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.page_size,
            q_data_type=shape.dtype, kv_data_type=shape.dtype,
        )  # fmt: skip

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, batch: ForwardBatch, out: Tensor
    ) -> None:
        """See AttentionPart.attend."""
        out[batch.decode_rows] = self._wrapper.run(q[batch.decode_rows], (keys, values))


class _Shape:
    """What both wrappers must be told of the model and its pages."""

    def __init__(self, pool: KVPool, num_heads: int) -> None:
        keys, _ = pool.layer(0)
        self.num_heads = num_heads
        _, self.page_size, self.num_kv_heads, self.head_dim = keys.shape
        self.dtype, self.device = keys.dtype, pool.device

    def open(self, wrapper: str) -> Any:
        """A wrapper with a workspace of its own; keys are [pages, page_size, kv_heads, head_dim], its "NHD"."""
        workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=self.device)
        return getattr(importlib.import_module("flashinfer"), wrapper)(workspace, "NHD")

    def offsets(self, lengths: Tensor) -> Tensor:
        """int32 [n + 1]: where each of n runs begins, and where the last ends."""
        ends = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        return ends.to(self.device, non_blocking=True)

    def page_lists(self, lengths: Tensor, pages: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Offsets into the pages of all sequences, those pages, and the tokens on each last page, from host lengths."""
        counts = -(-lengths // self.page_size)
        last = (lengths - (counts - 1) * self.page_size).to(torch.int32)
        return self.offsets(counts), pages.to(torch.int32), last.to(self.device, non_blocking=True)
