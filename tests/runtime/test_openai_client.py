"""The official openai client against a real server with the demonstration model."""

from __future__ import annotations

import base64
import io
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from demo.digits import NumberImage, heldout

sys.path.insert(0, str(Path(__file__).parent))
from server_harness import HANDWRITING

from servers import Server, start_model

MODEL = "handwriting"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = start_model(HANDWRITING, "--served-model-name", MODEL, "--context-length", "1024")
    try:
        yield running.wait_healthy(180)
    finally:
        running.stop()


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=120) as opened:
        yield opened


@pytest.fixture(scope="module")
def seed() -> int:
    drawn = random.SystemRandom().randrange(2**31)
    print(f"seed {drawn}")
    return drawn


def question(shown: NumberImage) -> Any:
    file = io.BytesIO()
    shown.image.save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What number is in the image?"}
    ]}]  # fmt: skip


def test_an_image_is_read_whole_and_streamed(client: openai.OpenAI, seed: int) -> None:
    shown = next(heldout(seed, digits=3))
    whole = client.chat.completions.create(model=MODEL, messages=question(shown), temperature=0)
    text = whole.choices[0].message.content
    assert text
    assert any(letter.isdigit() for letter in text)
    assert whole.choices[0].finish_reason == "stop"
    stream = client.chat.completions.create(
        model=MODEL, messages=question(shown), temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_completions_are_reproducible_and_add_up(client: openai.OpenAI, seed: int) -> None:
    asked: Any = {"model": MODEL, "prompt": [[64, 65, 66], [70, 71, 72]], "n": 2, "max_tokens": 12, "seed": seed,
                  "temperature": 4.0, "extra_body": {"ignore_eos": True}}  # fmt: skip
    first, again = client.completions.create(**asked), client.completions.create(**asked)
    assert [choice.text for choice in first.choices] == [choice.text for choice in again.choices]
    assert first.choices[0].text != first.choices[1].text
    assert first.usage is not None
    assert (first.usage.prompt_tokens, first.usage.completion_tokens) == (6, 48)
    streamed = [""] * 4
    for chunk in client.completions.create(**asked, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == [choice.text for choice in first.choices]
