"""Families by `model_type` of config.json, and how their two components are built and filled.

An encoder asks only for the vision tower, a decode worker only for the language model: what a process does not
ask for is never allocated.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from epd_runtime.model_config import ModelConfig, ModelConfigError, TextConfig, VisionConfig
from epd_runtime.models.decoder import LanguageModel
from epd_runtime.models.loader import NameMap, Target, fill_dummy, load_weights
from epd_runtime.models.qwen2_5_vl import Qwen25VisionTower
from epd_runtime.models.rope import RotaryTable

TEXT_FAMILIES = ("llama", "qwen2", "qwen2_5_vl")
VISION_FAMILIES = {"qwen2_5_vl": Qwen25VisionTower}

_TEXT_PREFIX = re.compile(r"^(?:model\.language_model\.|language_model\.model\.|model\.)(?=layers|embed_tokens|norm)")
_VISION_PREFIX = re.compile(r"^(?:model\.)?visual\.")


def check_family(config: ModelConfig) -> None:
    """Raise ModelConfigError unless this engine runs the family."""
    if config.model_type not in TEXT_FAMILIES:
        raise ModelConfigError(
            f"model_type {config.model_type!r} is not supported; known are {', '.join(TEXT_FAMILIES)}"
        )
    if config.vision is not None and config.model_type not in VISION_FAMILIES:
        raise ModelConfigError(
            f"config.json has a vision_config, but no vision tower of model_type {config.model_type!r} is known; "
            f"known are {', '.join(VISION_FAMILIES)}"
        )


def load_language_model(
    config: ModelConfig,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    num_positions: int,
    dummy_seed: int | None,
) -> LanguageModel:
    """The language model with its weights; dummy_seed draws them instead of reading."""
    model = _allocate(lambda: LanguageModel(config.text), device, dtype)
    _fill(model, folder, language_names(config.text), dummy_seed)
    model.rope = RotaryTable(config.text, num_positions, device)
    return model


def load_vision_tower(
    config: ModelConfig, folder: Path, device: torch.device, dtype: torch.dtype, dummy_seed: int | None
) -> Qwen25VisionTower | None:
    """The vision tower with its weights; None for a text-only model."""
    if config.vision is None:
        return None
    vision = config.vision
    tower = _allocate(lambda: VISION_FAMILIES[config.model_type](vision), device, dtype)
    _fill(tower, folder, vision_names(vision), dummy_seed)
    return tower


Module = TypeVar("Module", bound=nn.Module)


def _allocate(build: Callable[[], Module], device: torch.device, dtype: torch.dtype) -> Module:
    """A module with uninitialised parameters: nothing is drawn that the checkpoint will overwrite."""
    with torch.device("meta"):
        module = build()
    return module.to(dtype).to_empty(device=device).requires_grad_(False).eval()


def _fill(module: nn.Module, folder: Path, place: NameMap, dummy_seed: int | None) -> None:
    if dummy_seed is None:
        load_weights(module, folder, place)
    else:
        fill_dummy(module, dummy_seed)


def language_names(config: TextConfig) -> NameMap:
    """Where the tensors of a Llama- or Qwen2-shaped checkpoint go."""
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    parts = {
        "q_proj": ("qkv_proj", 0, query),
        "k_proj": ("qkv_proj", query, key),
        "v_proj": ("qkv_proj", query + key, key),
        "gate_proj": ("gate_up_proj", 0, config.intermediate_size),
        "up_proj": ("gate_up_proj", config.intermediate_size, config.intermediate_size),
    }

    def place(name: str) -> Target | None:
        if name.endswith("lm_head.weight"):
            return None if config.tie_word_embeddings else ("lm_head.weight", 0, 0)
        if _VISION_PREFIX.match(name) or not _TEXT_PREFIX.match(name) or name.endswith("rotary_emb.inv_freq"):
            return None
        return _fused(_TEXT_PREFIX.sub("", name), parts)

    return place


def vision_names(config: VisionConfig) -> NameMap:
    """Where the tensors of a Qwen2.5-VL vision tower go."""
    parts = {
        "gate_proj": ("gate_up_proj", 0, config.intermediate_size),
        "up_proj": ("gate_up_proj", config.intermediate_size, config.intermediate_size),
    }

    def place(name: str) -> Target | None:
        if not _VISION_PREFIX.match(name):
            return None
        bare = _VISION_PREFIX.sub("", name).replace(".attn.", ".")
        return ("patch_embed", 0, 0) if bare == "patch_embed.proj.weight" else _fused(bare, parts)

    return place


def _fused(name: str, parts: dict[str, Target]) -> Target:
    """The target of a tensor whose projection may be one slice of a fused matrix."""
    *path, projection, kind = name.split(".")
    fused, first, count = parts.get(projection, (projection, 0, 0))
    return ".".join((*path, fused, kind)), first, count
