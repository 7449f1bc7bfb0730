"""Full attention inside the segments of a packed sequence, as vision towers use it.

Segments of one length run as one batch, so the number of calls is the number of different lengths (a few), not the
number of windows (thousands).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@dataclasses.dataclass(frozen=True)
class Segments:
    """Segments of a packed sequence, grouped by length: each group is token indices [segments, length]."""

    groups: tuple[Tensor, ...]

    @classmethod
    def from_lengths(cls, lengths: Sequence[int]) -> Segments:
        """Consecutive segments of the given lengths (zero lengths are dropped)."""
        sizes = np.asarray(lengths, dtype=np.int64)
        starts = np.cumsum(sizes) - sizes
        return cls(
            tuple(
                torch.from_numpy(starts[sizes == size][:, None] + np.arange(size))
                for size in np.unique(sizes[sizes > 0])
            )
        )

    def to(self, device: torch.device) -> Segments:
        """The same segments with their indices on a device."""
        return Segments(tuple(group.to(device) for group in self.groups))


def packed_attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """q, k, v [tokens, heads, head_dim]; every token attends to all tokens of its segment. Returns the same shape."""
    out = torch.empty_like(q)
    for index in segments.groups:
        part_q, part_k, part_v = (tensor[index].transpose(1, 2) for tensor in (q, k, v))
        part = scaled_dot_product_attention(part_q, part_k, part_v)  # [segments, heads, length, head_dim]
        out[index] = part.transpose(1, 2)
    return out
