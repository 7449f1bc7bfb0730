"""Rotary position embedding of queries and keys in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rotate_heads(
    x, out, first_cos, first_sin, second_cos, second_sin, token, x_token, x_head,
    HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    heads, columns = tl.arange(0, BLOCK_HEADS), tl.arange(0, BLOCK_HALF)
    exists = (heads < HEADS)[:, None] & (columns < HALF)[None, :]
    source = x + token * x_token + heads[:, None] * x_head + columns[None, :]
    target = out + (token * HEADS + heads[:, None]) * 2 * HALF + columns[None, :]
    first = tl.load(source, mask=exists, other=0.0).to(tl.float32)
    second = tl.load(source + HALF, mask=exists, other=0.0).to(tl.float32)
    turned_first = first * first_cos - second * first_sin
    turned_second = second * second_cos + first * second_sin
    tl.store(target, turned_first.to(out.dtype.element_ty), mask=exists)
    tl.store(target + HALF, turned_second.to(out.dtype.element_ty), mask=exists)


@triton.jit
def rotate_kernel(
    q, k, q_out, k_out, cos, sin, q_token, q_head, k_token, k_head, angle_token,
    Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr, HALF: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    """One token per program. Computes in float32 and rounds once."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_HALF)
    place = token * angle_token + columns
    exists = columns < HALF
    first_cos = tl.load(cos + place, mask=exists, other=0.0).to(tl.float32)[None, :]
    first_sin = tl.load(sin + place, mask=exists, other=0.0).to(tl.float32)[None, :]
    second_cos = tl.load(cos + place + HALF, mask=exists, other=0.0).to(tl.float32)[None, :]
    second_sin = tl.load(sin + place + HALF, mask=exists, other=0.0).to(tl.float32)[None, :]
    _rotate_heads(
        q, q_out, first_cos, first_sin, second_cos, second_sin, token, q_token, q_head,
        Q_HEADS, HALF, BLOCK_Q, BLOCK_HALF,
    )  # fmt: skip
    _rotate_heads(
        k, k_out, first_cos, first_sin, second_cos, second_sin, token, k_token, k_head,
        K_HEADS, HALF, BLOCK_K, BLOCK_HALF,
    )  # fmt: skip


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """See ops.rotate. q and k may be slices of one projection: only their last dimension must be contiguous."""
    q, k = (part if part.stride(-1) == 1 else part.contiguous() for part in (q, k))
    cos, sin = cos.contiguous(), sin.contiguous()
    out = tuple(torch.empty(part.shape, dtype=part.dtype, device=part.device) for part in (q, k))
    tokens, q_heads, head_dim = q.shape
    if tokens:
        rotate_kernel[(tokens,)](
            q, k, *out, cos, sin, q.stride(0), q.stride(1), k.stride(0), k.stride(1), head_dim,
            Q_HEADS=q_heads, K_HEADS=k.shape[1], HALF=head_dim // 2, BLOCK_Q=triton.next_power_of_2(q_heads),
            BLOCK_K=triton.next_power_of_2(k.shape[1]), BLOCK_HALF=triton.next_power_of_2(head_dim // 2), num_warps=4,
        )  # fmt: skip
    return out[0], out[1]
