"""Attention in plain PyTorch: the truth that kernels are checked against, and the CPU implementation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from epd_runtime.attention.batch import ForwardBatch, Sequence
from epd_runtime.kvcache.pool import KVPool


class ReferenceAttention:
    """Gathers pages into dense tensors; decode steps run as one padded batch, prefill chunks one by one."""

    def __init__(self, pool: KVPool) -> None:
        self._pool = pool

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layer: int, batch: ForwardBatch) -> Tensor:
        """See AttentionBackend.forward."""
        keys, values = self._pool.layer(layer)
        keys[batch.write_pages, batch.write_slots] = k
        values[batch.write_pages, batch.write_slots] = v
        out = torch.empty_like(q)
        if batch.decode_rows is not None:
            out[batch.decode_rows] = _decode(q[batch.decode_rows], keys, values, batch)
        for sequence in batch.prefills:
            chunk = slice(sequence.start, sequence.start + sequence.q_len)
            if sequence.kv_len == sequence.q_len:  # nothing cached before: no need to read pages
                out[chunk] = _causal(q[chunk], k[chunk], v[chunk])
            else:
                out[chunk] = _extend(q[chunk], keys, values, sequence)
        return out


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [n, heads, d], k and v [n, kv_heads, d] of one whole prompt."""
    q, k, v = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (q, k, v))
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)[0].transpose(0, 1)


def _extend(q: Tensor, keys: Tensor, values: Tensor, sequence: Sequence) -> Tensor:
    """One chunk against the pages of its sequence."""
    k, v = (
        pool[sequence.pages].flatten(0, 1)[: sequence.kv_len].transpose(0, 1).unsqueeze(0) for pool in (keys, values)
    )
    first = sequence.kv_len - sequence.q_len
    visible = torch.arange(sequence.kv_len, device=q.device) <= torch.arange(
        first, sequence.kv_len, device=q.device
    ).unsqueeze(1)
    attended = scaled_dot_product_attention(q.transpose(0, 1).unsqueeze(0), k, v, attn_mask=visible, enable_gqa=True)
    return attended[0].transpose(0, 1)


def _decode(q: Tensor, keys: Tensor, values: Tensor, batch: ForwardBatch) -> Tensor:
    """One token of each sequence, q [sequences, heads, d], against padded pages [sequences, max_pages]."""
    k, v = (pool[batch.decode_pages].flatten(1, 2).transpose(1, 2) for pool in (keys, values))
    attended = scaled_dot_product_attention(
        q.unsqueeze(2), k, v, attn_mask=batch.decode_mask, enable_gqa=True
    )  # [sequences, heads, 1, d]
    return attended.squeeze(2)
