"""The official openai client against a real server with the demonstration model."""

from __future__ import annotations

import base64
import io
import json
import math
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
ADD = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "exact": {"type": "boolean"}},
    "required": ["a", "exact"],
    "additionalProperties": False,
}
TOOLS: Any = [{"type": "function", "function": {"name": name, "parameters": ADD}} for name in ("add", "subtract")]
HELLO: Any = [{"role": "user", "content": "Hello"}]


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


def test_logprobs_are_of_the_tokens_that_came(client: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": HELLO, "temperature": 0, "max_tokens": 8}
    chat = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
    content = chat.choices[0].logprobs and chat.choices[0].logprobs.content
    assert content
    assert "".join(one.token for one in content) == chat.choices[0].message.content
    for one in content:
        assert one.top_logprobs[0].token == one.token  # greedy
        assert one.logprob == one.top_logprobs[0].logprob <= 0
        assert sum(math.exp(top.logprob) for top in one.top_logprobs) <= 1 + 1e-4
    streamed = []
    for chunk in client.chat.completions.create(**asked, logprobs=True, top_logprobs=3, stream=True):
        streamed += (chunk.choices[0].logprobs and chunk.choices[0].logprobs.content) or []
    assert [one.token for one in streamed] == [one.token for one in content]
    text = client.completions.create(model=MODEL, prompt="Hello", temperature=0, max_tokens=4, logprobs=2, echo=True)
    told = text.choices[0].logprobs
    assert told is not None
    assert told.tokens is not None
    assert told.token_logprobs is not None
    assert told.top_logprobs is not None
    assert "".join(told.tokens) == text.choices[0].text
    assert told.token_logprobs[0] is None
    assert all(value <= 0 for value in told.token_logprobs[1:])
    assert all(2 <= len(top) <= 3 for top in told.top_logprobs[1:])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "subtract"}}])
def test_forced_calls_follow_their_schema(client: openai.OpenAI, seed: int, choice: Any, stream: bool) -> None:
    asked: Any = {"model": MODEL, "messages": HELLO, "tools": TOOLS, "tool_choice": choice, "max_tokens": 300,
                  "temperature": 0.7, "seed": seed, "parallel_tool_calls": False}  # fmt: skip
    name, arguments, reason = "", "", None
    if stream:
        for chunk in client.chat.completions.create(**asked, stream=True):
            for call in chunk.choices[0].delta.tool_calls or []:
                assert call.function is not None
                name += call.function.name or ""
                arguments += call.function.arguments or ""
            reason = chunk.choices[0].finish_reason or reason
    else:
        answer = client.chat.completions.create(**asked).choices[0]
        (only,) = answer.message.tool_calls or []
        assert only.type == "function"
        name, arguments, reason = only.function.name, only.function.arguments, answer.finish_reason
    assert name in (("add", "subtract") if choice == "required" else ("subtract",))
    if reason == "length":  # a number may be longer than the bound
        return
    assert reason == "tool_calls"
    values = json.loads(arguments)
    assert isinstance(values["a"], int)
    assert isinstance(values["exact"], bool)


def test_answers_follow_a_response_format(client: openai.OpenAI, seed: int) -> None:
    schema = {"type": "object", "properties": {"digit": {"enum": [1, 2, 3]}}, "required": ["digit"],
              "additionalProperties": False}  # fmt: skip
    asked: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 200, "temperature": 1.0, "seed": seed}
    answer = client.chat.completions.create(
        **asked, response_format={"type": "json_schema", "json_schema": {"name": "digit", "schema": schema}}
    )
    assert json.loads(answer.choices[0].message.content or "")["digit"] in (1, 2, 3)
    number = client.chat.completions.create(**asked, extra_body={"regex": "[0-9]{3}-[0-9]{2}"})
    first, _, second = (number.choices[0].message.content or "").partition("-")
    assert (first.isdigit(), second.isdigit(), len(first), len(second)) == (True, True, 3, 2)
    impossible: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**asked, response_format=impossible)
    assert "response_format" in caught.value.message
