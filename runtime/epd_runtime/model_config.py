"""What the engine needs to know of a model, read from its config.json.

Checkpoints spell the same facts in two generations (`rope_theta` beside `rope_scaling`, or both inside
`rope_parameters`; text fields at the top or inside `text_config`); this module is the only one that knows. Features
that change the arithmetic and that this engine does not have (sliding windows, quantised weights, other activations)
are refused: a model that runs and answers nonsense is worse than one that does not start.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from epd_runtime.json_fields import Fields, ModelConfigError

__all__ = ["ModelConfig", "ModelConfigError", "RopeScaling", "TextConfig", "VisionConfig", "load_model_config"]


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretch of rotary positions. original_max_positions in tokens."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes of a decoder-only language model."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_positions: int
    rope_theta: float
    rope_scaling: RopeScaling | None
    mrope_section: tuple[int, ...]  # () when positions are plain
    qkv_bias: bool
    tie_word_embeddings: bool


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Sizes of a Qwen2.5-VL vision tower. window_size in pixels, the others in patches or channels."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    window_size: int
    full_attention_blocks: frozenset[int]
    out_hidden_size: int
    rope_theta: float


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A model: its family, its language model, and its vision tower if it has one."""

    model_type: str
    architecture: str
    dtype: str
    text: TextConfig
    vision: VisionConfig | None
    eos_token_ids: tuple[int, ...]

    @property
    def fingerprint(self) -> str:
        """Equal for two engines exactly when their KV caches mean the same."""
        return f"{self.model_type}:{dataclasses.astuple(self.text)}"


ROPE_TYPES = ("default", "mrope", "llama3")
DTYPES = ("float32", "bfloat16", "float16")
ACTIVATIONS = ("silu", "swish")


def load_model_config(folder: Path) -> ModelConfig:
    """Read config.json and generation_config.json of a model folder; raises ModelConfigError."""
    config = Fields.read(folder / "config.json")
    generation = Fields.read(folder / "generation_config.json", optional=True)
    model_type = config.text("model_type", "")
    raw_text = Fields({**config.values, **config.object("text_config").values}, config.where)
    if "quantization_config" in config:
        raise ModelConfigError(f"{config.where}: quantised checkpoints are not supported; use the unquantised model")
    text = _text_config(model_type, config, raw_text)
    vision = _vision_config(config.object("vision_config")) if "vision_config" in config else None
    if vision is not None and vision.out_hidden_size != text.hidden_size:
        raise ModelConfigError(
            f"{config.where}: vision_config.out_hidden_size is {vision.out_hidden_size}, but the language model's "
            f"hidden_size is {text.hidden_size}; they must be equal"
        )
    architectures = config.values.get("architectures") or [""]
    if not isinstance(architectures, list) or not isinstance(architectures[0], str):
        config.refuse("architectures", "a list of names")
    return ModelConfig(
        model_type=model_type,
        architecture=architectures[0],
        dtype=_dtype(config, raw_text),
        text=text,
        vision=vision,
        eos_token_ids=_eos_token_ids(generation if "eos_token_id" in generation else raw_text),
    )


def _dtype(config: Fields, raw_text: Fields) -> str:
    """Data type of the checkpoint; "float32" when it does not say."""
    for fields, name in ((config, "dtype"), (config, "torch_dtype"), (raw_text, "dtype")):
        if name in fields:
            dtype = fields.text(name).removeprefix("torch.")
            return dtype if dtype in DTYPES else fields.refuse(name, f"one of {', '.join(DTYPES)}")
    return "float32"


def _eos_token_ids(fields: Fields) -> tuple[int, ...]:
    """One id, a list of them, or none."""
    if isinstance(fields.values.get("eos_token_id"), int):
        return Fields({"eos_token_id": [fields.values["eos_token_id"]]}, fields.where).integers("eos_token_id")
    return fields.integers("eos_token_id", ())


def _text_config(model_type: str, config: Fields, raw: Fields) -> TextConfig:
    rope = raw.object("rope_parameters" if "rope_parameters" in raw else "rope_scaling")
    rope_type = rope.text("rope_type", rope.text("type", "default"))
    if rope_type not in ROPE_TYPES:
        raise ModelConfigError(f"rope type {rope_type!r} is not supported; known are {', '.join(ROPE_TYPES)}")
    if raw.boolean("use_sliding_window", False):
        raise ModelConfigError(f"{raw.where}: use_sliding_window is not supported; this engine attends to everything")
    _check_activation(raw)
    hidden_size, num_heads = raw.integer("hidden_size"), raw.integer("num_attention_heads")
    tie = (config if "tie_word_embeddings" in config else raw).boolean("tie_word_embeddings", False)
    text = TextConfig(
        vocab_size=raw.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=raw.integer("intermediate_size"),
        num_layers=raw.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=raw.integer("num_key_value_heads", num_heads),
        head_dim=raw.integer("head_dim", hidden_size // num_heads),
        rms_norm_eps=raw.number("rms_norm_eps"),
        max_positions=raw.integer("max_position_embeddings"),
        rope_theta=(rope if "rope_theta" in rope else raw).number("rope_theta", 10000.0),
        rope_scaling=_rope_scaling(rope) if rope_type == "llama3" else None,
        mrope_section=rope.integers("mrope_section", ()),
        qkv_bias=raw.boolean("attention_bias", model_type.startswith("qwen2")),
        tie_word_embeddings=tie,
    )
    _check_heads(raw, text)
    return text


def _check_activation(fields: Fields) -> None:
    if fields.text("hidden_act", "silu") not in ACTIVATIONS:
        fields.refuse("hidden_act", f"one of {', '.join(ACTIVATIONS)}")


def _check_heads(raw: Fields, text: TextConfig) -> None:
    if text.num_heads % text.num_kv_heads:
        raise ModelConfigError(
            f"{raw.where}: num_attention_heads {text.num_heads} must be a multiple of "
            f"num_key_value_heads {text.num_kv_heads}"
        )
    if text.head_dim % 2:
        raise ModelConfigError(f"{raw.where}: head_dim {text.head_dim} must be even, for rotary positions")
    sections = text.mrope_section
    if sections and (len(sections) % 3 or sum(sections) * 2 != text.head_dim):
        raise ModelConfigError(
            f"{raw.where}: mrope_section {list(sections)} must be three numbers whose sum is half of "
            f"head_dim {text.head_dim}"
        )


def _rope_scaling(rope: Fields) -> RopeScaling:
    scaling = RopeScaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_max_positions=rope.integer("original_max_position_embeddings"),
    )
    if scaling.low_freq_factor >= scaling.high_freq_factor:
        rope.refuse("low_freq_factor", f"below high_freq_factor {scaling.high_freq_factor:g}")
    return scaling


def _vision_config(raw: Fields) -> VisionConfig:
    _check_activation(raw)
    vision = VisionConfig(
        depth=raw.integer("depth"),
        hidden_size=raw.integer("hidden_size"),
        intermediate_size=raw.integer("intermediate_size"),
        num_heads=raw.integer("num_heads"),
        in_channels=raw.integer("in_channels", 3),
        patch_size=raw.integer("patch_size", 14),
        temporal_patch_size=raw.integer("temporal_patch_size", 2),
        merge_size=raw.integer("spatial_merge_size", 2),
        window_size=raw.integer("window_size"),
        full_attention_blocks=frozenset(raw.integers("fullatt_block_indexes")),
        out_hidden_size=raw.integer("out_hidden_size"),
        rope_theta=raw.object("rope_parameters").number("rope_theta", 10000.0),
    )
    if vision.in_channels != 3:
        raw.refuse("in_channels", "3: images are read as RGB")
    if vision.hidden_size % (4 * vision.num_heads):
        raw.refuse("hidden_size", f"a multiple of 4 * num_heads = {4 * vision.num_heads}, for rotary positions")
    if vision.window_size < vision.merge_size * vision.patch_size:
        raw.refuse("window_size", f"at least one merged patch, {vision.merge_size * vision.patch_size} pixels")
    return vision
