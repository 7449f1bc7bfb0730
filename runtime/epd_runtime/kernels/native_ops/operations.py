"""Calls into ops.c: one for each operation, where PyTorch needs several of a few microseconds.

float32 only; what has another type runs as plain PyTorch. Importing this module compiles the library if need be.
"""

from __future__ import annotations

import torch
from torch import Tensor

from epd_runtime.kernels import plain
from epd_runtime.kernels.native_ops.library import load
from epd_runtime.kernels.plain import packed_attention

__all__ = [
    "add_rms_norm",
    "decode_attention",
    "packed_attention",
    "rms_norm",
    "rotate",
    "silu_mul",
    "store_kv",
    "takes_decode",
]

MAX_WIDTH = 16384  # floats of a thread's stack

_library = load()
_add_rms_norm, _rms_norm, _rotate = _library.add_rms_norm, _library.rms_norm, _library.rotate
_silu_mul, _store_kv, _decode_attention = _library.silu_mul, _library.store_kv, _library.decode_attention


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See ops.rms_norm."""
    if x.dtype is not torch.float32 or weight.dtype is not torch.float32:
        return plain.rms_norm(x, weight, eps)
    heads = x.unsqueeze(1) if x.dim() == 2 else x
    heads = heads if heads.stride(-1) == 1 else heads.contiguous()
    out = torch.empty(x.shape)
    tokens, num_heads, size = heads.shape
    _rms_norm(
        heads.data_ptr(), weight.data_ptr(), out.data_ptr(), tokens, num_heads, size,
        heads.stride(0), heads.stride(1), eps,
    )  # fmt: skip
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See ops.add_rms_norm."""
    if x.dtype is not torch.float32:
        return plain.add_rms_norm(x, residual, weight, eps)
    x, residual = x.contiguous(), residual.contiguous()
    out, total = torch.empty_like(x), torch.empty_like(x)
    tokens, size = x.shape
    _add_rms_norm(
        x.data_ptr(), residual.data_ptr(), weight.data_ptr(), out.data_ptr(), total.data_ptr(), tokens, size, eps
    )
    return out, total


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """See ops.rotate."""
    if q.dtype is not torch.float32 or cos.dtype is not torch.float32:
        return plain.rotate(q, k, cos, sin)
    cos, sin = cos.contiguous(), sin.contiguous()
    return _rotated(q, cos, sin), _rotated(k, cos, sin)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x = x if x.stride(-1) == 1 else x.contiguous()
    out = torch.empty(x.shape)
    tokens, heads, size = x.shape
    _rotate(
        x.data_ptr(), cos.data_ptr(), sin.data_ptr(), out.data_ptr(), tokens, heads, size // 2, x.stride(0), x.stride(1)
    )
    return out


def silu_mul(gate_up: Tensor) -> Tensor:
    """See ops.silu_mul."""
    if gate_up.dtype is not torch.float32:
        return plain.silu_mul(gate_up)
    gate_up = gate_up.contiguous()
    tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(tokens, size)
    _silu_mul(gate_up.data_ptr(), out.data_ptr(), tokens, size)
    return out


def store_kv(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, pages: Tensor, slots: Tensor) -> None:
    """See ops.store_kv."""
    if keys.dtype is not torch.float32:
        return plain.store_kv(k, v, keys, values, pages, slots)
    k, v = _rows(k), _rows(v)
    tokens, heads, size = k.shape
    _store_kv(
        k.data_ptr(), v.data_ptr(), keys.data_ptr(), values.data_ptr(), pages.data_ptr(), slots.data_ptr(),
        tokens, heads * size, k.stride(0), v.stride(0), keys.stride(0),
    )  # fmt: skip
    return None


def _rows(x: Tensor) -> Tensor:
    """x [tokens, heads, head_dim] with the heads of a token in one piece."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


def decode_attention(
    q: Tensor, keys: Tensor, values: Tensor, rows: Tensor, tables: Tensor, lengths: Tensor, out: Tensor
) -> None:
    """Rows of q [tokens, heads, head_dim] attend to their sequences' pages; takes_decode() must say yes.

    keys, values [pages, page_size, kv_heads, head_dim] float32; rows, lengths int64 [decodes], tables int64 [decodes,
    max_pages]: which row, how many tokens, in which pages. Writes the same rows of out, which is contiguous.
    """
    q = _rows(q)
    _, page_size, kv_heads, size = keys.shape
    _decode_attention(
        q.data_ptr(), keys.data_ptr(), values.data_ptr(), rows.data_ptr(), tables.data_ptr(), lengths.data_ptr(),
        out.data_ptr(), rows.shape[0], kv_heads, q.shape[1] // kv_heads, size, tables.stride(0), page_size,
        keys.stride(0), q.stride(0), size**-0.5,
    )  # fmt: skip


def takes_decode(dtype: torch.dtype, num_heads: int, head_dim: int) -> bool:
    """Whether decode_attention() is for pools of this type and so many query heads of this width."""
    return dtype is torch.float32 and num_heads * head_dim <= MAX_WIDTH
