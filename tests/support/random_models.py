"""Small models with random untied weights: their greedy tokens vary, so that equality proves something."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

HANDWRITING = Path(__file__).parents[2] / "models" / "handwriting"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "preprocessor_config.json",
    "generation_config.json",
)  # fmt: skip


def _copy_tokenizer(folder: Path) -> None:
    for name in TOKENIZER_FILES:
        if (HANDWRITING / name).exists():
            shutil.copy(HANDWRITING / name, folder / name)


def make_llama(folder: Path, seed: int) -> Path:
    """A Llama with Llama 3's rotary scaling and grouped heads."""
    torch.manual_seed(seed)
    vocab = json.loads((HANDWRITING / "config.json").read_text())["text_config"]["vocab_size"]
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=False, initializer_range=0.2,
        bos_token_id=0, eos_token_id=1, pad_token_id=0,
        rope_parameters={"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    )  # fmt: skip
    LlamaForCausalLM(config).float().save_pretrained(folder)
    _copy_tokenizer(folder)
    return folder


def make_qwen2_5_vl(folder: Path, seed: int) -> Path:
    """A Qwen2.5-VL with window and full attention in its tower."""
    torch.manual_seed(seed)
    known = json.loads((HANDWRITING / "config.json").read_text())
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": known["text_config"]["vocab_size"], "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 4096, "initializer_range": 0.2, "bos_token_id": None, "eos_token_id": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64,
            "window_size": 56, "fullatt_block_indexes": [2], "patch_size": 14, "initializer_range": 0.2,
        },
        tie_word_embeddings=False,
        **{f"{name}_token_id": known[f"{name}_token_id"] for name in ("image", "video", "vision_start", "vision_end")},
    )  # fmt: skip
    Qwen2_5_VLForConditionalGeneration(config).float().save_pretrained(folder)
    _copy_tokenizer(folder)
    return folder
