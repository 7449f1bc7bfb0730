"""Logprobs of answers and prompts against transformers, under chunking and batching."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from epd_runtime.engine.limits import MAX_PROMPT_LOGPROBS
from epd_runtime.engine.request import Request
from epd_runtime.engine.sampling.sampler import Sampler
from epd_runtime.messages import GenerateRequest, RequestFailed, SamplingParams, TokenLogprobs
from text_engine import TextEngine


@torch.inference_mode()
def reference(folder: Path, tokens: list[int]) -> torch.Tensor:
    """Logprobs [tokens, vocab] of what follows every token."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    logits: torch.Tensor = model(torch.tensor([tokens])).logits[0]
    return logits.log_softmax(-1)


def check(one: TokenLogprobs, row: torch.Tensor, token: int, count: int) -> None:
    assert one.logprob == pytest.approx(float(row[token]), abs=1e-4)
    assert [logprob for _, logprob in one.top] == pytest.approx(row.topk(count).values.tolist(), abs=1e-4)
    assert [float(row[token]) for token, _ in one.top] == pytest.approx([lp for _, lp in one.top], abs=1e-4)


@pytest.mark.parametrize("chunk", [4096, 7])
def test_logprobs_equal_transformers(llama: Path, seed: int, chunk: int) -> None:
    draw = random.Random(seed)
    prompts = [[draw.randrange(2, 300) for _ in range(n)] for n in (1, 20, 75)]
    asked = [
        SamplingParams(6, logprobs=3, prompt_logprobs_from=0, seed=1),
        SamplingParams(6, logprobs=0, prompt_logprobs_from=5, temperature=0.0, repetition_penalty=1.5),
        SamplingParams(6, logprobs=5, prompt_logprobs_from=9, temperature=2.0, logit_bias=((7, 50.0),), top_k=3),
    ]
    requests = [
        Request(GenerateRequest(str(i), list(p), s)) for i, (p, s) in enumerate(zip(prompts, asked, strict=True))
    ]
    plain = Request(GenerateRequest("plain", prompts[1], SamplingParams(6)))
    outputs = TextEngine(llama, chunk).run([*requests, plain])
    assert not any(output.logprobs or output.prompt_logprobs for output in outputs["plain"])
    for prompt, params, request in zip(prompts, asked, requests, strict=True):
        tokens = [token for output in outputs[request.rid] for token in output.token_ids]
        table = reference(llama, prompt + tokens)
        found = [one for output in outputs[request.rid] for one in output.logprobs]
        assert len(found) == len(tokens) == 6
        for index, (one, token) in enumerate(zip(found, tokens, strict=True)):
            check(one, table[len(prompt) - 1 + index], token, params.logprobs)
        start, of_prompt = params.prompt_logprobs_from, outputs[request.rid][0].prompt_logprobs
        assert len(of_prompt) == len(prompt) - start
        assert not any(output.prompt_logprobs for output in outputs[request.rid][1:])
        for index, entry in enumerate(of_prompt, start):
            assert (entry is None) == (index == 0)
            if entry is not None:
                check(entry, table[index - 1], prompt[index], params.logprobs)


def test_more_prompt_logprobs_than_a_message_holds_are_refused(llama: Path) -> None:
    engine = TextEngine(llama)
    engine.scheduler.limits = dataclasses.replace(engine.scheduler.limits, context_length=MAX_PROMPT_LOGPROBS)
    params = SamplingParams(4, logprobs=20, prompt_logprobs_from=0)
    engine.scheduler.add(Request(GenerateRequest("a", [5] * (MAX_PROMPT_LOGPROBS // 21 + 1), params)))
    (failure,) = engine.scheduler.outbox
    assert isinstance(failure, RequestFailed)
    assert failure.status == 400
    assert "logprob_start_len" in failure.message


def test_an_impossible_token_has_a_finite_logprob() -> None:
    request = Request(GenerateRequest("r", [0], SamplingParams(4, 0.0, logprobs=3)))
    Sampler().sample(torch.tensor([[0.0, -torch.inf, 1.0]]), [request])
    (one,) = request.sampled.logprobs
    assert [token for token, _ in one.top] == [2, 0, 1]
    assert one.top[-1][1] == -9999.0
