"""The vision tower of Qwen2-VL: layer norms, plain MLPs, and attention over the whole image in every block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from epd_runtime.attention.packed import Segments
from epd_runtime.models.vision import (
    Grid,
    PatchEmbed,
    PatchMerger,
    PlainMLP,
    VisionBlock,
    VisionTower,
    frame_lengths,
    layer_norm,
    patch_positions,
    rotary,
)
from epd_runtime.models.vision_plan import VisionPlan, plain_plan
from epd_runtime.vision_config import VisionConfig

NAMES = {"merger.ln_q.": "merger.norm.", "merger.mlp.0.": "merger.fc1.", "merger.mlp.2.": "merger.fc2."}


class Qwen2VisionTower(VisionTower):
    """Patches of several images to their embeddings."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(config)
        self.patch_embed = PatchEmbed(config, bias=False)
        self.blocks = nn.ModuleList(VisionBlock(config, layer_norm, PlainMLP(config)) for _ in range(config.depth))
        self.merger = PatchMerger(config, layer_norm(config.hidden_size))

    def plan(self, grids: Sequence[Grid]) -> VisionPlan:
        """See VisionTower."""
        positions = torch.from_numpy(patch_positions(grids, self.config.merge_size))
        return plain_plan(positions, Segments.from_lengths(frame_lengths(grids)))

    def compute(self, pixels: Tensor, plan: VisionPlan) -> Tensor:
        """See VisionTower."""
        cos, sin = rotary(self.config, plan.positions)
        x = self.patch_embed(pixels)
        for block in self.blocks:
            x = block(x, cos, sin, plan.images)
        result: Tensor = self.merger(x)
        return result
