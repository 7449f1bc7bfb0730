"""The vision tower of Qwen3-VL: learned positions beside the rotary ones, and DeepStack.

The learned positions are a square grid, stretched bilinearly over each image so that corners meet corners. DeepStack:
the output of some blocks, merged like the tower's own, is added to the image's rows behind the first layers of the
language model (Meng et al. 2024, arXiv 2406.04334). A row of an embedding holds the tower's output, then those parts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from epd_runtime.attention.packed import Segments
from epd_runtime.models.vision import (
    Grid,
    PatchEmbed,
    PatchMerger,
    PlainMLP,
    Positions,
    VisionBlock,
    VisionTower,
    frame_lengths,
    layer_norm,
    patch_positions,
    rotary,
)
from epd_runtime.models.vision_plan import VisionPlan, plain_plan
from epd_runtime.vision_config import VisionConfig

NAMES = {"linear_fc": "fc", "deepstack_merger_list.": "deepstack."}
Floats = npt.NDArray[np.float32]


class Qwen3VisionTower(VisionTower):
    """Patches of several images to their embeddings, DeepStack parts beside."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(config)
        self.patch_embed = PatchEmbed(config, bias=True)
        self.pos_embed = nn.Embedding(
            config.position_side**2,
            config.hidden_size,
            _weight=torch.empty(config.position_side**2, config.hidden_size),
        )
        self.blocks = nn.ModuleList(VisionBlock(config, layer_norm, PlainMLP(config)) for _ in range(config.depth))
        self.merger = PatchMerger(config, layer_norm(config.hidden_size))
        self.deepstack = nn.ModuleList(
            PatchMerger(config, layer_norm(config.hidden_size * config.merge_size**2), norm_first=False)
            for _ in config.deepstack_blocks
        )

    def plan(self, grids: Sequence[Grid]) -> VisionPlan:
        """See VisionTower."""
        positions = patch_positions(grids, self.config.merge_size)
        taps, weights = interpolate(positions, grids, self.config.position_side)
        plan = plain_plan(torch.from_numpy(positions), Segments.from_lengths(frame_lengths(grids)))
        return dataclasses.replace(plan, taps=torch.from_numpy(taps), weights=torch.from_numpy(weights))

    def compute(self, pixels: Tensor, plan: VisionPlan) -> Tensor:
        """See VisionTower."""
        cos, sin = rotary(self.config, plan.positions)
        x = self.patch_embed(pixels) + self._learned(plan)
        parts: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            x = block(x, cos, sin, plan.images)
            if index in self.config.deepstack_blocks:
                parts.append(self.deepstack[self.config.deepstack_blocks.index(index)](x))
        return torch.cat((self.merger(x), *parts), dim=-1)

    def _learned(self, plan: VisionPlan) -> Tensor:
        """Learned embeddings of the patches, interpolated: [patches, hidden]."""
        rows = self.pos_embed(plan.taps)
        summed: Tensor = (rows * plan.weights.unsqueeze(-1)).sum(1)
        return summed.to(rows.dtype)


def interpolate(positions: Positions, grids: Sequence[Grid], side: int) -> tuple[Positions, Floats]:
    """Which four of the side x side learned positions each patch mixes, and how: [patches, 4] each."""
    sizes = np.repeat([(h, w) for _, h, w in grids], [t * h * w for t, h, w in grids], axis=0)
    place = positions.astype(np.float32) * np.float32(side - 1) / np.maximum(sizes - 1, 1).astype(np.float32)
    low = np.floor(place)
    high_weight = (place - low).astype(np.float32)
    weights = np.stack((1 - high_weight, high_weight), axis=-1)  # [patches, axis, tap]
    taps = np.minimum(low.astype(np.int64)[..., None] + np.arange(2), side - 1)
    flat = taps[:, 0, :, None] * side + taps[:, 1, None, :]
    return flat.reshape(-1, 4), (weights[:, 0, :, None] * weights[:, 1, None, :]).reshape(-1, 4)
