"""The operations of `ops` in plain PyTorch: the truth that kernels are checked against, and what runs on CPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

PACKED_TILE_ROWS = 64  # query rows of a tile of packed attention; a window of Qwen2.5-VL has 64 patches


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See ops.rms_norm."""
    wide = x.float()
    norm: Tensor = torch.linalg.vector_norm(
        wide, dim=-1, keepdim=True
    )  # one pass, where squares and their mean are two
    scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (wide * scale).to(x.dtype) * weight


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See ops.add_rms_norm."""
    total = x + residual
    return rms_norm(total, weight, eps), total


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """See ops.rotate."""
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    wide = x.to(cos.dtype)
    first, second = wide.chunk(2, dim=-1)
    first_sin, second_sin = sin.unsqueeze(-2).chunk(2, dim=-1)
    out = wide * cos.unsqueeze(-2)
    turned_first, turned_second = out.chunk(2, dim=-1)
    turned_first.addcmul_(second, first_sin, value=-1)
    turned_second.addcmul_(first, second_sin)
    return out.to(x.dtype)


def silu_mul(gate_up: Tensor) -> Tensor:
    """See ops.silu_mul."""
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def store_kv(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, pages: Tensor, slots: Tensor) -> None:
    """See ops.store_kv."""
    keys[pages, slots] = k
    values[pages, slots] = v


def packed_attention(q: Tensor, k: Tensor, v: Tensor, groups: tuple[Tensor, ...], tiles: Tensor) -> Tensor:
    """See ops.packed_attention. Segments of one length run as one batch: few calls, however many windows there are."""
    out = torch.empty_like(q)
    for index in groups:
        part_q, part_k, part_v = (tensor[index].transpose(1, 2) for tensor in (q, k, v))
        part = scaled_dot_product_attention(part_q, part_k, part_v)  # [segments, heads, length, head_dim]
        out[index] = part.transpose(1, 2)
    return out
