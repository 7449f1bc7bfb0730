"""Sampling is the same in one engine and in two: penalties, seeds, logprobs and grammars cross the handoff."""

from __future__ import annotations

import json
import random
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from random_models import make_llama
from servers import Server, start_model, start_prefill, start_router

SCHEMA = json.dumps({
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 99}, "ok": {"type": "boolean"}},
    "required": ["n", "ok"],
})  # fmt: skip
ASKED: dict[str, dict[str, Any]] = {
    "penalties": {"temperature": 0.0, "repetition_penalty": 1.6, "frequency_penalty": 0.4, "presence_penalty": 0.9},
    "seed": {"temperature": 1.3, "top_p": 0.9, "top_k": 40, "min_p": 0.02, "sampling_seed": 11},
    "schema": {"temperature": 2.0, "sampling_seed": 5, "json_schema": SCHEMA, "max_new_tokens": 200},
    "regex": {"temperature": 2.0, "sampling_seed": 6, "regex": "[0-9]{3}-[a-z]{2,4}"},
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    folder = make_llama(tmp_path_factory.mktemp("llama"), seed)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 376}))
    return folder


@pytest.fixture(scope="module")
def servers(llama: Path) -> Iterator[tuple[Server, Server]]:
    """A colocated server, and a router before prefill and decode."""
    started: list[Server] = []
    try:
        one, prefill = start_model(llama), start_prefill(llama)
        started += [one, prefill]
        decode = start_model(llama, "--disaggregation-mode", "decode")
        started.append(decode)
        for server in started:
            server.wait_healthy(250)
        router = start_router(prefill, decode)
        started.append(router)
        yield one, router.wait_healthy(120)
    finally:
        for server in reversed(started):
            server.stop()


def generate(server: Server, asked: dict[str, Any], prompt: list[int]) -> Any:
    body = {
        "input_ids": prompt,
        "sampling_params": {"max_new_tokens": 24, **asked},
        "return_logprob": True,
        "top_logprobs_num": 2,
    }
    request = urllib.request.Request(server.url + "/generate", json.dumps(body).encode(), {"Content-Type": "json"})
    with urllib.request.urlopen(request, timeout=200) as response:
        return json.load(response)


def logprobs(answer: Any) -> list[float]:
    return [entry[0] for entry in answer["meta_info"]["output_token_logprobs"]]


@pytest.mark.parametrize("name", ASKED)
def test_two_engines_answer_as_one(servers: tuple[Server, Server], name: str) -> None:
    prompt = [random.randrange(2, 300) for _ in range(40)]
    print(prompt)
    one, two = (generate(server, ASKED[name], prompt) for server in servers)
    assert one["output_ids"] == two["output_ids"]
    assert one["meta_info"]["finish_reason"] == two["meta_info"]["finish_reason"]
    assert len(logprobs(one)) == len(one["output_ids"])
    assert logprobs(one) == pytest.approx(logprobs(two), abs=1e-4)
    if name == "schema":
        assert set(json.loads(one["text"])) == {"n", "ok"}


@pytest.mark.parametrize("place", [0, 1])
def test_a_bad_schema_is_refused_in_every_mode(servers: tuple[Server, Server], place: int) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        generate(servers[place], {"json_schema": '{"type": "nonsense"}'}, [5, 6, 7])
    assert caught.value.code == 400
    assert "response_format cannot be compiled" in caught.value.read().decode()
