"""Attention in plain PyTorch: the truth that kernels are checked against, and the CPU implementation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from epd_runtime.attention.batch import ForwardBatch, Sequence


class ReferencePrefill:
    """Prefill chunks one by one; pages are gathered when something was cached before."""

    is_capturable = False

    def prepare(self, batch: ForwardBatch) -> None:
        """Nothing is shared between layers."""

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, batch: ForwardBatch, out: Tensor
    ) -> None:
        """See AttentionPart.attend."""
        for sequence in batch.prefills:
            chunk = slice(sequence.start, sequence.start + sequence.q_len)
            if sequence.kv_len == sequence.q_len:  # nothing cached before: no need to read pages
                out[chunk] = _causal(q[chunk], k[chunk], v[chunk])
            else:
                out[chunk] = _extend(q[chunk], keys, values, sequence)


class ReferenceDecode:
    """Decode steps as one batch, padded to the longest sequence."""

    is_capturable = False  # the mask is made anew in each step

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._are_all_rows = False  # the batch has nothing but these decodes, in order: no rows to pick
        self._mask: Tensor | None = None  # [decodes, 1, 1, max_pages * page_size]: 0 for tokens that exist, else -inf

    def prepare(self, batch: ForwardBatch) -> None:
        """The mask is the same for all layers, and added: SDPA would make a boolean one into that in each of them."""
        assert batch.decode_pages is not None
        assert batch.decode_rows is not None
        assert batch.decode_lengths is not None
        everything = torch.arange(batch.input_ids.shape[0], device=batch.decode_rows.device)
        self._are_all_rows = torch.equal(batch.decode_rows, everything)
        slots = torch.arange(batch.decode_pages.shape[1] * self._page_size, device=batch.decode_pages.device)
        missing = slots >= batch.decode_lengths[:, None]
        self._mask = torch.zeros(missing.shape, device=slots.device).masked_fill_(missing, -torch.inf)[:, None, None]

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, batch: ForwardBatch, out: Tensor
    ) -> None:
        """See AttentionPart.attend. Reads and masks slots that are not written yet: they must hold finite numbers."""
        assert batch.decode_pages is not None
        dense_k, dense_v = (_gather(pool, batch.decode_pages) for pool in (keys, values))
        rows = slice(None) if self._are_all_rows else batch.decode_rows
        attended = scaled_dot_product_attention(
            q[rows].unsqueeze(2), dense_k, dense_v, attn_mask=self._mask, enable_gqa=True
        )  # [sequences, heads, 1, head_dim]
        out[rows] = attended.squeeze(2)


def _gather(pool: Tensor, pages: Tensor) -> Tensor:
    """[decodes, kv_heads, slots, head_dim] of pages int64 [decodes, max_pages]; whole pages are copied as rows."""
    rows = pool.flatten(1).index_select(0, pages.flatten())
    return rows.view(pages.shape[0], -1, *pool.shape[2:]).transpose(1, 2)


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
