"""Settings that must be made before any test of the runtime imports anything, and models that are drawn."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

if not os.path.exists("/dev/nvidiactl"):  # Triton decides for its interpreter when it is imported first
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="module")
def seed() -> int:
    """Drawn anew for each module, and printed."""
    drawn = random.SystemRandom().randrange(2**31)
    print(f"seed {drawn}")
    return drawn


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, seed: int) -> Path:
    """A small Llama with random weights."""
    from random_models import make_llama  # after the setting above

    return make_llama(tmp_path_factory.mktemp("llama"), seed)
