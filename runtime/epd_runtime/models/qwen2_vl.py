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
from epd_runtime.vision_config import VisionConfig

NAMES = {"merger.ln_q.": "merger.norm.", "merger.mlp.0.": "merger.fc1.", "merger.mlp.2.": "merger.fc2."}


class Qwen2VisionTower(VisionTower):
    """Patches of several images to their embeddings."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(config)
        self.patch_embed = PatchEmbed(config, bias=False)
        self.blocks = nn.ModuleList(VisionBlock(config, layer_norm, PlainMLP(config)) for _ in range(config.depth))
        self.merger = PatchMerger(config, layer_norm(config.hidden_size))

    def forward(self, pixels: Tensor, grids: Sequence[Grid]) -> Tensor:
        """See VisionTower.forward."""
        positions = torch.from_numpy(patch_positions(grids, self.config.merge_size))
        cos, sin = rotary(self.config, positions.to(pixels.device))
        images = Segments.from_lengths(frame_lengths(grids)).to(pixels.device)
        x = self.patch_embed(pixels)
        for block in self.blocks:
            x = block(x, cos, sin, images)
        result: Tensor = self.merger(x)
        return result
