"""The two ways of computing experts give the same."""

from __future__ import annotations

import random

import pytest
import torch

from epd_runtime.models.experts import ExpertsMLP
from epd_runtime.text_config import ExpertsConfig


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_grouped_products_equal_the_loop(rows: int) -> None:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    torch.manual_seed(seed)
    layer = ExpertsMLP(16, ExpertsConfig(6, 2, 8, True, (0,))).requires_grad_(False)
    for parameter in layer.parameters():
        parameter.normal_()
    assert layer.can_group
    x = torch.randn(rows, 16)
    counts = torch.randint(0, 6, (rows,)).bincount(minlength=6)
    torch.testing.assert_close(layer.grouped(x, counts), layer.one_by_one(x, counts), rtol=1e-4, atol=1e-4)


def test_odd_sizes_are_left_to_the_loop() -> None:
    assert not ExpertsMLP(16, ExpertsConfig(2, 1, 7, True, (0,))).can_group
    assert not ExpertsMLP(18, ExpertsConfig(2, 1, 8, True, (0,))).can_group
