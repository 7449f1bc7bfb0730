"""What the engine needs to know of a model, read from its config.json.

Checkpoints spell the same facts in two generations (`rope_theta` beside `rope_scaling`, or both inside
`rope_parameters`; text fields at the top or inside `text_config`); this module is the only one that knows.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any


class ModelConfigError(ValueError):
    """config.json lacks a field or names something that this engine does not run; the message says which."""


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
    rope_scaling: dict[str, Any]  # {} or a "llama3" scaling
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


def load_model_config(folder: Path) -> ModelConfig:
    """Read config.json and generation_config.json of a model folder; raises ModelConfigError."""
    config = _read_json(folder / "config.json")
    generation = _read_json(folder / "generation_config.json", optional=True)
    model_type = config.get("model_type", "")
    raw_text = {**config, **config.get("text_config", {})}
    try:
        text = _text_config(model_type, config, raw_text)
        vision = _vision_config(config["vision_config"]) if "vision_config" in config else None
    except KeyError as error:
        raise ModelConfigError(f"{folder / 'config.json'} has no field {error.args[0]!r}") from None
    eos = generation.get("eos_token_id", raw_text.get("eos_token_id"))
    return ModelConfig(
        model_type=model_type,
        architecture=(config.get("architectures") or [""])[0],
        dtype=config.get("dtype") or config.get("torch_dtype") or raw_text.get("dtype") or "float32",
        text=text,
        vision=vision,
        eos_token_ids=() if eos is None else tuple(eos) if isinstance(eos, list) else (eos,),
    )


def _read_json(path: Path, optional: bool = False) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if optional:
            return {}
        raise ModelConfigError(f"{path} does not exist; --model-path must name a Hugging Face model folder") from None
    except ValueError as error:
        raise ModelConfigError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ModelConfigError(f"{path} must hold a JSON object")
    return content


def _text_config(model_type: str, config: dict[str, Any], raw: dict[str, Any]) -> TextConfig:
    rope = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    rope_type = rope.get("rope_type") or rope.get("type") or "default"
    if rope_type not in ROPE_TYPES:
        raise ModelConfigError(f"rope type {rope_type!r} is not supported; known are {', '.join(ROPE_TYPES)}")
    num_heads = raw["num_attention_heads"]
    return TextConfig(
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=raw.get("num_key_value_heads") or num_heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // num_heads,
        rms_norm_eps=raw["rms_norm_eps"],
        max_positions=raw["max_position_embeddings"],
        rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0),
        rope_scaling=rope if rope_type == "llama3" else {},
        mrope_section=tuple(rope.get("mrope_section", ())),
        qkv_bias=bool(raw.get("attention_bias", model_type.startswith("qwen2"))),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", raw.get("tie_word_embeddings", False))),
    )


def _vision_config(raw: dict[str, Any]) -> VisionConfig:
    rope = raw.get("rope_parameters") or {}
    return VisionConfig(
        depth=raw["depth"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        num_heads=raw["num_heads"],
        in_channels=raw.get("in_channels", 3),
        patch_size=raw.get("patch_size", 14),
        temporal_patch_size=raw.get("temporal_patch_size", 2),
        merge_size=raw.get("spatial_merge_size", 2),
        window_size=raw["window_size"],
        full_attention_blocks=frozenset(raw["fullatt_block_indexes"]),
        out_hidden_size=raw["out_hidden_size"],
        rope_theta=float(rope.get("rope_theta", 10000.0)),
    )
