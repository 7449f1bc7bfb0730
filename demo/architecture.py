"""Sizes of the demonstration model: a Qwen2.5-VL small enough to train on two cores, with every part the family has.

Window attention and full attention both occur in the vision tower, keys and values are shared by pairs of heads, and
the output projection is its own matrix, so an engine that serves this model exercises the code that serves large ones.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer
from transformers import GenerationConfig, Qwen2_5_VLConfig

from demo import tokenizer as text

PATCH, MERGE = 14, 2
MIN_PIXELS, MAX_PIXELS = 28 * 28, 28 * 28 * 256


def model_config(tokenizer: Tokenizer) -> Qwen2_5_VLConfig:
    """The configuration, with token ids taken from the tokenizer."""
    ids = {token: tokenizer.token_to_id(token) for token in text.SPECIAL_TOKENS}
    return Qwen2_5_VLConfig(
        architectures=["Qwen2_5_VLForConditionalGeneration"],
        image_token_id=ids[text.IMAGE_PAD],
        video_token_id=ids[text.VIDEO_PAD],
        vision_start_token_id=ids[text.VISION_START],
        vision_end_token_id=ids[text.VISION_END],
        tie_word_embeddings=False,
        dtype="float32",
        text_config={
            "vocab_size": tokenizer.get_vocab_size(),
            "initializer_range": 0.05,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": text.MAX_TOKENS,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": None,
            "eos_token_id": ids[text.TURN_END],
            "pad_token_id": ids[text.END_OF_TEXT],
            "dtype": "float32",
        },
        vision_config={
            "depth": 3,
            "initializer_range": 0.05,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_heads": 3,
            "out_hidden_size": 128,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "window_size": 56,
            "fullatt_block_indexes": [1, 2],
            "dtype": "float32",
        },
    )


def save_generation_config(folder: Path, tokenizer: Tokenizer) -> None:
    """Greedy by default; generation ends with the assistant's turn."""
    GenerationConfig(
        do_sample=False,
        eos_token_id=[tokenizer.token_to_id(text.TURN_END), tokenizer.token_to_id(text.END_OF_TEXT)],
        pad_token_id=tokenizer.token_to_id(text.END_OF_TEXT),
    ).save_pretrained(folder)


def save_preprocessor_config(folder: Path) -> None:
    """The family's preprocessing, with limits that suit small images."""
    config = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "max_pixels": MAX_PIXELS,
        "merge_size": MERGE,
        "min_pixels": MIN_PIXELS,
        "patch_size": PATCH,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"longest_edge": MAX_PIXELS, "shortest_edge": MIN_PIXELS},
        "temporal_patch_size": 2,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
