"""Layers that all families share. Projections that read the same input are one matrix (q, k, v; gate, up)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from epd_runtime.kernels import ops


class RMSNorm(nn.Module):
    """Root mean square layer normalisation, see ops.rms_norm."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The normalised sum of x and residual, and the sum itself."""
        return ops.add_rms_norm(x, residual, self.weight, self.eps)


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)) with gate and up in one matrix."""

    def __init__(self, hidden: int, intermediate: int, bias: bool) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(hidden, 2 * intermediate, bias=bias)
        self.down_proj = nn.Linear(intermediate, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down_proj(ops.silu_mul(self.gate_up_proj(x)))
        return result
