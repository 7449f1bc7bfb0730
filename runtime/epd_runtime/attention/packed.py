"""Full attention inside the segments of a packed sequence, as vision towers use it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from epd_runtime.kernels import ops
from epd_runtime.kernels.plain import PACKED_TILE_ROWS


@dataclasses.dataclass(frozen=True)
class Segments:
    """Segments of a packed sequence: grouped by length, and cut into tiles (see ops.packed_attention)."""

    groups: tuple[Tensor, ...]
    tiles: Tensor

    @classmethod
    def from_lengths(cls, lengths: Sequence[int]) -> Segments:
        """Consecutive segments of the given lengths (zero lengths are dropped)."""
        sizes = np.asarray(lengths, dtype=np.int64)
        starts = np.cumsum(sizes) - sizes
        groups = tuple(
            torch.from_numpy(starts[sizes == size][:, None] + np.arange(size)) for size in np.unique(sizes[sizes > 0])
        )
        return cls(groups, torch.from_numpy(_tiles(starts, sizes)))

    def to(self, device: torch.device) -> Segments:
        """The same segments with their indices on a device."""
        return Segments(tuple(group.to(device) for group in self.groups), self.tiles.to(device))


def _tiles(starts: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    counts = -(-sizes // PACKED_TILE_ROWS)
    segment = np.repeat(np.arange(len(sizes)), counts)
    place = np.arange(len(segment)) - np.repeat(np.cumsum(counts) - counts, counts)  # of the tile in its segment
    first = starts[segment] + place * PACKED_TILE_ROWS
    return np.column_stack((first, starts[segment], starts[segment] + sizes[segment])).astype(np.int32)


def packed_attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """q, k, v [tokens, heads, head_dim]; every token attends to all tokens of its segment. Returns the same shape."""
    return ops.packed_attention(q, k, v, segments.groups, segments.tiles)
