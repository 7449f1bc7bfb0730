"""Sampling: greedy, distributions, cuts, and independence of the batch."""

from __future__ import annotations

import pytest
import torch

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
