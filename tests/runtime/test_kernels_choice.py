"""Which attention runs, and what a user hears when it cannot."""

from __future__ import annotations

import pytest
import torch

from epd_runtime.attention.registry import IMPLEMENTATIONS, AttentionUnavailableError, default_attention
from epd_runtime.config import ATTENTION_BACKENDS

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_the_command_line_knows_every_implementation() -> None:
    assert tuple(IMPLEMENTATIONS) == ATTENTION_BACKENDS


def test_the_default_follows_the_device() -> None:
    assert default_attention(CPU) == "native"
    assert default_attention(CUDA) == "triton"


@pytest.mark.parametrize(
    ("name", "device"), [("triton", CPU), ("flashinfer", CPU), ("flashinfer", CUDA), ("native", CUDA)]
)
def test_what_cannot_run_says_why(name: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)  # as where it is not installed
    with pytest.raises(AttentionUnavailableError, match=f"attention backend {name} .*use"):
        IMPLEMENTATIONS[name](device)
