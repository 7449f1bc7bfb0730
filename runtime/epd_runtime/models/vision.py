"""What the vision towers of all families share: patches, rotary positions, attention within segments, geometry.

All images of a batch run as one packed sequence; where segments begin and end is computed once per forward, on the
host.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - the field's customary name
from torch import Tensor, nn

from epd_runtime.attention.packed import Segments, packed_attention
from epd_runtime.kernels import ops
from epd_runtime.models.vision_plan import VisionPlan
from epd_runtime.vision_config import VisionConfig

Grid = tuple[int, int, int]  # (t, h, w) in patches
Positions = npt.NDArray[np.int64]


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _tanh_gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "quick_gelu": _quick_gelu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
}


class PatchEmbed(nn.Module):
    """Pixels of a patch to its row; the convolution of the checkpoint, whose stride is its size."""

    def __init__(self, config: VisionConfig, bias: bool) -> None:
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.weight = nn.Parameter(torch.empty(config.hidden_size, config.in_channels, *kernel))
        self.bias = nn.Parameter(torch.empty(config.hidden_size)) if bias else None

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [patches, channels * patch²], of a video [patches, channels * frames * patch²] -> [patches, hidden].

        An image is a still clip: all frames of a temporal patch are equal, so the kernels are added up first.
        """
        is_video = pixels.shape[1] == self.weight[0].numel()
        kernel = self.weight.flatten(1) if is_video else self.weight.sum(dim=2).flatten(1)
        return F.linear(pixels.to(kernel.dtype), kernel, self.bias)


class VisionAttention(nn.Module):
    """Full attention within each segment of the packed sequence."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, segments: Segments) -> Tensor:
        """x [patches, hidden] -> [patches, hidden]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        q, k = ops.rotate(q, k, cos, sin)
        result: Tensor = self.proj(packed_attention(q, k, v, segments).flatten(-2))
        return result


class VisionBlock(nn.Module):
    """Pre-norm attention within segments and an MLP, each with a residual."""

    def __init__(self, config: VisionConfig, norm: Callable[[int], nn.Module], mlp: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(config.hidden_size), norm(config.hidden_size)
        self.attn = VisionAttention(config)
        self.mlp = mlp

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, segments: Segments) -> Tensor:
        """x [patches, hidden] -> [patches, hidden]."""
        x = x + self.attn(self.norm1(x), cos, sin, segments)
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class VisionTower(nn.Module, abc.ABC):
    """Patches of several images or of frames of a video to embeddings; each family has its own.

    No frame attends to another: temporal patches of a video may run apart.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, pixels: Tensor, grids: Sequence[Grid]) -> Tensor:
        """pixels as PatchEmbed takes them, normalised, in merge-block order -> [rows, embedding_width]."""
        return self.compute(pixels, self.plan(grids).to(pixels.device))

    @abc.abstractmethod
    def plan(self, grids: Sequence[Grid]) -> VisionPlan:
        """What compute() needs to know of these images; host arithmetic only."""

    @abc.abstractmethod
    def compute(self, pixels: Tensor, plan: VisionPlan) -> Tensor:
        """forward() for a plan on the device: nothing depends on values, so a CUDA graph can hold it.

        Rows that no segment has give rows of the result that mean nothing, and change no other.
        """


class PlainMLP(nn.Module):
    """fc2(act(fc1(x)))."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self._activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(self._activation(self.fc1(x)))
        return result


class PatchMerger(nn.Module):
    """Neighbouring patches, merge_size² of them, to one row of the language model's width."""

    def __init__(self, config: VisionConfig, norm: nn.Module, norm_first: bool = True) -> None:
        """norm_first: norm works on single patches, else on the merged row."""
        super().__init__()
        self.merged = config.hidden_size * config.merge_size**2
        self.norm_first = norm_first
        self.norm = norm
        self.fc1 = nn.Linear(self.merged, self.merged)
        self.fc2 = nn.Linear(self.merged, config.out_hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """x [patches, hidden] -> [patches / merge_size², out_hidden]."""
        x = self.norm(x).view(-1, self.merged) if self.norm_first else self.norm(x.view(-1, self.merged))
        result: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return result


def layer_norm(size: int) -> nn.LayerNorm:
    """The norm of Qwen2-VL's and Qwen3-VL's towers."""
    return nn.LayerNorm(size, eps=1e-6)


def rotary(config: VisionConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos, sin [patches, head_dim] for (row, column) positions [patches, 2]: half of the angles for each axis."""
    axis_dim = config.hidden_size // config.num_heads // 2
    steps = torch.arange(0, axis_dim, 2, device=positions.device).float() / axis_dim
    angles = (positions.float()[..., None] * (1.0 / config.rope_theta**steps)).flatten(1)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def patch_positions(grids: Sequence[Grid], merge: int) -> Positions:
    """(row, column) of each patch in its frame, in merge-block order, [patches, 2]."""
    return np.concatenate([np.tile(_block_positions(h, w, merge), (t, 1)) for t, h, w in grids])


def frame_lengths(grids: Sequence[Grid]) -> list[int]:
    """Patches of every frame."""
    return [h * w for t, h, w in grids for _ in range(t)]


def _block_positions(h: int, w: int, merge: int) -> Positions:
    rows, columns = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
    pairs = np.stack((rows, columns), axis=-1)
    return pairs.reshape(h // merge, merge, w // merge, merge, 2).swapaxes(1, 2).reshape(-1, 2)
