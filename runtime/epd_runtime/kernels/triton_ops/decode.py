"""Attention of decode steps over pages: each sequence's keys are split among programs, then the parts are combined.

The query heads of one group share every load of their key head. How many programs a sequence gets is fixed by the
launch; how many of them have something to do depends on its length, read on the device, so that a launch captured in a
CUDA graph serves all lengths. (Flash-Decoding, Dao et al. 2023.)
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from epd_runtime.kernels.triton_ops.softmax import LOG2_E, softmax_step

MIN_SPAN = 256  # tokens: below it a split costs more than it gains
MAX_SPLITS = 64


@triton.jit
def _span(length, splits, MIN_SPAN: tl.constexpr):
    """Tokens of each split, a multiple of MIN_SPAN; at least one."""
    return tl.maximum(tl.cdiv(tl.cdiv(length, splits), MIN_SPAN), 1) * MIN_SPAN


@triton.jit
def decode_split_kernel(
    q, keys, values, rows, table, lengths, out, partial, log_sums, scale, splits,
    q_row, q_head, page_stride, slot_stride, head_stride, table_row,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE_SIZE: tl.constexpr, DIRECT: tl.constexpr,
    MIN_SPAN: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    """One split of one sequence for one key head. DIRECT: there is one split, and its result is the whole."""
    sequence, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_heads = tl.num_programs(1) * GROUP
    length = tl.load(lengths + sequence).to(tl.int32)
    span = _span(length, splits, MIN_SPAN)
    first = split * span
    if first >= length and split > 0:
        return
    last = tl.minimum(first + span, length)
    row = tl.load(rows + sequence).to(tl.int64)
    local, columns = tl.arange(0, BLOCK_HEADS), tl.arange(0, BLOCK_DIM)
    heads = kv_head * GROUP + local
    exists = (local < GROUP)[:, None] & (columns < HEAD_DIM)[None, :]
    query = tl.load(q + row * q_row + heads[:, None] * q_head + columns[None, :], mask=exists, other=0.0)
    largest = tl.full([BLOCK_HEADS], float("-inf"), tl.float32)
    weights = tl.zeros([BLOCK_HEADS], tl.float32)
    acc = tl.zeros([BLOCK_HEADS, BLOCK_DIM], tl.float32)
    for begin in range(first, last, BLOCK_TOKENS):
        tokens = begin + tl.arange(0, BLOCK_TOKENS)
        visible = tokens < last
        page = tl.load(table + sequence.to(tl.int64) * table_row + tokens // PAGE_SIZE, mask=visible, other=0)
        place = page.to(tl.int64) * page_stride + (tokens % PAGE_SIZE) * slot_stride + kv_head * head_stride
        within = visible[:, None] & (columns < HEAD_DIM)[None, :]
        key = tl.load(keys + place[:, None] + columns[None, :], mask=within, other=0.0)
        value = tl.load(values + place[:, None] + columns[None, :], mask=within, other=0.0)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        score = tl.where(visible[None, :], score, float("-inf"))
        largest, weights, acc = softmax_step(score, value, largest, weights, acc)
    result = acc / tl.where(weights > 0.0, weights, 1.0)[:, None]  # nothing to attend to: zeros
    if DIRECT:
        target = out + (row * num_heads + heads[:, None]) * HEAD_DIM + columns[None, :]
        tl.store(target, result.to(out.dtype.element_ty), mask=exists)
    else:
        part = (sequence.to(tl.int64) * num_heads + heads) * splits + split
        tl.store(partial + part[:, None] * HEAD_DIM + columns[None, :], result, mask=exists)
        tl.store(log_sums + part, largest + tl.log2(weights), mask=local < GROUP)


@triton.jit
def decode_combine_kernel(
    partial, log_sums, rows, lengths, out, splits,
    HEAD_DIM: tl.constexpr, MIN_SPAN: tl.constexpr, BLOCK_SPLITS: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    """The splits of one sequence and one query head, weighted by the sums of their exponentials."""
    sequence, head = tl.program_id(0), tl.program_id(1)
    num_heads = tl.num_programs(1)
    length = tl.load(lengths + sequence).to(tl.int32)
    used = tl.cdiv(length, _span(length, splits, MIN_SPAN))
    index, columns = tl.arange(0, BLOCK_SPLITS), tl.arange(0, BLOCK_DIM)
    part = (sequence.to(tl.int64) * num_heads + head) * splits + index
    log_sum = tl.load(log_sums + part, mask=index < used, other=float("-inf"))
    weight = tl.exp2(log_sum - tl.maximum(tl.max(log_sum, axis=0), -3.0e38))  # an empty sequence has none finite
    exists = (index < used)[:, None] & (columns < HEAD_DIM)[None, :]
    results = tl.load(partial + part[:, None] * HEAD_DIM + columns[None, :], mask=exists, other=0.0)
    total = tl.sum(weight, axis=0)
    result = tl.sum(results * weight[:, None], axis=0) / tl.where(total > 0.0, total, 1.0)
    row = tl.load(rows + sequence).to(tl.int64)
    target = out + (row * num_heads + head) * HEAD_DIM + columns
    tl.store(target, result.to(out.dtype.element_ty), mask=columns < HEAD_DIM)


def num_splits(num_sequences: int, num_kv_heads: int, max_length: int, num_programs: int) -> int:
    """Splits per sequence: a power of two that brings the launch to num_programs, none shorter than MIN_SPAN."""
    wanted = min(-(-num_programs // (num_sequences * num_kv_heads)), -(-max_length // MIN_SPAN), MAX_SPLITS)
    return int(triton.next_power_of_2(max(wanted, 1)))


def decode_attention(
    q: Tensor, keys: Tensor, values: Tensor, rows: Tensor, table: Tensor, lengths: Tensor, splits: int, out: Tensor
) -> None:
    """Attention of one query row per sequence over its pages, written to the same rows of out.

    q, out [tokens, heads, head_dim], out contiguous; keys, values [pages, page_size, kv_heads, head_dim] strided;
    rows [n] of the sequences in q and out; table [n, pages of the longest]; lengths [n] in tokens, 0 gives zeros;
    all three of an integer type. splits as num_splits gives it.
    """
    num_sequences, num_kv_heads, head_dim = len(rows), keys.shape[2], keys.shape[3]
    if not num_sequences:
        return
    num_heads = q.shape[1]
    group = num_heads // num_kv_heads
    partial, log_sums = out, out  # unused when there is one split
    if splits > 1:
        partial = torch.empty(num_sequences, num_heads, splits, head_dim, dtype=torch.float32, device=q.device)
        log_sums = torch.empty(num_sequences, num_heads, splits, dtype=torch.float32, device=q.device)
    block_dim = max(triton.next_power_of_2(head_dim), 16)
    decode_split_kernel[(num_sequences, num_kv_heads, splits)](
        q, keys, values, rows, table, lengths, out, partial, log_sums, head_dim**-0.5 * LOG2_E, splits,
        q.stride(0), q.stride(1), keys.stride(0), keys.stride(1), keys.stride(2), table.stride(0),
        GROUP=group, HEAD_DIM=head_dim, PAGE_SIZE=keys.shape[1], DIRECT=splits == 1, MIN_SPAN=MIN_SPAN,
        BLOCK_HEADS=max(triton.next_power_of_2(group), 16), BLOCK_DIM=block_dim,
        BLOCK_TOKENS=64 if block_dim * q.element_size() <= 256 else 32, num_warps=4, num_stages=3,
    )  # fmt: skip
    if splits > 1:
        decode_combine_kernel[(num_sequences, num_heads)](
            partial, log_sums, rows, lengths, out, splits, HEAD_DIM=head_dim, MIN_SPAN=MIN_SPAN,
            BLOCK_SPLITS=splits, BLOCK_DIM=block_dim, num_warps=4,
        )  # fmt: skip
