"""What the engine needs to know of a model, read from its config.json.

Text fields stand at the top or inside `text_config`. Features that change the arithmetic and that this engine does
not have (sliding windows, quantised weights, other activations) are refused: a model that runs and answers nonsense is
worse than one that does not start.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from epd_runtime.json_fields import Fields, ModelConfigError
from epd_runtime.text_config import ExpertsConfig, RopeScaling, TextConfig, read_text_config
from epd_runtime.vision_config import VisionConfig, read_vision_config

__all__ = [
    "ExpertsConfig",
    "ModelConfig",
    "ModelConfigError",
    "RopeScaling",
    "TextConfig",
    "VisionConfig",
    "load_model_config",
]

DTYPES = ("float32", "bfloat16", "float16")


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

    @property
    def embedding_width(self) -> int:
        """Values in one row of an image's embedding; 0 for a text-only model."""
        return 0 if self.vision is None else self.vision.embedding_width


def load_model_config(folder: Path) -> ModelConfig:
    """Read config.json and generation_config.json of a model folder; raises ModelConfigError."""
    config = Fields.read(folder / "config.json")
    generation = Fields.read(folder / "generation_config.json", optional=True)
    model_type = config.text("model_type", "")
    raw_text = Fields({**config.values, **config.object("text_config").values}, config.where)
    if "quantization_config" in config:
        raise ModelConfigError(f"{config.where}: quantised checkpoints are not supported; use the unquantised model")
    text = read_text_config(model_type, config, raw_text)
    vision = read_vision_config(model_type, config.object("vision_config")) if "vision_config" in config else None
    if vision is not None:
        _check_joint(config, text, vision)
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


def _check_joint(config: Fields, text: TextConfig, vision: VisionConfig) -> None:
    """Whether the tower's output fits into the language model."""
    if vision.out_hidden_size != text.hidden_size:
        raise ModelConfigError(
            f"{config.where}: the vision tower's out_hidden_size is {vision.out_hidden_size}, but the language model's "
            f"hidden_size is {text.hidden_size}; they must be equal"
        )
    if len(vision.deepstack_blocks) > text.num_layers:
        raise ModelConfigError(
            f"{config.where}: deepstack_visual_indexes names {len(vision.deepstack_blocks)} blocks, but the language "
            f"model has {text.num_layers} layers"
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
