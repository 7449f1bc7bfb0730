"""The vision tower of Qwen2.5-VL: RMS norms, gated MLPs, and attention within windows in most blocks.

Tokens are permuted once so that every attention window is contiguous, and merged rows back at the end.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from epd_runtime.attention.packed import Segments
from epd_runtime.models.layers import GatedMLP, RMSNorm
from epd_runtime.models.vision import (
    Grid,
    PatchEmbed,
    PatchMerger,
    VisionBlock,
    VisionTower,
    frame_lengths,
    patch_positions,
    rotary,
)
from epd_runtime.vision_config import VisionConfig

NAMES = {"merger.ln_q.": "merger.norm.", "merger.mlp.0.": "merger.fc1.", "merger.mlp.2.": "merger.fc2."}


class Qwen25VisionTower(VisionTower):
    """Patches of several images to their embeddings."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(config)
        norm = functools.partial(RMSNorm, eps=1e-6)
        self.patch_embed = PatchEmbed(config, bias=False)
        self.blocks = nn.ModuleList(
            VisionBlock(config, norm, GatedMLP(config.hidden_size, config.intermediate_size, bias=True))
            for _ in range(config.depth)
        )
        self.merger = PatchMerger(config, norm(config.hidden_size))

    def forward(self, pixels: Tensor, grids: Sequence[Grid]) -> Tensor:
        """See VisionTower.forward."""
        layout = plan_layout(self.config, grids)
        x = self.patch_embed(pixels)[layout.order.to(pixels.device)]
        cos, sin = rotary(self.config, layout.positions.to(pixels.device))
        windows, images = layout.windows.to(pixels.device), layout.images.to(pixels.device)
        for index, block in enumerate(self.blocks):
            x = block(x, cos, sin, images if index in self.config.full_attention_blocks else windows)
        merged = self.merger(x)
        return torch.empty_like(merged).index_copy_(0, layout.merged_order.to(pixels.device), merged)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the packed patches are ordered and cut."""

    order: Tensor  # [patches] permutation into window order
    merged_order: Tensor  # [rows] the same in units of merged patches
    positions: Tensor  # [patches, 2] row and column of each patch, permuted
    windows: Segments
    images: Segments


def plan_layout(config: VisionConfig, grids: Sequence[Grid]) -> Layout:
    """Window permutation, positions and segments of a batch of images; host arithmetic only."""
    merge, unit = config.merge_size, config.merge_size**2
    side = config.window_size // merge // config.patch_size  # merged patches along a window
    merged_orders, window_lengths = [], []
    base = 0
    for t, h, w in grids:
        rows, columns = h // merge, w // merge
        window_of = (np.arange(rows)[:, None] // side) * (-(-columns // side)) + np.arange(columns)[None, :] // side
        windows_per_frame = int(window_of[-1, -1]) + 1
        keys = (np.arange(t)[:, None] * windows_per_frame + window_of.reshape(1, -1)).reshape(-1)
        merged_orders.append(base + np.argsort(keys, kind="stable"))
        window_lengths.extend((np.bincount(keys) * unit).tolist())
        base += t * rows * columns
    merged_order = np.concatenate(merged_orders)
    order = (merged_order[:, None] * unit + np.arange(unit)).reshape(-1)
    return Layout(
        torch.from_numpy(order),
        torch.from_numpy(merged_order),
        torch.from_numpy(patch_positions(grids, merge)[order]),
        Segments.from_lengths(window_lengths),
        Segments.from_lengths(frame_lengths(grids)),
    )
