"""Every way of serving gives transformers' tokens: real processes, real HTTP, fp32, greedy.

Modes: colocated, E+PD (encoders and one language server), P+D, E+P+D. Models: a random Qwen2.5-VL and a random
Qwen3-VL, untied, drawn anew at each run (the seed is printed). Text alone is in test_text_modes.py.
"""

from __future__ import annotations

import asyncio
import io
import json
import random
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from transformers import AutoTokenizer

from deployments import MODES, Deployment, deploy, gauges_at_rest, post
from random_models import make_qwen2_5_vl, make_telling
from servers import Server
from videos import Question, VideoReference, random_clip, takes_videos

NEW_TOKENS = 24


def picture(draw: random.Random) -> bytes:
    """A random picture of a random size."""
    width, height = draw.randrange(20, 260), draw.randrange(20, 260)
    pixels = np.random.default_rng(draw.randrange(2**31)).integers(
        0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8
    )
    file = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(file, draw.choice(["PNG", "JPEG"]))
    return file.getvalue()


@pytest.fixture(scope="module")
def draw() -> random.Random:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture(scope="module")
def vision_model(tmp_path_factory: pytest.TempPathFactory, draw: random.Random) -> Path:
    return takes_videos(make_qwen2_5_vl(tmp_path_factory.mktemp("qwen2_5_vl"), draw.randrange(2**31)), draw)


@pytest.fixture(scope="module")
def questions(draw: random.Random) -> list[Question]:
    """Texts without an image, with one, with eight, with videos, of mixed lengths."""
    counts = [0, 1, 8, 1, 2, 0, 3]
    asked = [Question([*(picture(draw) for _ in range(count)), words(draw)]) for count in counts]
    videos = [(random_clip(draw, count), draw.choice([0.5, 2.0])) for count in (8, 5, 4)]
    return [*asked, Question([videos[0], words(draw)]), Question([picture(draw), *videos[1:], words(draw)])]


def words(draw: random.Random) -> str:
    return "What do you see? " * draw.randrange(1, 12)


def answers(folder: Path, questions: list[Question]) -> list[list[int]]:
    """What transformers says."""
    reference = VideoReference(folder)
    return [reference.generate(question.inputs(reference), NEW_TOKENS) for question in questions]


def texts(folder: Path, answers: list[list[int]]) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]


@pytest.fixture(scope="module")
def expected(vision_model: Path, questions: list[Question]) -> list[str]:
    told = answers(vision_model, questions)
    assert len({token for answer in told for token in answer}) > 20, "the model repeats itself: nothing is proven"
    return texts(vision_model, told)


@pytest.mark.parametrize("mode", MODES)
def test_chats_equal_transformers(
    mode: str, vision_model: Path, questions: list[Question], expected: list[str]
) -> None:
    with deploy(mode, vision_model) as deployment:
        check_weights(deployment, vision_model)
        check_chats(deployment, questions, expected)


def test_deepstack_travels_with_the_embeddings(draw: random.Random, questions: list[Question], tmp_path: Path) -> None:
    """A Qwen3-VL, whose embeddings are wider than its language model; and KV through shared memory."""
    folder, told = make_telling("qwen3_vl", tmp_path, draw, lambda model: answers(takes_videos(model, draw), questions))
    with deploy("E+P+D", folder, "shm") as deployment:
        check_chats(deployment, questions, texts(folder, told))


def check_weights(deployment: Deployment, folder: Path) -> None:
    """Each process holds its part of the checkpoint: encoders no language model, servers behind them no tower."""
    bytes_of = {"vision": 0, "language": 0}
    with safe_open(folder / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dictionary
            bytes_of["vision" if "visual." in name else "language"] += file.get_tensor(name).nbytes
    has_encoders = "encoder-0" in deployment.servers
    for name, server in deployment.servers.items():
        if name == "router":
            continue
        parts = {"vision"} if name.startswith("encoder") else {"language"}
        if name in ("server", "prefill") and not has_encoders:
            parts.add("vision")
        with urllib.request.urlopen(f"{server.url}/server_info", timeout=60) as response:
            held = json.load(response)["engine"]["weight_bytes"]
        assert held == {part: bytes_of[part] * (part in parts) for part in bytes_of}, name


def check_chats(deployment: Deployment, questions: list[Question], expected: list[str]) -> None:
    """One question alone, then all at once."""
    bodies = [
        {
            "model": "", "messages": question.ours(), "max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True,
        }
        for question in questions
    ]  # fmt: skip
    alone = asyncio.run(post(deployment.url, "/v1/chat/completions", bodies[1:2]))
    together = asyncio.run(post(deployment.url, "/v1/chat/completions", bodies))
    assert [answer["choices"][0]["message"]["content"] for answer in together] == expected
    assert alone[0]["choices"][0]["message"]["content"] == expected[1]
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in (alone[0], together[1])]
    assert cached[0] == 0
    assert cached[1] > 0, "the second time its prefix, images included, is in the cache"
    assert all(answer["usage"]["completion_tokens"] == NEW_TOKENS for answer in together)
    gauges_at_rest(deployment)
    encoders = [server for name, server in deployment.servers.items() if name.startswith("encoder")]
    if encoders:
        num_images = sum(not isinstance(part, str) for question in questions for part in question.parts)
        assert sum(map(num_encoded, encoders)) == num_images, "the image that prefill had was not asked for again"


def num_encoded(encoder: Server) -> int:
    """Images that an encoder was asked for."""
    with urllib.request.urlopen(f"{encoder.url}/metrics", timeout=60) as response:
        lines = response.read().decode().splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith("sglang:encoder_requests_total{"))
