"""Models that are drawn."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from random_models import make_llama


@pytest.fixture(scope="module")
def seed() -> int:
    """Drawn anew for each module, and printed."""
    drawn = random.SystemRandom().randrange(2**31)
    print(f"seed {drawn}")
    return drawn


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, seed: int) -> Path:
    """A small Llama with random weights."""
    return make_llama(tmp_path_factory.mktemp("llama"), seed)
