"""Small models with random untied weights: their greedy tokens vary, so that equality proves something."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

HANDWRITING = Path(__file__).parents[2] / "models" / "handwriting"
KNOWN = json.loads((HANDWRITING / "config.json").read_text())
VOCABULARY = KNOWN["text_config"]["vocab_size"]
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "preprocessor_config.json",
    "generation_config.json",
)  # fmt: skip


def copy_tokenizer(folder: Path) -> None:
    for name in TOKENIZER_FILES:
        if (HANDWRITING / name).exists():
            shutil.copy(HANDWRITING / name, folder / name)


def make_llama(folder: Path, seed: int) -> Path:
    """A Llama with Llama 3's rotary scaling and grouped heads."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=False, initializer_range=0.2,
        bos_token_id=0, eos_token_id=1, pad_token_id=0,
        rope_parameters={"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    )  # fmt: skip
    LlamaForCausalLM(config).float().save_pretrained(folder)
    copy_tokenizer(folder)
    return folder


def make_qwen2_5_vl(folder: Path, seed: int) -> Path:
    """A Qwen2.5-VL with window and full attention in its tower."""
    torch.manual_seed(seed)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 4096, "initializer_range": 0.2, "bos_token_id": None, "eos_token_id": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64,
            "window_size": 56, "fullatt_block_indexes": [2], "patch_size": 14, "initializer_range": 0.2,
        },
        tie_word_embeddings=False,
        **_token_ids(),
    )  # fmt: skip
    Qwen2_5_VLForConditionalGeneration(config).float().save_pretrained(folder)
    copy_tokenizer(folder)
    return folder


def _token_ids() -> dict[str, int]:
    return {f"{name}_token_id": KNOWN[f"{name}_token_id"] for name in ("image", "video", "vision_start", "vision_end")}


# --- every family, every size drawn -----------------------------------------------------------------------------------


def make_random(family: str, folder: Path, draw: random.Random, ranks: int = 1) -> Path:
    """A model of this model_type whose sizes and weights are drawn; norms and biases are not left at one and zero.

    ranks: such that so many can share it.
    """
    model = FAMILIES[family](draw)
    while not _can_be_shared(model.config.get_text_config(), ranks):
        model = FAMILIES[family](draw)
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.3 * drawn if is_norm else 0.2 * drawn)
    model.float().save_pretrained(folder)
    copy_tokenizer(folder)
    if model.config.model_type.startswith("qwen3_vl"):
        settings = json.loads((folder / "preprocessor_config.json").read_text())
        settings |= {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def _can_be_shared(text: Any, ranks: int) -> bool:
    heads, kv_heads = text.num_attention_heads, text.num_key_value_heads
    return not (heads % ranks or text.intermediate_size % ranks or max(kv_heads, ranks) % min(kv_heads, ranks))


def make_telling(
    family: str, folder: Path, draw: random.Random, ask: Callable[[Path], list[list[int]]], ranks: int = 1
) -> tuple[Path, list[list[int]]]:
    """A model drawn until its answers vary, and the answers: one that repeats a token or two would prove nothing."""
    for attempt in range(10):
        model = make_random(family, folder / str(attempt), draw, ranks)
        answers = ask(model)
        if len({token for answer in answers for token in answer}) > 4:
            return model, answers
    raise AssertionError("ten models in a row repeat themselves: the drawing of weights is wrong")


def _text(draw: random.Random) -> dict[str, Any]:
    """Sizes that all families share; grouped heads, and heads that together are not as wide as the model."""
    kv_heads = draw.choice([1, 2, 3])
    return {
        "vocab_size": VOCABULARY, "hidden_size": 8 * draw.randrange(6, 11), "intermediate_size": draw.randrange(50, 90),
        "num_hidden_layers": draw.randrange(2, 5), "num_attention_heads": kv_heads * draw.choice([1, 2, 4]),
        "num_key_value_heads": kv_heads, "head_dim": 16, "max_position_embeddings": 4096, "bos_token_id": None,
        "eos_token_id": 1, "pad_token_id": None, "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": draw.choice([1e4, 1e6])},
    }  # fmt: skip


def _narrow(text: dict[str, Any]) -> dict[str, Any]:
    """Families whose heads always fill the width."""
    text["hidden_size"] = text["num_attention_heads"] * text.pop("head_dim")
    return text


def _sections(draw: random.Random) -> list[int]:
    """Three sections of 8 frequencies."""
    height, width = draw.randrange(1, 4), draw.randrange(1, 4)
    return [8 - height - width, height, width]


def _experts(draw: random.Random) -> dict[str, Any]:
    """The second layer always has experts."""
    experts = draw.randrange(4, 8)
    return {
        "num_experts": experts, "num_experts_per_tok": draw.randrange(2, experts),
        "norm_topk_prob": draw.random() < 0.5,
        "moe_intermediate_size": 4 * draw.randrange(4, 10), "decoder_sparse_step": draw.choice([1, 1, 2]),
        "mlp_only_layers": draw.choice([[], [0]]),
    }  # fmt: skip


def _vision(draw: random.Random, out: int) -> dict[str, Any]:
    heads = draw.choice([1, 2, 3])
    return {
        "depth": draw.randrange(2, 5), "hidden_size": 4 * heads * draw.randrange(2, 6), "num_heads": heads,
        "intermediate_size": draw.randrange(30, 60), "out_hidden_size": out, "spatial_merge_size": 2,
    }  # fmt: skip


def _joint(kind: str, text: dict[str, Any], vision: dict[str, Any]) -> transformers.PreTrainedModel:
    config = getattr(transformers, f"{kind}Config")(
        text_config=text, vision_config=vision, tie_word_embeddings=False, **_token_ids()
    )
    model: transformers.PreTrainedModel = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    return model


def _causal(kind: str, **values: Any) -> transformers.PreTrainedModel:
    model: transformers.PreTrainedModel = getattr(transformers, f"{kind}ForCausalLM")(
        getattr(transformers, f"{kind}Config")(**values)
    )
    return model


def _llama(draw: random.Random) -> transformers.PreTrainedModel:
    text = _text(draw)
    text["hidden_size"] = -(-text["hidden_size"] // text["num_attention_heads"]) * text["num_attention_heads"]
    if draw.random() < 0.5:
        text["rope_parameters"] |= {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                    "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
    biases = {"attention_bias": draw.random() < 0.5, "mlp_bias": draw.random() < 0.5}
    return _causal("Llama", **text, **biases)


def _qwen2(draw: random.Random) -> transformers.PreTrainedModel:
    return _causal("Qwen2", **_narrow(_text(draw)))


def _qwen3(draw: random.Random) -> transformers.PreTrainedModel:
    return _causal("Qwen3", **_text(draw), attention_bias=draw.random() < 0.5)


def _qwen3_moe(draw: random.Random) -> transformers.PreTrainedModel:
    text = _text(draw)
    return _causal("Qwen3Moe", **text, **_experts(draw))


def _qwen2_vl(draw: random.Random) -> transformers.PreTrainedModel:
    text = _narrow(_text(draw))
    text["rope_parameters"]["mrope_section"] = _sections(draw)
    vision = _vision(draw, text["hidden_size"])
    vision["embed_dim"], vision["hidden_size"] = vision["hidden_size"], vision.pop("out_hidden_size")
    del vision["intermediate_size"]
    return _joint("Qwen2VL", text, vision | {"mlp_ratio": draw.choice([2, 4])})


def _qwen2_5_vl(draw: random.Random) -> transformers.PreTrainedModel:
    text = _narrow(_text(draw))
    text["rope_parameters"]["mrope_section"] = _sections(draw)
    vision = _vision(draw, text["hidden_size"])
    windows = {
        "window_size": draw.choice([28, 56, 84, 112]),
        "fullatt_block_indexes": draw.sample(range(vision["depth"]), draw.randrange(vision["depth"] + 1)),
    }
    return _joint("Qwen2_5_VL", text, vision | windows)


def _qwen3_vl_parts(draw: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    text = _text(draw)
    text["rope_parameters"]["mrope_section"] = draw.choice([[4, 2, 2], [2, 3, 3], [3, 3, 2]])
    vision = _vision(draw, text["hidden_size"])
    deepstack = draw.randrange(1, min(vision["depth"], text["num_hidden_layers"]) + 1)
    return text, vision | {
        "num_position_embeddings": draw.randrange(3, 8) ** 2,
        "deepstack_visual_indexes": sorted(draw.sample(range(vision["depth"]), deepstack)),
    }


def _qwen3_vl(draw: random.Random) -> transformers.PreTrainedModel:
    text, vision = _qwen3_vl_parts(draw)
    return _joint("Qwen3VL", text | {"attention_bias": draw.random() < 0.5}, vision)


def _qwen3_vl_moe(draw: random.Random) -> transformers.PreTrainedModel:
    text, vision = _qwen3_vl_parts(draw)
    return _joint("Qwen3VLMoe", text | _experts(draw), vision)


FAMILIES: dict[str, Callable[[random.Random], transformers.PreTrainedModel]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_vl_moe": _qwen3_vl_moe,
}
WITH_IMAGES = tuple(family for family in FAMILIES if "_vl" in family)
