"""Projections whose weights are laid out for oneDNN's kernels, the fast path of CPU.

A plain `linear` reads weights row by row whatever the number of tokens; blocked weights take two thirds of its time for
one token and less than half for a few (docs/perf-log.md). It is the layout that torch.compile's frozen graphs use.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

TUNED_FOR_ROWS = 16  # tokens of a step; measured best for 4 and 16, and no worse than others for 1 and 512


class PackedLinear(nn.Module):
    """x @ weight.T + bias, weights packed for good: they cannot be read back, saved or moved."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """weight [out, in], bias [out]; can_pack(weight)."""
        super().__init__()
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), TUNED_FOR_ROWS)
        self._weight = nn.Parameter(packed, requires_grad=False)
        self._bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return result


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN takes weights of this type on this processor."""
    if weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    if weight.dtype is torch.float32:
        return True
    half_types = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return weight.dtype in half_types and bool(half_types[weight.dtype]())


def pack_linears(module: nn.Module) -> None:
    """Replace every nn.Linear inside of module where that is possible, one by one: no two copies of all weights."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            if can_pack(child.weight):
                setattr(module, name, PackedLinear(child.weight, child.bias))
        else:
            pack_linears(child)
