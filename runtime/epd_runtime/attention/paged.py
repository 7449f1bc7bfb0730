"""Attention over the paged cache: store the new tokens, then let each part attend for its rows."""

from __future__ import annotations

from torch import Tensor

from epd_runtime.attention.base import AttentionPart
from epd_runtime.attention.batch import ForwardBatch
from epd_runtime.kernels import ops
from epd_runtime.kvcache.pool import KVPool


class PagedAttention:
    """The AttentionBackend of an engine, from one implementation for prefill chunks and one for decode steps."""

    def __init__(self, pool: KVPool, prefill: AttentionPart, decode: AttentionPart) -> None:
        self._pool = pool
        self._prefill = prefill
        self._decode = decode

    @property
    def is_decode_capturable(self) -> bool:
        """Whether a step of decodes alone may be captured in a CUDA graph."""
        return self._decode.is_capturable

    def prepare(self, batch: ForwardBatch) -> None:
        """Called once per step, before the model."""
        if batch.prefills:
            self._prefill.prepare(batch)
        if batch.decode_rows is not None:
            self._decode.prepare(batch)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layer: int, batch: ForwardBatch) -> Tensor:
        """See AttentionBackend.forward."""
        keys, values = self._pool.layer(layer)
        ops.store_kv(k, v, keys, values, batch.write_pages, batch.write_slots)
        out = q.new_empty(q.shape)
        if batch.decode_rows is not None:
            self._decode.attend(q, k, v, keys, values, batch, out)
        if batch.prefills:
            self._prefill.attend(q, k, v, keys, values, batch, out)
        return out
