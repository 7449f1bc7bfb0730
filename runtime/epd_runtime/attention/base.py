"""What the language model asks of an attention implementation."""

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
