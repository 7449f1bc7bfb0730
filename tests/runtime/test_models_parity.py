"""Every family, sizes and weights drawn anew: greedy tokens equal transformers' under batching and chunking.

The real scheduler, batches, model runner and vision runner, in this process; real processes are in test_parity.py.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from conversations import conversation, picture
from epd_runtime.frontend.prompt import Prompt
from in_process import InProcessEngine
from random_models import FAMILIES, WITH_IMAGES, make_random, make_telling
from reference import TextReference, VisionReference

NEW_TOKENS = 12


@pytest.fixture
def draw() -> random.Random:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(WITH_IMAGES)))
def test_text_equals_transformers(family: str, draw: random.Random, tmp_path: Path) -> None:
    prompts = [[draw.randrange(2, 300) for _ in range(length)] for length in (1, 15, 16, 40, draw.randrange(50, 150))]

    def ask(model: Path) -> list[list[int]]:
        reference = TextReference(model)
        return [reference.generate(prompt, NEW_TOKENS) for prompt in prompts]

    folder, expected = make_telling(family, tmp_path, draw, ask)
    engine = InProcessEngine(folder)
    for chunk in (4096, draw.randrange(3, 40)):
        built = [Prompt(prompt, []) for prompt in prompts]
        assert engine.generate(built, [NEW_TOKENS] * len(prompts), chunk) == expected, f"chunk {chunk}"


@pytest.mark.parametrize("family", WITH_IMAGES)
def test_images_equal_transformers(family: str, draw: random.Random, tmp_path: Path) -> None:
    """Chunks of a few tokens begin and end inside of images."""
    questions = [
        ("What do you see? " * draw.randrange(1, 6), [picture(draw) for _ in range(count)]) for count in (1, 0, 3, 2)
    ]

    def ask(model: Path) -> list[list[int]]:
        reference = VisionReference(model)
        return [reference.chat(conversation(text, images, False), images, NEW_TOKENS) for text, images in questions]

    folder, expected = make_telling(family, tmp_path, draw, ask)
    engine = InProcessEngine(folder)
    prompts = [engine.chat(conversation(text, images, True)) for text, images in questions]
    for chunk in (4096, draw.randrange(1, 12), draw.randrange(12, 60)):
        assert engine.generate(prompts, [NEW_TOKENS] * len(prompts), chunk) == expected, f"chunk {chunk}"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["llama", "qwen2_vl", "qwen2_5_vl", "qwen3_vl_moe"])
def test_half_types_compute_finite_tokens(family: str, dtype: str, draw: random.Random, tmp_path: Path) -> None:
    engine = InProcessEngine(make_random(family, tmp_path, draw), dtype=dtype)
    images = [picture(draw)] if family in WITH_IMAGES else []
    prompt = engine.chat(conversation("What is this?", images, True))
    (tokens,) = engine.generate([prompt], [NEW_TOKENS], 16)
    assert len(tokens) == NEW_TOKENS
    assert all(token >= 0 for token in tokens)
    assert engine.generate([prompt], [NEW_TOKENS], 16) == [tokens]
    assert torch.get_default_dtype() == torch.float32
