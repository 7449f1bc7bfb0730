"""The running softmax that all attention kernels share (Milakov & Gimelshein 2018), in powers of two."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = 1.4426950408889634


@triton.jit
def softmax_step(score, value, largest, weights, acc):
    """Take a block of keys into the running result.

    score [rows, keys] in units of log 2, -inf where a row may not look; value [keys, dim]. State: largest score and sum
    of weights [rows], and acc [rows, dim], the weighted sum. Some score must be finite in the first block of each row.
    """
    new_largest = tl.maximum(largest, tl.max(score, axis=1))
    weight = tl.exp2(score - new_largest[:, None])
    faded = tl.exp2(largest - new_largest)
    weights = weights * faded + tl.sum(weight, axis=1)
    acc = acc * faded[:, None] + tl.dot(weight.to(value.dtype), value, input_precision="ieee")
    return new_largest, weights, acc
