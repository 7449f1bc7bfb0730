"""What config.json says about the vision tower, for every family that has one, in one form."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from epd_runtime.json_fields import Fields, ModelConfigError

ACTIVATIONS = ("silu", "quick_gelu", "gelu", "gelu_pytorch_tanh")


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Sizes of a vision tower. window_size in pixels, the others in patches or channels."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    out_hidden_size: int
    rope_theta: float
    activation: str = "silu"
    window_size: int = 0  # 0: every block attends to the whole image
    full_attention_blocks: frozenset[int] = frozenset()
    position_side: int = 0  # learned positions form a square grid of this side; 0: there are none
    deepstack_blocks: tuple[int, ...] = ()  # blocks whose output enters the first layers of the language model
    has_timestamps: bool = False  # a video's frames stand in the prompt one by one, each behind its time
    tokens_per_second: int = 0  # temporal positions of a second of video; 0: positions count patches of frames

    @property
    def embedding_width(self) -> int:
        """Values in one row of an image's embedding: the merged output, then one part per DeepStack block."""
        return self.out_hidden_size * (1 + len(self.deepstack_blocks))


def read_vision_config(model_type: str, raw: Fields) -> VisionConfig:
    """raw: config.json's vision_config. Raises ModelConfigError."""
    if (read := VISION_FAMILIES.get(model_type)) is None:
        raise ModelConfigError(
            f"{raw.where}: no vision tower of model_type {model_type!r} is known; "
            f"known are {', '.join(VISION_FAMILIES)}"
        )
    vision = read(raw)
    if vision.activation not in ACTIVATIONS:
        raw.refuse("hidden_act", f"one of {', '.join(ACTIVATIONS)}")
    if vision.in_channels != 3:
        raw.refuse("in_channels", "3: images are read as RGB")
    if vision.hidden_size % (4 * vision.num_heads):
        raise ModelConfigError(
            f"{raw.where}: the width {vision.hidden_size} must be a multiple of 4 * num_heads = "
            f"{4 * vision.num_heads}, for rotary positions"
        )
    return vision


def _common(raw: Fields, patch_size: int, activation: str) -> VisionConfig:
    """The fields that all families share; the sizes that they spell differently are still zero."""
    return VisionConfig(
        depth=raw.integer("depth"),
        hidden_size=0,
        intermediate_size=0,
        num_heads=raw.integer("num_heads"),
        in_channels=raw.integer("in_channels", 3),
        patch_size=raw.integer("patch_size", patch_size),
        temporal_patch_size=raw.integer("temporal_patch_size", 2),
        merge_size=raw.integer("spatial_merge_size", 2),
        out_hidden_size=0,
        rope_theta=raw.object("rope_parameters").number("rope_theta", 10000.0),
        activation=raw.text("hidden_act", activation),
    )


def _qwen2_vl(raw: Fields) -> VisionConfig:
    width = raw.integer("embed_dim")
    return dataclasses.replace(
        _common(raw, 14, "quick_gelu"),
        hidden_size=width,
        intermediate_size=width * raw.integer("mlp_ratio", 4),
        out_hidden_size=raw.integer("hidden_size"),
    )


def _qwen2_5_vl(raw: Fields) -> VisionConfig:
    vision = dataclasses.replace(
        _common(raw, 14, "silu"),
        hidden_size=raw.integer("hidden_size"),
        intermediate_size=raw.integer("intermediate_size"),
        out_hidden_size=raw.integer("out_hidden_size"),
        window_size=raw.integer("window_size"),
        full_attention_blocks=frozenset(raw.integers("fullatt_block_indexes")),
        tokens_per_second=raw.integer("tokens_per_second", 4),
    )
    if vision.window_size < vision.merge_size * vision.patch_size:
        raw.refuse("window_size", f"at least one merged patch, {vision.merge_size * vision.patch_size} pixels")
    return vision


def _qwen3_vl(raw: Fields) -> VisionConfig:
    positions = raw.integer("num_position_embeddings")
    side = int(positions**0.5)
    if side * side != positions:
        raw.refuse("num_position_embeddings", "a square number")
    depth, deepstack = raw.integer("depth"), raw.integers("deepstack_visual_indexes")
    if len(set(deepstack)) != len(deepstack) or any(index >= depth for index in deepstack):
        raw.refuse("deepstack_visual_indexes", f"different blocks below depth {depth}")
    return dataclasses.replace(
        _common(raw, 16, "gelu_pytorch_tanh"),
        hidden_size=raw.integer("hidden_size"),
        intermediate_size=raw.integer("intermediate_size"),
        out_hidden_size=raw.integer("out_hidden_size"),
        position_side=side,
        has_timestamps=True,
        deepstack_blocks=deepstack,
    )


def read_image_settings(folder: Path) -> Fields:
    """What a model folder says about preprocessing images; empty when it says nothing. Raises ModelConfigError."""
    raw = Fields.read(folder / "preprocessor_config.json", optional=True)
    return raw if raw.values else Fields.read(folder / "processor_config.json", optional=True).object("image_processor")


VISION_FAMILIES: dict[str, Callable[[Fields], VisionConfig]] = {
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_vl_moe": _qwen3_vl,
}
