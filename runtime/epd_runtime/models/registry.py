"""Vision towers by `model_type` of config.json, and how a model's two components are built and filled.

An encoder asks only for the vision tower, a decode worker only for the language model: what a process does not
ask for is never allocated. Language models are one class: what is particular to a family is data (text_config.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from epd_runtime.kernels.packed_linear import pack_linears
from epd_runtime.model_config import ModelConfig, VisionConfig
from epd_runtime.models import qwen2_5_vl, qwen2_vl, qwen3_vl
from epd_runtime.models.decoder import LanguageModel
from epd_runtime.models.loader import Place, fill_dummy, load_weights
from epd_runtime.models.names import LanguageNames, vision_names
from epd_runtime.models.ranks import Ranks
from epd_runtime.models.rope import RotaryTable
from epd_runtime.models.shard import WHOLE
from epd_runtime.models.vision import VisionTower

VISION_TOWERS: dict[str, tuple[Callable[[VisionConfig], VisionTower], Mapping[str, str]]] = {
    "qwen2_vl": (qwen2_vl.Qwen2VisionTower, qwen2_vl.NAMES),
    "qwen2_5_vl": (qwen2_5_vl.Qwen25VisionTower, qwen2_5_vl.NAMES),
    "qwen3_vl": (qwen3_vl.Qwen3VisionTower, qwen3_vl.NAMES),
    "qwen3_vl_moe": (qwen3_vl.Qwen3VisionTower, qwen3_vl.NAMES),
}


def load_language_model(
    config: ModelConfig,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    num_positions: int,
    dummy_seed: int | None,
    ranks: Ranks | None = None,
) -> LanguageModel:
    """The language model, or one rank's part of it, with its weights; dummy_seed draws them instead of reading."""
    shard = ranks.shard if ranks is not None else WHOLE
    model = _allocate(lambda: LanguageModel(shard.part_of(config.text), ranks), device, dtype)
    _fill(model, folder, LanguageNames(config.text, shard), dummy_seed)
    if shard.rank > 0:
        _leave_biases_to_rank_0(model)
    model.tie_head()
    pack_linears(model)
    model.rope = RotaryTable(config.text, num_positions, device)
    return model


def _leave_biases_to_rank_0(model: LanguageModel) -> None:
    """What is added behind a sum over ranks must be added once."""
    for name, parameter in model.named_parameters():
        if name.endswith((".o_proj.bias", ".down_proj.bias")):
            parameter.data.zero_()


def load_vision_tower(
    config: ModelConfig, folder: Path, device: torch.device, dtype: torch.dtype, dummy_seed: int | None
) -> VisionTower | None:
    """The vision tower with its weights; None for a text-only model."""
    if config.vision is None:
        return None
    vision = config.vision
    build, renamed = VISION_TOWERS[config.model_type]
    tower = _allocate(lambda: build(vision), device, dtype)
    _fill(tower, folder, vision_names(renamed, vision.intermediate_size), dummy_seed)
    pack_linears(tower)
    return tower


Module = TypeVar("Module", bound=nn.Module)


def _allocate(build: Callable[[], Module], device: torch.device, dtype: torch.dtype) -> Module:
    """A module with uninitialised parameters: nothing is drawn that the checkpoint will overwrite.

    Embeddings are made from empty tensors, and to_empty() is not used: for meta tensors both drawing normal numbers and
    empty_like() import parts of torch's compiler, which takes longer than all the rest of the start.
    """
    with torch.device("meta"):
        module = build()
    module.to(dtype)._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device))  # type: ignore[no-untyped-call]
    return module.requires_grad_(False).eval()


def _fill(module: nn.Module, folder: Path, place: Place, dummy_seed: int | None) -> None:
    if dummy_seed is None:
        load_weights(module, folder, place)
    else:
        fill_dummy(module, dummy_seed)
