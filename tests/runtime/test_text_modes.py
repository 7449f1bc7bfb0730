"""A Llama in one engine and in two, real processes and HTTP: transformers' greedy tokens, and the same answers in both
modes however they are sampled, as penalties, seeds, logprobs and grammars cross the handoff.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments import Deployment, deploy, engine_stats, flush_cache, gauges_at_rest, post
from random_models import make_llama
from reference import TextReference

MODES = ("colocated", "P+D")
NEW_TOKENS = 24
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
def llama(tmp_path_factory: pytest.TempPathFactory, seed: int) -> Path:
    folder = make_llama(tmp_path_factory.mktemp("llama"), seed)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 376}))
    return folder


@pytest.fixture(scope="module")
def deployments(llama: Path) -> Iterator[dict[str, Deployment]]:
    """A colocated server, and a router before prefill and decode."""
    with contextlib.ExitStack() as started:
        yield {mode: started.enter_context(deploy(mode, llama)) for mode in MODES}


@pytest.mark.parametrize("mode", MODES)
def test_tokens_equal_transformers(deployments: dict[str, Deployment], llama: Path, mode: str, seed: int) -> None:
    """Before any other test here: prompts leave pages in an empty cache."""
    draw = random.Random(seed)
    prompts = [[draw.randrange(2, 300) for _ in range(length)] for length in (1, 7, 16, 31, 64, 200)]
    reference, deployment = TextReference(llama), deployments[mode]
    expected = [reference.generate(prompt, NEW_TOKENS) for prompt in prompts]
    sampling = {"max_new_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True}
    bodies = [{"input_ids": prompt, "sampling_params": sampling} for prompt in prompts]
    answers = asyncio.run(post(deployment.url, "/generate", bodies))
    batch = {"prompt": prompts, "max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True}
    completions = asyncio.run(post(deployment.url, "/v1/completions", [batch]))[0]
    gauges_at_rest(deployment)
    if mode == "P+D":
        both = [engine_stats(deployment.servers[name]) for name in ("prefill", "decode")]
        assert [(one["rooms_done"], one["rooms_failed"]) for one in both] == [(2 * len(prompts), 0)] * 2
        assert both[0]["handoff_bytes"] == both[1]["handoff_bytes"] > 0
    flush_cache(deployment.servers["prefill" if "prefill" in deployment.servers else "server"])
    assert [answer["output_ids"] for answer in answers] == expected
    assert [choice["text"] for choice in completions["choices"]] == [reference.text(answer) for answer in expected]
    assert completions["usage"]["prompt_tokens"] == sum(map(len, prompts))


def generate(deployment: Deployment, asked: dict[str, Any], prompt: list[int]) -> Any:
    body = {
        "input_ids": prompt,
        "sampling_params": {"max_new_tokens": 24, **asked},
        "return_logprob": True,
        "top_logprobs_num": 2,
    }
    request = urllib.request.Request(deployment.url + "/generate", json.dumps(body).encode(), {"Content-Type": "json"})
    with urllib.request.urlopen(request, timeout=200) as response:
        return json.load(response)


def logprobs(answer: Any) -> list[float]:
    return [entry[0] for entry in answer["meta_info"]["output_token_logprobs"]]


@pytest.mark.parametrize("name", ASKED)
def test_two_engines_answer_as_one(deployments: dict[str, Deployment], name: str) -> None:
    prompt = [random.randrange(2, 300) for _ in range(40)]
    print(prompt)
    one, two = (generate(deployments[mode], ASKED[name], prompt) for mode in MODES)
    assert one["output_ids"] == two["output_ids"]
    assert one["meta_info"]["finish_reason"] == two["meta_info"]["finish_reason"]
    assert len(logprobs(one)) == len(one["output_ids"])
    assert logprobs(one) == pytest.approx(logprobs(two), abs=1e-4)
    if name == "schema":
        assert set(json.loads(one["text"])) == {"n", "ok"}


@pytest.mark.parametrize("mode", MODES)
def test_a_bad_schema_is_refused_in_every_mode(deployments: dict[str, Deployment], mode: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        generate(deployments[mode], {"json_schema": '{"type": "nonsense"}'}, [5, 6, 7])
    assert caught.value.code == 400
    assert "response_format cannot be compiled" in caught.value.read().decode()
