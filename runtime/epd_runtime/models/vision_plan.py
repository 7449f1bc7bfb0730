"""What a vision tower must know of its images beside their pixels: indices and segments, from their grids alone."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from epd_runtime.attention.packed import Segments


@dataclasses.dataclass(frozen=True)
class VisionPlan:
    """Host or device tensors for one packed batch; what a family has no use for is empty."""

    positions: Tensor  # int64 [patches, 2] row and column of each patch, in the tower's order
    images: Segments  # frames
    windows: Segments
    order: Tensor  # int64 [patches] the tower's order, of the patches as they come
    merged_order: Tensor  # int64 [rows] the same in units of merged patches
    taps: Tensor  # int64 [patches, 4] learned positions that each patch mixes
    weights: Tensor  # float32 [patches, 4] how

    def to(self, device: torch.device) -> VisionPlan:
        """The same on a device."""
        return VisionPlan(**{field.name: getattr(self, field.name).to(device) for field in dataclasses.fields(self)})


NO_ORDER = torch.empty(0, dtype=torch.int64)
NO_SEGMENTS = Segments((), torch.empty((0, 3), dtype=torch.int32))
NO_TAPS = torch.empty((0, 4), dtype=torch.int64)
NO_WEIGHTS = torch.empty((0, 4))


def plain_plan(positions: Tensor, images: Segments) -> VisionPlan:
    """A plan without windows and learned positions."""
    return VisionPlan(positions, images, NO_SEGMENTS, NO_ORDER, NO_ORDER, NO_TAPS, NO_WEIGHTS)
