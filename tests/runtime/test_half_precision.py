"""Half precision rounds; it may cost no more than it costs transformers in the same type."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from epd_runtime.engine.request import Request
from epd_runtime.messages import GenerateRequest, SamplingParams
from random_models import make_random
from text_engine import TextEngine


@pytest.fixture
def draw() -> random.Random:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    return random.Random(seed)


@torch.inference_mode()
def reference(folder: Path, tokens: list[int], dtype: torch.dtype) -> Tensor:
    """Logprob of every token but the first, by transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    table = model(torch.tensor([tokens])).logits[0, :-1].float().log_softmax(-1)
    return table.gather(-1, torch.tensor(tokens[1:])[:, None])[:, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_logprobs_are_as_near_to_float32_as_those_of_transformers(
    family: str, dtype: torch.dtype, draw: random.Random, tmp_path: Path
) -> None:
    """Chunks behind cached ones, then decode steps: the mean error over some hundred tokens, and none far off."""
    folder = make_random(family, tmp_path, draw)
    prompt = [draw.randrange(2, 300) for _ in range(150)]
    asked = SamplingParams(50, 0.0, ignore_eos=True, logprobs=0, prompt_logprobs_from=0)
    outputs = TextEngine(folder, chunk=40, dtype=dtype).run([Request(GenerateRequest("a", prompt, asked))])["a"]
    tokens = prompt + [token for output in outputs for token in output.token_ids]
    known = [*outputs[0].prompt_logprobs[1:], *(one for output in outputs for one in output.logprobs)]
    ours = torch.tensor([one.logprob for one in known if one is not None])
    exact, theirs = (reference(folder, tokens, one) for one in (torch.float32, dtype))
    error, allowed = (ours - exact).abs(), (theirs - exact).abs()
    print(f"mean {error.mean():.2e} of {allowed.mean():.2e}, largest {error.max():.2e} of {allowed.max():.2e}")
    assert len(error) == 199
    assert 0 < error.mean() < 1.5 * allowed.mean()
    assert error.max() < 3 * allowed.max()
