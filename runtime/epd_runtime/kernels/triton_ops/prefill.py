"""Causal attention of prefill chunks over pages, those of earlier chunks and of a cached prefix included.

A program computes a tile: a few consecutive tokens of one sequence for all query heads of one key head, so that short
chunks still share each load of a key among the heads of its group.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from epd_runtime.kernels.triton_ops.softmax import LOG2_E, softmax_step
from epd_runtime.kernels.triton_ops.tiles import block_dim, blocks_for

COLUMNS = 5  # of the table of tiles


@triton.jit
def _take_block(
    query, keys, values, pages, begin, end, position, scale, page_stride, slot_stride, head_offset,
    largest, weights, acc,
    HEAD_DIM: tl.constexpr, PAGE_SIZE: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_DIM: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Take BLOCK_KEYS keys from `begin` on; MASKED: some rows may not see all of them."""
    tokens, columns = begin + tl.arange(0, BLOCK_KEYS), tl.arange(0, BLOCK_DIM)
    exists = tokens < end
    page = tl.load(pages + tokens // PAGE_SIZE, mask=exists, other=0)
    place = page.to(tl.int64) * page_stride + (tokens % PAGE_SIZE) * slot_stride + head_offset
    within = exists[:, None] & (columns < HEAD_DIM)[None, :]
    key = tl.load(keys + place[:, None] + columns[None, :], mask=within, other=0.0)
    value = tl.load(values + place[:, None] + columns[None, :], mask=within, other=0.0)
    score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    if MASKED:
        score = tl.where(exists[None, :] & (tokens[None, :] <= position[:, None]), score, float("-inf"))
    return softmax_step(score, value, largest, weights, acc)


@triton.jit
def prefill_kernel(
    q, keys, values, pages, tiles, out, scale, q_row, q_head, page_stride, slot_stride, head_stride,
    GROUP: tl.constexpr, TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE_SIZE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    """One tile for one key head. Row r of the block is token r // GROUP of the tile and head r % GROUP of the group."""
    tile, kv_head = tiles + tl.program_id(0) * 5, tl.program_id(1)
    first_page, first_token = tl.load(tile), tl.load(tile + 1)
    start, q_len, kv_len = tl.load(tile + 2), tl.load(tile + 3), tl.load(tile + 4)
    pages = pages + first_page
    num_heads = tl.num_programs(1) * GROUP
    local, columns = tl.arange(0, BLOCK_ROWS), tl.arange(0, BLOCK_DIM)
    token, heads = first_token + local // GROUP, kv_head * GROUP + local % GROUP
    is_row = (local < TOKENS * GROUP) & (token < q_len)
    exists = is_row[:, None] & (columns < HEAD_DIM)[None, :]
    row = (start + token).to(tl.int64)
    source = q + (row * q_row + heads * q_head)[:, None] + columns[None, :]
    query = tl.load(source, mask=exists, other=0.0)
    cached = kv_len - q_len
    position = cached + token  # the last key that a row sees
    everybody = (cached + first_token + 1) // BLOCK_KEYS * BLOCK_KEYS  # keys below are seen by all rows of the tile
    end = cached + tl.minimum(first_token + TOKENS, q_len)
    largest = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    weights = tl.zeros([BLOCK_ROWS], tl.float32)
    acc = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
    head_offset = kv_head * head_stride
    for begin in range(0, everybody, BLOCK_KEYS):
        largest, weights, acc = _take_block(
            query, keys, values, pages, begin, end, position, scale, page_stride, slot_stride, head_offset,
            largest, weights, acc, HEAD_DIM, PAGE_SIZE, BLOCK_KEYS, BLOCK_DIM, False,
        )  # fmt: skip
    for begin in range(everybody, end, BLOCK_KEYS):
        largest, weights, acc = _take_block(
            query, keys, values, pages, begin, end, position, scale, page_stride, slot_stride, head_offset,
            largest, weights, acc, HEAD_DIM, PAGE_SIZE, BLOCK_KEYS, BLOCK_DIM, True,
        )  # fmt: skip
    target = out + (row * num_heads + heads)[:, None] * HEAD_DIM + columns[None, :]
    tl.store(target, (acc / weights[:, None]).to(out.dtype.element_ty), mask=exists)


def tokens_per_tile(num_heads: int, num_kv_heads: int, head_dim: int, element_size: int) -> int:
    """Tokens of a tile; a group of more heads than a block has rows is refused by ValueError."""
    group, rows = num_heads // num_kv_heads, blocks_for(head_dim, element_size).rows
    if group > rows:
        raise ValueError(f"{group} query heads per key head are more than the {rows} that a block takes")
    return rows // group


def plan_tiles(chunks: SequenceOf[tuple[int, int, int]], page_size: int, tokens: int) -> Tensor:
    """The table of tiles int32 [tiles, 5] for chunks (first row, q_len, kv_len), on the host.

    Columns: where the sequence's pages begin among all pages, the tile's first token in its chunk, and the chunk. The
    tiles that see most keys come first, so that none of them is left to run alone at the end.
    """
    parts, first_page = [], 0
    for start, q_len, kv_len in chunks:
        first_tokens = np.arange(0, q_len, tokens)
        rest = np.broadcast_to(np.array([start, q_len, kv_len]), (len(first_tokens), 3))
        parts.append(np.column_stack((np.full(len(first_tokens), first_page), first_tokens, rest)))
        first_page += -(-kv_len // page_size)
    table = np.concatenate(parts)
    visible = table[:, 4] - table[:, 3] + table[:, 1]
    return torch.from_numpy(np.ascontiguousarray(table[np.argsort(-visible, kind="stable")], dtype=np.int32))


def prefill_attention(
    q: Tensor, keys: Tensor, values: Tensor, pages: Tensor, tiles: Tensor, tokens: int, out: Tensor
) -> None:
    """Attention of chunks whose keys are all in their pages already, written to their rows of out.

    q, out [tokens, heads, head_dim], out contiguous; keys, values [pages, page_size, kv_heads, head_dim] strided;
    pages [n] of all sequences, one behind the other; tiles as plan_tiles gives them, for `tokens` per tile.
    """
    num_kv_heads, head_dim = keys.shape[2:]
    blocks = blocks_for(head_dim, q.element_size())
    prefill_kernel[(len(tiles), num_kv_heads)](
        q, keys, values, pages, tiles, out, head_dim**-0.5 * LOG2_E, q.stride(0), q.stride(1),
        keys.stride(0), keys.stride(1), keys.stride(2),
        GROUP=q.shape[1] // num_kv_heads, TOKENS=tokens, HEAD_DIM=head_dim, PAGE_SIZE=keys.shape[1],
        BLOCK_ROWS=blocks.rows, BLOCK_KEYS=blocks.keys, BLOCK_DIM=block_dim(head_dim),
        num_warps=blocks.num_warps, num_stages=blocks.num_stages,
    )  # fmt: skip
