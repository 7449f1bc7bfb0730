"""What the language model asks of attention, and what an implementation of one half of it provides."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from epd_runtime.attention.batch import ForwardBatch


class AttentionBackend(Protocol):
    """Causal attention over paged KV, for batches that mix prefill chunks and decode steps."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layer: int, batch: ForwardBatch) -> Tensor:
        """Store k, v [tokens, kv_heads, head_dim] in the layer's pages, then attend.

        q [tokens, heads, head_dim]; token j of a sequence sees that sequence's first (kv_len - q_len + j + 1) tokens.
        Returns [tokens, heads, head_dim].
        """


class AttentionPart(Protocol):
    """Attention of prefill chunks, or of decode steps; the two are chosen apart."""

    is_capturable: bool  # attend() may run inside a CUDA graph: it depends on the batch's tensors, not on their values

    def prepare(self, batch: ForwardBatch) -> None:
        """Called once per step, before the first layer: what all layers share is computed here."""

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, batch: ForwardBatch, out: Tensor
    ) -> None:
        """Attend for this part's rows of the batch and write them to out; only called when there are some.

        q, out [tokens, heads, head_dim] and k, v [tokens, kv_heads, head_dim] of the whole batch; k and v are already
        in keys, values [pages, page_size, kv_heads, head_dim].
        """
