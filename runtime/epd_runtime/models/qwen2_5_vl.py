"""The vision tower of Qwen2.5-VL: RMS norms, gated MLPs, and attention within windows in most blocks.

Tokens are permuted once so that every attention window is contiguous, and merged rows back at the end.
"""

from __future__ import annotations

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
from epd_runtime.models.vision_plan import NO_TAPS, NO_WEIGHTS, VisionPlan
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

    def plan(self, grids: Sequence[Grid]) -> VisionPlan:
        """See VisionTower."""
        return plan_windows(self.config, grids)

    def compute(self, pixels: Tensor, plan: VisionPlan) -> Tensor:
        """See VisionTower."""
        x = self.patch_embed(pixels)[plan.order]
        cos, sin = rotary(self.config, plan.positions)
        for index, block in enumerate(self.blocks):
            x = block(x, cos, sin, plan.images if index in self.config.full_attention_blocks else plan.windows)
        merged = self.merger(x)
        return torch.empty_like(merged).index_copy_(0, plan.merged_order, merged)


def plan_windows(config: VisionConfig, grids: Sequence[Grid]) -> VisionPlan:
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
    return VisionPlan(
        positions=torch.from_numpy(patch_positions(grids, merge)[order]),
        images=Segments.from_lengths(frame_lengths(grids)),
        windows=Segments.from_lengths(window_lengths),
        order=torch.from_numpy(order),
        merged_order=torch.from_numpy(merged_order),
        taps=NO_TAPS,
        weights=NO_WEIGHTS,
    )
