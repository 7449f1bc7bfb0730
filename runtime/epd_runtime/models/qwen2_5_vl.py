"""The vision tower of Qwen2.5-VL: a ViT with 2-D rotary positions, windows in most blocks, and a 2x2 patch merger.

All images of a batch run as one packed sequence. Tokens are permuted once so that every attention window is contiguous;
where segments begin and end is computed once per forward, on the host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from epd_runtime.attention.packed import Segments, packed_attention
from epd_runtime.kernels import ops
from epd_runtime.model_config import VisionConfig
from epd_runtime.models.layers import GatedMLP, RMSNorm

Grid = tuple[int, int, int]  # (t, h, w) in patches


class VisionBlock(nn.Module):
    """Pre-norm attention within segments and gated MLP."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.norm1 = RMSNorm(config.hidden_size, eps=1e-6)
        self.norm2 = RMSNorm(config.hidden_size, eps=1e-6)
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, bias=True)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, segments: Segments) -> Tensor:
        """x [patches, hidden] -> [patches, hidden]."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        q, k = ops.rotate(q, k, cos, sin)
        x = x + self.proj(packed_attention(q, k, v, segments).flatten(-2))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class PatchMerger(nn.Module):
    """Four neighbouring patches to one row of the language model's width."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.merged = config.hidden_size * config.merge_size**2
        self.ln_q = RMSNorm(config.hidden_size, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(self.merged, self.merged), nn.GELU(), nn.Linear(self.merged, config.out_hidden_size)
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.mlp(self.ln_q(x).view(-1, self.merged))
        return result


class Qwen25VisionTower(nn.Module):
    """Patches of several images to their embeddings."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        patch = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.patch_embed = nn.Parameter(torch.empty(config.hidden_size, config.in_channels, *patch))
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = PatchMerger(config)

    def forward(self, pixels: Tensor, grids: Sequence[Grid]) -> Tensor:
        """pixels [patches, channels * patch * patch] normalised, in merge-block order -> [rows, out_hidden].

        An image is a still clip: both frames of a temporal patch are equal, so the two kernels are added up first.
        """
        layout = plan_layout(self.config, grids)
        kernel = self.patch_embed.sum(dim=2).flatten(1)
        order = layout.order.to(pixels.device)
        x = torch.nn.functional.linear(pixels.to(kernel.dtype), kernel)[order]
        cos, sin = self._rotary(layout.positions[layout.order].to(pixels.device))
        windows, images = layout.windows.to(pixels.device), layout.images.to(pixels.device)
        for index, block in enumerate(self.blocks):
            x = block(x, cos, sin, images if index in self.config.full_attention_blocks else windows)
        merged = self.merger(x)
        return torch.empty_like(merged).index_copy_(0, layout.merged_order.to(pixels.device), merged)

    def _rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos, sin [patches, head_dim] for (row, column) positions [patches, 2]: half of the angles for each axis."""
        axis_dim = self.config.hidden_size // self.config.num_heads // 2
        steps = torch.arange(0, axis_dim, 2, device=positions.device).float() / axis_dim
        angles = (positions.float()[..., None] * (1.0 / self.config.rope_theta**steps)).flatten(1)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the packed patches are ordered and cut."""

    order: Tensor  # [patches] permutation into window order
    merged_order: Tensor  # [rows] the same in units of merged patches
    positions: Tensor  # [patches, 2] row and column of each patch, before the permutation
    windows: Segments
    images: Segments


def plan_layout(config: VisionConfig, grids: Sequence[Grid]) -> Layout:
    """Window permutation, positions and segments of a batch of images; host arithmetic only."""
    merge, unit = config.merge_size, config.merge_size**2
    side = config.window_size // merge // config.patch_size  # merged patches along a window
    merged_orders, positions, window_lengths, image_lengths = [], [], [], []
    base = 0
    for t, h, w in grids:
        rows, columns = h // merge, w // merge
        window_of = (np.arange(rows)[:, None] // side) * (-(-columns // side)) + np.arange(columns)[None, :] // side
        windows_per_frame = int(window_of[-1, -1]) + 1
        keys = (np.arange(t)[:, None] * windows_per_frame + window_of.reshape(1, -1)).reshape(-1)
        merged_orders.append(base + np.argsort(keys, kind="stable"))
        window_lengths.extend((np.bincount(keys) * unit).tolist())
        image_lengths.extend([h * w] * t)
        positions.append(np.tile(_block_positions(h, w, merge), (t, 1)))
        base += t * rows * columns
    merged_order = np.concatenate(merged_orders)
    order = (merged_order[:, None] * unit + np.arange(unit)).reshape(-1)
    return Layout(
        torch.from_numpy(order),
        torch.from_numpy(merged_order),
        torch.from_numpy(np.concatenate(positions)),
        Segments.from_lengths(window_lengths),
        Segments.from_lengths(image_lengths),
    )


def _block_positions(h: int, w: int, merge: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """(row, column) of each patch, in merge-block order, [h * w, 2]."""
    rows, columns = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
    pairs = np.stack((rows, columns), axis=-1)
    return pairs.reshape(h // merge, merge, w // merge, merge, 2).swapaxes(1, 2).reshape(-1, 2)
