"""Rotary position embeddings of language models: plain, Llama 3 scaling, and multi-axis (M-RoPE).

Cosines and sines of every position are computed once, at load; a step only looks them up.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from epd_runtime.model_config import RopeScaling, TextConfig


class RotaryTable:
    """cos and sin of all positions, [positions, head_dim // 2] float32 each."""

    def __init__(self, config: TextConfig, num_positions: int, device: torch.device) -> None:
        inverse = 1.0 / (config.rope_theta ** (torch.arange(0, config.head_dim, 2).float() / config.head_dim))
        if config.rope_scaling is not None:
            inverse = _llama3(inverse, config.rope_scaling)
        angles = torch.arange(num_positions).float()[:, None] * inverse
        self._cos = angles.cos().to(device)
        self._sin = angles.sin().to(device)
        self._axes = _section_axes(config).to(device) if config.mrope_section else None

    def __call__(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos, sin [tokens, head_dim] for positions [tokens], or [3, tokens] with M-RoPE."""
        return self._look_up(self._cos, positions).to(dtype), self._look_up(self._sin, positions).to(dtype)

    def _look_up(self, table: Tensor, positions: Tensor) -> Tensor:
        if self._axes is None:
            half = table[positions]
        else:  # column j of the half follows axis axes[j]: time, height or width
            columns = torch.arange(table.shape[1], device=table.device)
            half = table[positions[self._axes].T, columns]
        return torch.cat((half, half), dim=-1)


def _section_axes(config: TextConfig) -> Tensor:
    """Axis of each frequency, [head_dim // 2].

    In blocks (Qwen2-VL): section i of the frequencies follows axis i mod 3. Interleaved (Qwen3-VL): time, height and
    width take turns as long as height and width have frequencies left; the rest is time's.
    """
    sections = config.mrope_section
    if not config.mrope_interleaved:
        return torch.cat([torch.full((size,), index % 3) for index, size in enumerate(sections)])
    axes = torch.zeros(config.head_dim // 2, dtype=torch.int64)
    for axis in (1, 2):
        axes[axis : 3 * sections[axis] : 3] = axis
    return axes


def _llama3(inverse: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1's stretch: long wavelengths divided by `factor`, short ones kept, a ramp between."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    wavelength = 2 * math.pi / inverse
    ramp = ((scaling.original_max_positions / wavelength - low) / (high - low)).clamp(0, 1)
    stretched: Tensor = (1 - ramp) * inverse / scaling.factor + ramp * inverse
    return stretched
