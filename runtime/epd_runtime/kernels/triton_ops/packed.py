"""Full attention inside the segments of a packed sequence, as vision towers use it: images and windows alike."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from epd_runtime.kernels.plain import PACKED_TILE_ROWS
from epd_runtime.kernels.triton_ops.softmax import LOG2_E, softmax_step
from epd_runtime.kernels.triton_ops.tiles import block_dim


@triton.jit
def _take_block(
    query, k, v, begin, end, k_token, v_token, k_offset, v_offset, scale, largest, weights, acc,
    HEAD_DIM: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_DIM: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Take BLOCK_KEYS keys from `begin` on; MASKED: the segment may end before them."""
    tokens, columns = (begin + tl.arange(0, BLOCK_KEYS)).to(tl.int64), tl.arange(0, BLOCK_DIM)
    within = (tokens < end)[:, None] & (columns < HEAD_DIM)[None, :]
    key = tl.load(k + (tokens * k_token + k_offset)[:, None] + columns[None, :], mask=within, other=0.0)
    value = tl.load(v + (tokens * v_token + v_offset)[:, None] + columns[None, :], mask=within, other=0.0)
    score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    if MASKED:
        score = tl.where((tokens < end)[None, :], score, float("-inf"))
    return softmax_step(score, value, largest, weights, acc)


@triton.jit
def packed_attention_kernel(
    q, k, v, tiles, out, scale, q_token, q_head, k_token, k_head, v_token, v_head,
    HEAD_DIM: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    """One tile (first query row, first and last + 1 row of its segment) for one head."""
    tile, head = tiles + tl.program_id(0) * 3, tl.program_id(1)
    first, begin, end = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    rows, columns = (first + tl.arange(0, BLOCK_ROWS)).to(tl.int64), tl.arange(0, BLOCK_DIM)
    exists = (rows < end)[:, None] & (columns < HEAD_DIM)[None, :]
    query = tl.load(q + (rows * q_token + head * q_head)[:, None] + columns[None, :], mask=exists, other=0.0)
    largest = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    weights = tl.zeros([BLOCK_ROWS], tl.float32)
    acc = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
    whole = begin + (end - begin) // BLOCK_KEYS * BLOCK_KEYS
    for key in range(begin, whole, BLOCK_KEYS):
        largest, weights, acc = _take_block(
            query, k, v, key, end, k_token, v_token, head * k_head, head * v_head, scale, largest, weights, acc,
            HEAD_DIM, BLOCK_KEYS, BLOCK_DIM, False,
        )  # fmt: skip
    if whole < end:
        largest, weights, acc = _take_block(
            query, k, v, whole, end, k_token, v_token, head * k_head, head * v_head, scale, largest, weights, acc,
            HEAD_DIM, BLOCK_KEYS, BLOCK_DIM, True,
        )  # fmt: skip
    target = out + ((rows * tl.num_programs(1) + head) * HEAD_DIM)[:, None] + columns[None, :]
    tl.store(target, (acc / weights[:, None]).to(out.dtype.element_ty), mask=exists)


def packed_attention(q: Tensor, k: Tensor, v: Tensor, groups: tuple[Tensor, ...], tiles: Tensor) -> Tensor:
    """See ops.packed_attention. q, k, v may be slices of a projection: only their last dimension must be contiguous."""
    q, k, v = (part if part.stride(-1) == 1 else part.contiguous() for part in (q, k, v))
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    head_dim = q.shape[2]
    if len(tiles):
        packed_attention_kernel[(len(tiles), q.shape[1])](
            q, k, v, tiles, out, head_dim**-0.5 * LOG2_E,
            q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
            HEAD_DIM=head_dim, BLOCK_ROWS=PACKED_TILE_ROWS, BLOCK_DIM=block_dim(head_dim),
            BLOCK_KEYS=64 if q.element_size() == 2 else 32, num_warps=4 if q.element_size() == 2 else 8, num_stages=2,
        )  # fmt: skip
    return out
