"""New keys and values to their pages."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def store_kv_kernel(
    k, v, keys, values, pages, slots, k_token, v_token, page_stride, slot_stride,
    SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One token per program: all its heads are one run of SIZE numbers, here and in the page."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    exists = columns < SIZE
    place = tl.load(pages + token) * page_stride + tl.load(slots + token) * slot_stride + columns
    tl.store(keys + place, tl.load(k + token * k_token + columns, mask=exists), mask=exists)
    tl.store(values + place, tl.load(v + token * v_token + columns, mask=exists), mask=exists)


def store_kv(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, pages: Tensor, slots: Tensor) -> None:
    """See ops.store_kv."""
    if not len(k):
        return
    k, v = (part.flatten(1) for part in (k, v))  # views, also of slices of one projection
    size = k.shape[1]
    store_kv_kernel[(len(k),)](
        k, v, keys, values, pages, slots, k.stride(0), v.stride(0), keys.stride(0), keys.stride(1),
        SIZE=size, BLOCK=triton.next_power_of_2(size), num_warps=4,
    )  # fmt: skip
