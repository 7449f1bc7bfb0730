"""Videos of every family: prompts, positions, patches and greedy tokens equal transformers'.

Sizes and weights are drawn anew at each run. The yardstick is transformers' own processor and model.
"""

from __future__ import annotations

import fractions
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conversations import picture
from epd_runtime.encoder.video import VideoNormalisation, read_video_patches
from epd_runtime.frontend.prompt import Prompt
from epd_runtime.model_config import load_model_config
from in_process import InProcessEngine
from random_models import WITH_IMAGES, make_random, make_telling
from videos import Question, VideoReference, movie, movie_url, random_clip, takes_videos

NEW_TOKENS = 10


@pytest.fixture
def draw() -> random.Random:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    return random.Random(seed)


def check_prompt(prompt: Prompt, inputs: dict[str, Any], reference: VideoReference) -> None:
    """Ids and positions."""
    assert prompt.input_ids == inputs["input_ids"][0].tolist()
    given = {name: inputs[name] for name in inputs if name.endswith("_thw") or name.startswith("second")}
    positions, _ = reference.model.model.get_rope_index(inputs["input_ids"], inputs["mm_token_type_ids"], **given)
    assert np.array_equal(np.frombuffer(prompt.positions, np.int32).reshape(3, -1), positions[:, 0].numpy())
    assert prompt.position_delta == int(positions[0, 0, -1]) + 1 - len(prompt.input_ids)


@pytest.mark.parametrize("family", WITH_IMAGES)
def test_frames_equal_transformers(family: str, draw: random.Random, tmp_path: Path) -> None:
    """Lists of frames between texts and images; chunks of a few tokens begin and end inside of videos."""

    def clip(count: int) -> tuple[Any, float]:
        return random_clip(draw, count), draw.choice([0.4, 1.0, 2.0, 24.0, 29.97])

    words = "What happens here? " * draw.randrange(1, 5)
    fewest = 2 if family.startswith("qwen3") else 1  # transformers refuses a single frame there
    questions = [
        Question([words, clip(draw.randrange(5, 9)), "Tell me."]),
        Question([clip(draw.choice([fewest, 3])), "Then:", picture(draw), clip(4), words]),
        Question([words]),
    ]
    made: dict[Path, list[dict[str, Any]]] = {}

    def ask(model: Path) -> list[list[int]]:
        reference = VideoReference(takes_videos(model, draw))
        made[model] = [question.inputs(reference) for question in questions]
        return [reference.generate(inputs, NEW_TOKENS) for inputs in made[model]]

    folder, expected = make_telling(family, tmp_path, draw, ask)
    engine = InProcessEngine(folder)
    prompts = [engine.chat(question.ours()) for question in questions]
    for prompt, inputs in zip(prompts[:2], made[folder], strict=False):
        check_prompt(prompt, inputs, VideoReference(folder))
    for chunk in (4096, draw.randrange(1, 12), draw.randrange(12, 60)):
        assert engine.generate(prompts, [NEW_TOKENS] * len(prompts), chunk) == expected, f"chunk {chunk}"


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_files_are_sampled_as_transformers_does(family: str, draw: random.Random, tmp_path: Path) -> None:
    """Files of drawn lengths and rates, with and without options: the same ids, positions, and patches to the bit."""
    folder = takes_videos(make_random(family, tmp_path / "model", draw), draw)
    reference, engine = VideoReference(folder), InProcessEngine(folder)
    vision = load_model_config(folder).vision
    assert vision is not None
    for options in ({}, {"fps": draw.choice([0.7, 1.0, 5.0])}, {"nframes": 6}):
        (frame,) = random_clip(draw, 1)
        frame = frame[: len(frame) // 2 * 2, : frame.shape[1] // 2 * 2]
        clip = frame + np.arange(draw.randrange(8, 90), dtype=np.uint8)[:, None, None, None]  # every frame is another
        rate = draw.choice([5, 12, 25, fractions.Fraction(30000, 1001)])
        data = movie(clip, rate, *draw.choice([("mp4", "libx264"), ("mov", "mpeg4")]))
        part = {"type": "video_url", "video_url": {"url": movie_url(data)}, **options}
        prompt = engine.chat([{"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}])
        asked = {"num_frames" if name == "nframes" else name: value for name, value in options.items()}
        if "num_frames" in asked:
            asked["fps"] = None
        sampled = reference.sampled(data, tmp_path, **asked)
        messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What is it?"}]}]
        inputs = reference.inputs(messages, [], [sampled])
        check_prompt(prompt, inputs, reference)
        normalisation = VideoNormalisation.load(folder, vision)
        patches = read_video_patches(prompt.images[0], vision, normalisation.resample, 1 << 24)
        assert torch.equal(normalisation.apply(patches, 3), inputs["pixel_values_videos"])
