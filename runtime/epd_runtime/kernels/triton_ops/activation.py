"""The gate of an MLP."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def silu_mul_kernel(gate_up, out, row_stride, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """A piece of one row per program. Rounds silu(gate) before the product, as plain PyTorch does."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exists = columns < SIZE
    gate = tl.load(gate_up + row * row_stride + columns, mask=exists, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * row_stride + SIZE + columns, mask=exists, other=0.0).to(tl.float32)
    opened = (gate * tl.sigmoid(gate)).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * SIZE + columns, (opened * up).to(out.dtype.element_ty), mask=exists)


def silu_mul(gate_up: Tensor) -> Tensor:
    """See ops.silu_mul."""
    if gate_up.stride(-1) != 1:
        gate_up = gate_up.contiguous()
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, size, dtype=gate_up.dtype, device=gate_up.device)
    if rows:
        silu_mul_kernel[(rows, triton.cdiv(size, BLOCK))](gate_up, out, gate_up.stride(0), SIZE=size, BLOCK=BLOCK)
    return out
