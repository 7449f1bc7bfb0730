"""Chooses the next token of every sampled row.

Randomness is a pure function of (seed, index of the token in the answer): a request with a seed gives the same tokens
whatever shares its batch, and whether prefill and decode run in one engine or two.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from epd_runtime.engine.request import NO_TOKEN
from epd_runtime.messages import SamplingParams

MIN_TEMPERATURE = 1e-10  # below it float32 overflows; the distribution is greedy long before


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) from a hash of seed and token index."""
    digest = hashlib.blake2b(struct.pack("<QQ", seed & (2**64 - 1), index), digest_size=8).digest()
    return float(int.from_bytes(digest, "little") >> 11) * 2.0**-53


def sample(logits: Tensor, params: Sequence[SamplingParams], indices: Sequence[int]) -> list[int]:
    """Next tokens for logits [rows, vocab] float32; indices are the positions of these tokens in their answers.

    NO_TOKEN for a row with NaN or infinity as its largest logit: a broken request must not end others of its batch.
    """
    largest, tokens = logits.max(dim=-1)  # NaN counts as the largest
    valid = largest.isfinite()
    random_rows = [row for row, one in enumerate(params) if one.temperature > 0.0]
    if random_rows:
        chosen = [params[row] for row in random_rows]
        draws = [uniform(params[row].seed, indices[row]) for row in random_rows]
        centred = (logits[random_rows] - largest[random_rows, None]).nan_to_num()
        tokens[random_rows] = _sample_rows(centred, chosen, draws)
    result: list[int] = tokens.masked_fill(~valid, NO_TOKEN).tolist()
    return result


def _sample_rows(logits: Tensor, params: Sequence[SamplingParams], draws: Sequence[float]) -> Tensor:
    """Inverse of the cumulative distribution over tokens sorted by probability, cut by top_k, then by top_p.

    logits are finite with 0 as the largest of a row, so that no temperature makes them overflow upwards.
    """
    device, vocab = logits.device, logits.shape[-1]
    temperature = torch.tensor([max(one.temperature, MIN_TEMPERATURE) for one in params], device=device)
    top_p = torch.tensor([one.top_p for one in params], device=device)
    top_k = torch.tensor([one.top_k if one.top_k > 0 else vocab for one in params], device=device)
    sorted_logits, order = (logits / temperature[:, None]).sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(vocab, device=device)
    kept = sorted_logits.masked_fill(ranks >= top_k[:, None], float("-inf")).softmax(dim=-1)
    before = kept.cumsum(dim=-1) - kept
    kept = kept.masked_fill(before >= top_p[:, None].clamp(min=1e-9), 0.0)
    cumulative = kept.cumsum(dim=-1)
    target = torch.tensor(draws, device=device)[:, None] * cumulative[:, -1:]
    picked = torch.searchsorted(cumulative, target.to(cumulative.dtype), right=True)
    last_kept = (kept > 0).sum(dim=-1, keepdim=True) - 1  # rounding must not step past the cut
    return order.gather(1, torch.minimum(picked, last_kept)).squeeze(1)
