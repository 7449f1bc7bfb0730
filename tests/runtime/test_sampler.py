"""Sampling: greedy, distributions, and independence of the batch."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from epd_runtime.engine.request import NO_TOKEN, Request
from epd_runtime.engine.sampling.draw import largest, pick, uniform
from epd_runtime.engine.sampling.sampler import Sampler
from epd_runtime.messages import GenerateRequest, SamplingParams

LOGITS = torch.log(torch.tensor([[0.5, 0.25, 0.15, 0.1]]))


def request(prompt: tuple[int, ...] = (0,), output: tuple[int, ...] = (), **params: object) -> Request:
    made = Request(GenerateRequest("r", list(prompt), SamplingParams(1 << 20, **params)))  # type: ignore[arg-type]
    made.output_ids = list(output)
    return made


def draw(count: int, logits: torch.Tensor = LOGITS, **params: object) -> list[int]:
    requests = [request(seed=seed, **params) for seed in range(count)]
    return Sampler().sample(logits.repeat(count, 1), requests)


def test_temperature_zero_takes_the_largest() -> None:
    assert draw(5, temperature=0.0) == [0] * 5


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, [0.5, 0.25, 0.15, 0.1]),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_p": 0.6}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_p": 0.5}, [1, 0, 0, 0]),
        ({"top_p": 0.0}, [1, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.99}, [5 / 9, 2.5 / 9, 1.5 / 9, 0]),
        ({"top_k": 2, "top_p": 0.66}, [1, 0, 0, 0]),  # of the two that top_k leaves
        ({"min_p": 0.29}, [5 / 9, 2.5 / 9, 1.5 / 9, 0]),
        ({"min_p": 0.31}, [2 / 3, 1 / 3, 0, 0]),
        ({"min_p": 1.0}, [1, 0, 0, 0]),
        ({"temperature": 0.5}, [0.25 / 0.345, 0.0625 / 0.345, 0.0225 / 0.345, 0.01 / 0.345]),
    ],
)
def test_frequencies_follow_the_probabilities(params: dict[str, float], expected: list[float]) -> None:
    tokens = torch.tensor(draw(20000, **params))
    frequencies = tokens.bincount(minlength=4) / 20000
    assert torch.allclose(frequencies, torch.tensor(expected, dtype=torch.float32), atol=0.015)
    assert [f > 0 for f in frequencies] == [e > 0 for e in expected]


@dataclasses.dataclass
class Mixed:
    """Rows of every kind over a vocabulary that has blocks, wide and narrow distributions."""

    logits: torch.Tensor
    requests: list[Request]


@pytest.fixture(params=[96, 1000, 4096])
def mixed(request: pytest.FixtureRequest) -> Mixed:
    vocab, seed = request.param, random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    pick, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    rows = []
    for row in range(40):
        params = SamplingParams(
            1 << 20,
            temperature=pick.choice([0.0, 0.3, 1.0, 2.0]),
            top_p=pick.choice([1.0, 0.9, 0.3]),
            top_k=pick.choice([0, 1, 20, 90, 2000]),
            min_p=pick.choice([0.0, 0.02]),
            seed=row,
            frequency_penalty=pick.choice([0.0, 0.7]),
            presence_penalty=pick.choice([0.0, -0.3]),
            repetition_penalty=pick.choice([1.0, 1.3]),
            logit_bias=pick.choice([(), ((3, 2.5), (5, -100.0))]),
            min_new_tokens=pick.choice([0, 10]),
        )
        made = Request(GenerateRequest(str(row), [pick.randrange(vocab) for _ in range(30)], params))
        made.output_ids = [pick.randrange(vocab) for _ in range(pick.randrange(20))]
        rows.append(made)
    scales = torch.tensor([pick.choice([0.01, 1.0, 5.0]) for _ in rows])
    return Mixed(torch.randn(len(rows), vocab, generator=generator) * scales[:, None], rows)


def test_a_seed_gives_the_same_token_in_any_batch(mixed: Mixed) -> None:
    sampler = Sampler(frozenset({7}))
    together = sampler.sample(mixed.logits.clone(), mixed.requests)
    assert len(set(together)) > 10
    alone = [sampler.sample(mixed.logits[i : i + 1].clone(), [one])[0] for i, one in enumerate(mixed.requests)]
    assert together == alone
    order = random.sample(range(len(alone)), 15)
    assert sampler.sample(mixed.logits[order], [mixed.requests[i] for i in order]) == [alone[i] for i in order]


def test_state_can_be_rebuilt_from_the_tokens(mixed: Mixed) -> None:
    """A request that was retracted, or begun on another engine, goes on as if nothing had happened."""
    sampler = Sampler()
    fresh = []
    for one in mixed.requests[:12]:
        full, one.output_ids = one.output_ids, []
        for token in full:  # counted one by one
            one.output_ids.append(token)
            sampler.sample(mixed.logits[:1].clone(), [one])
        fresh.append(Request(GenerateRequest(one.rid, one.input_ids, one.sampling)))
        fresh[-1].output_ids = list(full)
    continued = sampler.sample(mixed.logits[:12].clone(), mixed.requests[:12])
    assert sampler.sample(mixed.logits[:12].clone(), fresh) == continued


def test_the_index_moves_the_draw() -> None:
    flat = torch.zeros(1, 4096)
    tokens = {Sampler().sample(flat.clone(), [request(output=(1,) * n, seed=5)])[0] for n in range(20)}
    assert len(tokens) > 15


def test_uniform_is_a_function_of_seed_and_index() -> None:
    assert uniform(3, 4) == uniform(3, 4)
    assert len({uniform(seed, index) for seed in range(30) for index in range(30)}) == 900
    assert all(0.0 <= uniform(-seed, seed) < 1.0 for seed in range(100))


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-40, 1e-320, 100.0])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("top_p", [1.0, 0.999])
def test_extreme_temperatures_give_a_token(temperature: float, scale: float, top_p: float) -> None:
    tokens = draw(20, LOGITS * scale, temperature=temperature, top_p=top_p)
    assert all(0 <= token < 4 for token in tokens)
    if temperature < 1 <= scale:
        assert set(tokens) == {0}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "params", [{"temperature": 0.0}, {}, {"top_k": 1}, {"top_p": 0.5}, {"logit_bias": ((1, 1.0),)}]
)
def test_a_row_that_is_not_finite_harms_only_itself(bad: float, params: dict[str, object]) -> None:
    logits = (LOGITS * 100).repeat(3, 1)
    logits[1] = bad
    tokens = Sampler().sample(logits, [request(**params) for _ in range(3)])
    assert tokens == [0, NO_TOKEN, 0]


def test_one_nan_among_numbers_is_noticed() -> None:
    logits = LOGITS.clone()
    logits[0, 2] = float("nan")
    assert Sampler().sample(logits, [request()]) == [NO_TOKEN]


def test_a_tiny_top_p_keeps_the_largest() -> None:
    assert set(draw(100, top_p=1e-30)) == {0}


def test_a_batch_may_sample_nothing() -> None:
    assert Sampler().sample(torch.zeros(0, 8), []) == []


@pytest.mark.parametrize("size", [1, 3, 128, 384, 1001, 4096])
def test_largest_and_pick_equal_their_definitions(size: int) -> None:
    x = torch.rand(50, size) * (torch.rand(50, size) > 0.5)
    x[:, size // 2] += 1e-3
    value, place = largest(x)
    assert torch.equal(value, x.amax(-1))
    assert torch.equal(x.gather(1, place[:, None])[:, 0], value)
    draws = torch.rand(50, dtype=torch.float64)
    draws[0], draws[1] = 0.0, 1.0 - 2**-53
    cumulative = x.double().cumsum(-1)
    picked = pick(x, draws)[:, None]
    target = draws * cumulative[:, -1]
    slack = 1e-6 * size
    assert bool((x.gather(1, picked) > 0).all())
    assert bool((cumulative.gather(1, picked)[:, 0] >= target - slack).all())
    assert bool(((cumulative - x).gather(1, picked)[:, 0] <= target + slack).all())
