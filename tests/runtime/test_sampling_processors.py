"""What is drawn from, against the logits processors of transformers on random logits."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from epd_runtime.engine.request import Request
from epd_runtime.engine.sampling import cuts, sampler
from epd_runtime.engine.sampling.sampler import Sampler
from epd_runtime.messages import GenerateRequest, SamplingParams

EOS = 2


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, int, float, SamplingParams]:
    """Seed of the logits, vocabulary, their spread, parameters."""
    vocab = draw(st.sampled_from([40, 300, 2048]))
    params = SamplingParams(
        1 << 20,
        temperature=draw(st.sampled_from([0.2, 0.7, 1.0, 1.9])),
        top_p=draw(st.sampled_from([1.0, 0.95, 0.5, 0.01])),
        top_k=draw(st.sampled_from([0, 1, 5, 39, 60, 1500])),
        min_p=draw(st.sampled_from([0.0, 0.05, 0.4])),
        repetition_penalty=draw(st.sampled_from([1.0, 0.8, 1.5])),
        min_new_tokens=draw(st.sampled_from([0, 3, 9])),
    )
    return draw(st.integers(0, 2**31)), vocab, draw(st.sampled_from([0.05, 1.0, 6.0])), params


def expected(logits: torch.Tensor, ids: list[int], prompt: int, params: SamplingParams) -> torch.Tensor:
    """transformers' scores [vocab], in the order in which its generate() applies them."""
    processors = LogitsProcessorList()
    if params.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.min_new_tokens:
        processors.append(MinNewTokensLengthLogitsProcessor(prompt, params.min_new_tokens, EOS))
    processors.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        processors.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        processors.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        processors.append(MinPLogitsWarper(params.min_p))
    return processors(torch.tensor([ids]), logits.clone())[0]  # type: ignore[no-any-return]


def drawn_from(logits: torch.Tensor, request: Request, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Probabilities [vocab] that the sampler hands to the draw."""
    seen: list[torch.Tensor] = []

    def spy(weights: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        seen.append(weights)
        return weights.argmax(-1)

    monkeypatch.setattr(sampler, "pick", spy)
    topk_ids: list[torch.Tensor] = []
    original = torch.Tensor.topk

    def topk(self: torch.Tensor, *args: Any, **keywords: Any) -> Any:
        found = original(self, *args, **keywords)
        topk_ids.append(found.indices)
        return found

    monkeypatch.setattr(torch.Tensor, "topk", topk)
    Sampler(frozenset({EOS})).sample(logits.clone(), [request])
    weights = seen[-1][0]
    if len(weights) < logits.shape[-1]:  # candidates alone, by token id
        full = torch.zeros(logits.shape[-1])
        full[topk_ids[-1][0].sort().values] = weights
        weights = full
    return weights / weights.sum()


@settings(max_examples=300, deadline=None)
@given(cases(), st.lists(st.integers(0, 39), max_size=20), st.lists(st.integers(0, 39), max_size=8))
def test_probabilities_equal_transformers(
    case: tuple[int, int, float, SamplingParams], prompt: list[int], output: list[int]
) -> None:
    seed, vocab, spread, params = case
    prompt = [1, *prompt]
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(seed)) * spread
    request = Request(GenerateRequest("r", prompt, params))
    request.output_ids = output
    with pytest.MonkeyPatch.context() as monkeypatch:
        ours = drawn_from(logits, request, monkeypatch)
    theirs = expected(logits, prompt + output, len(prompt), params).softmax(-1)
    if torch.equal(ours > 0, theirs > 0):
        assert torch.allclose(ours, theirs, atol=1e-5)
        return
    # rounding may move the edge of top_p by a token: there the mass above it is top_p
    uncut = expected(logits, prompt + output, len(prompt), msgspec.structs.replace(params, top_p=1.0, min_p=0.0))
    masses = [float(uncut.softmax(-1)[kept > 0].sum()) for kept in (ours, theirs)]
    assert min(masses) == pytest.approx(params.top_p, abs=1e-5)
    assert int(((ours > 0) != (theirs > 0)).sum()) == 1


@pytest.mark.parametrize("top_k", [5, 2000])
def test_ties_at_the_edge_of_top_k_stay_together(top_k: int) -> None:
    """As in transformers; half precision makes them common."""
    logits = torch.zeros(1, 4096)
    logits[0, :3] = 1.0
    params = SamplingParams(1, top_k=top_k)
    with pytest.MonkeyPatch.context() as monkeypatch:
        ours = drawn_from(logits, Request(GenerateRequest("r", [0], params)), monkeypatch)
    assert torch.allclose(ours, logits[0].softmax(-1), atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3000), st.floats(0.01, 1.0), st.sampled_from([0.01, 1.0, 8.0]))
def test_sorting_and_candidates_agree(seed: int, top_k: int, top_p: float, spread: float) -> None:
    vocab = 2048
    logits = torch.randn(4, vocab, generator=torch.Generator().manual_seed(seed)) * spread
    logits -= logits.amax(-1, keepdim=True)
    k, p = torch.full((4, 1), min(top_k, vocab)), torch.full((4, 1), top_p)
    total = logits.exp().sum(-1, keepdim=True)
    exact = cuts.exact_threshold(logits, k, p)
    sized, decided = cuts.candidate_threshold(logits.topk(300).values, total, k, p, vocab)
    every, all_decided = cuts.candidate_threshold(logits.topk(vocab).values, total, k, p, vocab)
    assert bool(all_decided.all())
    kept = [(logits >= threshold).sum(-1) for threshold in (exact, every, torch.where(decided, sized, exact))]
    assert max(int((one - kept[0]).abs().max()) for one in kept) <= 1  # rounding at the edge of top_p
    assert bool((kept[0] <= top_k).all())


def test_penalties_follow_their_definitions() -> None:
    params = SamplingParams(
        9, 0.0, repetition_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.25, logit_bias=((4, 1.0),)
    )
    request = Request(GenerateRequest("r", [0, 1, 1], params))
    request.output_ids = [1, 2, 2]
    logits = torch.tensor([[1.0, -1.0, 3.0, 1.0, 1.0]])
    Sampler().sample(logits, [request])
    # prompt and answer are divided (or multiplied, below 0), the answer's tokens pay 0.5 each time and 0.25 once
    assert logits.tolist() == [[0.5, -2.0 - 0.75, 1.5 - 1.25, 1.0, 2.0]]


def test_no_end_before_min_new_tokens() -> None:
    params = SamplingParams(9, 0.0, min_new_tokens=2, stop_token_ids=(1, 99999))
    logits = torch.tensor([[1.0, 5.0, 9.0, 2.0]])
    request = Request(GenerateRequest("r", [0], params))
    for output, token in (([], 3), ([3], 3), ([3, 3], EOS)):
        request.output_ids = output
        assert Sampler(frozenset({EOS})).sample(logits.clone(), [request]) == [token]
