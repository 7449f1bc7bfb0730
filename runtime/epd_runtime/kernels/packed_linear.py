"""Projections whose weights are packed for linear.c, the fast path of CPU (docs/perf-log.md)."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the field's customary name
from torch import Tensor, nn

from epd_runtime.kernels.native_ops import library


class PackedLinear(nn.Module):
    """x @ weight.T + bias; the weights exist in packed form only."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """weight [out, in], bias [out], float32 on CPU; raises NativeUnavailableError."""
        super().__init__()
        native = library.load()
        self._linear = native.linear
        self.out_features, self.in_features = weight.shape
        self._weight = nn.Parameter(pack(weight.detach(), native.panel_width()), requires_grad=False)
        self._bias = None if bias is None else nn.Parameter(bias.detach().contiguous(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] float32 -> [..., out]; raises ValueError for anything else: C would read beyond it."""
        if x.dtype is not torch.float32 or x.shape[-1] != self.in_features:
            raise ValueError(f"expected [..., {self.in_features}] float32, not {list(x.shape)} {x.dtype}")
        rows = x.reshape(-1, self.in_features)
        rows = rows if rows.stride(1) == 1 else rows.contiguous()
        out = torch.empty(rows.shape[0], self.out_features)
        bias = 0 if self._bias is None else self._bias.data_ptr()
        self._linear(
            rows.data_ptr(), self._weight.data_ptr(), bias, out.data_ptr(),
            rows.shape[0], self.in_features, self.out_features, rows.stride(0),
        )  # fmt: skip
        return out if x.dim() == 2 else out.view(*x.shape[:-1], self.out_features)


def pack(weight: Tensor, width: int) -> Tensor:
    """weight [out, in] as [panels, in, width], the last panel padded with zeros."""
    panels = -(-len(weight) // width)
    padded = F.pad(weight, (0, 0, 0, panels * width - len(weight)))
    return padded.view(panels, width, -1).transpose(1, 2).contiguous()


def pack_linears(module: nn.Module) -> None:
    """Replace every float32 nn.Linear on CPU inside of module, one by one: no two copies of all weights."""
    for name, child in module.named_children():
        if type(child) is not nn.Linear:
            pack_linears(child)
        elif child.weight.device.type == "cpu" and child.weight.dtype is torch.float32 and library.is_available():
            setattr(module, name, PackedLinear(child.weight, child.bias))
