"""Decode attention in C, for CPU: reads pages where they are, without gathering or a mask."""

from __future__ import annotations

from torch import Tensor

from epd_runtime.attention.base import AttentionPart
from epd_runtime.attention.batch import ForwardBatch
from epd_runtime.attention.reference import ReferenceDecode
from epd_runtime.kernels.native_ops import operations
from epd_runtime.kvcache.pool import KVPool


class NativeDecode:
    """All decode steps in one call per layer."""

    is_capturable = False

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
        operations.decode_attention(q, keys, values, rows, table, lengths, out)


def open_decode(pool: KVPool, num_heads: int) -> AttentionPart:
    """For half types, which C knows nothing of, and very wide models the reference."""
    keys, _ = pool.layer(0)
    _, page_size, _, head_dim = keys.shape
    if operations.takes_decode(keys.dtype, num_heads, head_dim):
        return NativeDecode()
    return ReferenceDecode(page_size)
