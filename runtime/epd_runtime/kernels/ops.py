"""The operations that have a kernel. A process chooses their implementation once, before its model runs.

Until choose() is called everything is plain PyTorch, which runs on every device.
"""

from __future__ import annotations

import importlib
from typing import Protocol, cast

import torch
from torch import Tensor

from epd_runtime.kernels import plain
from epd_runtime.kernels.native_ops import library


class _Implementation(Protocol):
    """What the modules `plain`, `native_ops.operations` and `triton_ops` all are."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor: ...

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]: ...

    def rotate(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]: ...

    def silu_mul(self, gate_up: Tensor) -> Tensor: ...

    def store_kv(self, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, pages: Tensor, slots: Tensor) -> None: ...

    def packed_attention(
        self, q: Tensor, k: Tensor, v: Tensor, groups: tuple[Tensor, ...], tiles: Tensor
    ) -> Tensor: ...


_chosen: _Implementation = plain


def choose(name: str) -> None:
    """Use the implementation of this name, "plain", "native" or "triton", from now on and in the whole process."""
    global _chosen
    module = {"plain": "plain", "native": "native_ops.operations", "triton": "triton_ops"}[name]
    _chosen = cast(_Implementation, importlib.import_module(f"epd_runtime.kernels.{module}"))


def fastest(device: torch.device) -> str:
    """The implementation for a device, by name."""
    if device.type == "cuda":
        return "triton"
    return "native" if library.is_available() else "plain"


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight * x / rms(x) over the last dimension; the mean in float32, rounded to x's type before the product.

    Zhang & Sennrich 2019, in the order transformers computes it. x [tokens, size] or [tokens, heads, size].
    """
    return _chosen.rms_norm(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual), both [tokens, size]."""
    return _chosen.add_rms_norm(x, residual, weight, eps)


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary embedding, halves paired (NeoX form), of q, k [tokens, their heads, head_dim].

    cos, sin [tokens, head_dim], with one position per token or with M-RoPE alike. Their type is the one to compute in;
    results have the type of q and k.
    """
    return _chosen.rotate(q, k, cos, sin)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up [tokens, n] for gate_up [tokens, 2 * n]."""
    return _chosen.silu_mul(gate_up)


def store_kv(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, pages: Tensor, slots: Tensor) -> None:
    """Write k, v [tokens, kv_heads, head_dim] to keys, values [pages, page_size, kv_heads, head_dim].

    pages, slots int64 [tokens]: the page of each token and its place inside it.
    """
    _chosen.store_kv(k, v, keys, values, pages, slots)


def packed_attention(q: Tensor, k: Tensor, v: Tensor, groups: tuple[Tensor, ...], tiles: Tensor) -> Tensor:
    """Every row of q, k, v [rows, heads, head_dim] attends to all rows of its segment. Returns the same shape.

    The same segments in two forms, one for each implementation: groups, row indices [segments, length] per length;
    tiles int32 [tiles, 3], at most PACKED_TILE_ROWS query rows each: first row, and first and last + 1 of its segment.
    """
    return _chosen.packed_attention(q, k, v, groups, tiles)
