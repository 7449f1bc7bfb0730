"""RMSNorm, and the sum with a residual before it in the same pass over memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 1024  # of a program, at least; short rows share one


@triton.jit
def rms_norm_kernel(
    x, residual, weight, out, total, num_rows, heads, x_token, x_head, eps,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Rows are (token, head) pairs of x; residual, out and total are contiguous.

    Rounds where plain PyTorch rounds: after the sum, and before the product with the weight.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    exists = (rows < num_rows)[:, None] & (columns < SIZE)[None, :]
    place = ((rows // heads) * x_token + (rows % heads) * x_head)[:, None] + columns[None, :]
    flat = rows[:, None] * SIZE + columns[None, :]
    value = tl.load(x + place, mask=exists, other=0.0).to(tl.float32)
    if ADD:
        other = tl.load(residual + flat, mask=exists, other=0.0).to(tl.float32)
        rounded = (value + other).to(total.dtype.element_ty)
        tl.store(total + flat, rounded, mask=exists)
        value = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, axis=1) / SIZE + eps)
    normed = (value * scale[:, None]).to(out.dtype.element_ty).to(tl.float32)
    factor = tl.load(weight + columns, mask=columns < SIZE, other=0.0).to(tl.float32)
    tl.store(out + flat, (normed * factor[None, :]).to(out.dtype.element_ty), mask=exists)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See ops.rms_norm."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, x, weight, eps, out, out, add=False)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See ops.add_rms_norm."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = torch.empty_like(out)
    _launch(x, residual.contiguous(), weight, eps, out, total, add=True)
    return out, total


def _launch(x: Tensor, residual: Tensor, weight: Tensor, eps: float, out: Tensor, total: Tensor, add: bool) -> None:
    if not x.numel():
        return
    if x.stride(-1) != 1:
        x = x.contiguous()
    size = x.shape[-1]
    heads, x_head = (x.shape[1], x.stride(1)) if x.dim() == 3 else (1, 0)
    num_rows = x.numel() // size
    block = triton.next_power_of_2(size)
    rows = max(1, ELEMENTS // block)
    rms_norm_kernel[(triton.cdiv(num_rows, rows),)](
        x, residual, weight, out, total, num_rows, heads, x.stride(0), x_head, eps,
        SIZE=size, BLOCK=block, ROWS=rows, ADD=add, num_warps=min(max(rows * block // 512, 4), 16),
    )  # fmt: skip
