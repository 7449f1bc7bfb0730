"""Sampling: greedy, distributions, cuts, and independence of the batch."""

from __future__ import annotations

import pytest
import torch

from epd_runtime.engine.request import NO_TOKEN
from epd_runtime.engine.sampler import sample, uniform
from epd_runtime.messages import SamplingParams

LOGITS = torch.log(torch.tensor([[0.5, 0.25, 0.15, 0.1]]))


def draw(count: int, **params: float) -> list[int]:
    options = [SamplingParams(1, seed=seed, **params) for seed in range(count)]  # type: ignore[arg-type]
    return sample(LOGITS.expand(count, -1), options, [0] * count)


def test_temperature_zero_takes_the_largest() -> None:
    assert draw(5, temperature=0.0) == [0] * 5


def test_frequencies_follow_the_probabilities() -> None:
    tokens = torch.tensor(draw(20000, temperature=1.0))
    frequencies = tokens.bincount(minlength=4) / 20000
    assert torch.allclose(frequencies, torch.tensor([0.5, 0.25, 0.15, 0.1]), atol=0.015)


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.6}, {0, 1}),
        ({"top_p": 0.5}, {0}),
        ({"top_k": 3, "top_p": 0.99}, {0, 1, 2}),
        ({"top_p": 0.0}, {0}),
    ],
)
def test_cuts(params: dict[str, float], allowed: set[int]) -> None:
    assert set(draw(500, temperature=1.0, **params)) == allowed


def test_a_seed_gives_the_same_token_in_any_batch() -> None:
    torch.manual_seed(0)
    logits = torch.randn(8, 50)
    options = [SamplingParams(1, temperature=1.0, seed=seed, top_p=0.9) for seed in range(8)]
    together = sample(logits, options, list(range(8)))
    alone = [sample(logits[i : i + 1], options[i : i + 1], [i])[0] for i in range(8)]
    assert together == alone


def test_mixed_greedy_and_random_rows() -> None:
    options = [
        SamplingParams(1, temperature=0.0),
        SamplingParams(1, temperature=1.0, top_k=1),
        SamplingParams(1, temperature=0.0),
    ]
    assert sample(LOGITS.expand(3, -1), options, [0, 0, 0]) == [0, 0, 0]


def test_uniform_is_a_function_of_seed_and_index() -> None:
    assert uniform(3, 4) == uniform(3, 4)
    assert len({uniform(seed, index) for seed in range(30) for index in range(30)}) == 900
    assert all(0.0 <= uniform(-seed, seed) < 1.0 for seed in range(100))


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-40, 1e-320, 100.0])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_extreme_temperatures_give_a_token(temperature: float, scale: float) -> None:
    tokens = sample(
        (LOGITS * scale).expand(20, -1), [SamplingParams(1, temperature, seed=s) for s in range(20)], [0] * 20
    )
    assert all(0 <= token < 4 for token in tokens)
    if temperature < 1 <= scale:
        assert set(tokens) == {0}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_harms_only_itself(bad: float, temperature: float) -> None:
    logits = LOGITS.repeat(3, 1)
    logits[1] = bad
    tokens = sample(logits, [SamplingParams(1, temperature, top_k=1)] * 3, [0] * 3)
    assert tokens == [0, NO_TOKEN, 0]


def test_one_nan_among_numbers_is_noticed() -> None:
    logits = LOGITS.clone()
    logits[0, 2] = float("nan")
    assert sample(logits, [SamplingParams(1, 1.0)], [0]) == [NO_TOKEN]


def test_a_tiny_top_p_keeps_the_largest() -> None:
    assert set(draw(100, temperature=1.0, top_p=1e-30)) == {0}
