"""Picking tokens: the largest, or one by chance. Randomness is a pure function of (seed, index of the token).

A request with a seed gives the same tokens whatever shares its batch, and whether prefill and decode run in one engine
or two. Vocabularies are walked in two levels, blocks first: reductions over short contiguous runs are vectorised, a
scan or an argmax over the whole row is not (8 times slower at 152k tokens on a CPU).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from epd_runtime.accelerator import to_device

MAX_BLOCK = 128


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) from a hash of seed and token index."""
    digest = hashlib.blake2b(struct.pack("<QQ", seed & (2**64 - 1), index), digest_size=8).digest()
    return float(int.from_bytes(digest, "little") >> 11) * 2.0**-53


def uniforms(seeds: Sequence[int], indices: Sequence[int], device: torch.device) -> Tensor:
    """float64 [rows]: one number per row."""
    draws = [uniform(seed, index) for seed, index in zip(seeds, indices, strict=True)]
    return to_device(torch.tensor(draws, dtype=torch.float64), device)


def largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Largest value of every row [rows, vocab] and the first token that has it; NaN counts as larger than all."""
    blocks = _blocks(logits)
    value, block = blocks.amax(dim=-1).max(dim=-1)
    inside = blocks[torch.arange(len(logits), device=logits.device), block].argmax(dim=-1)
    return value, block * blocks.shape[-1] + inside


def pick(weights: Tensor, draws: Tensor) -> Tensor:
    """Index [rows] into weights [rows, n] by the inverse of their cumulative sum; weights need not sum to 1.

    An index with weight 0 is never picked, unless all are 0 or one is NaN.
    """
    blocks = _blocks(weights)
    rows = torch.arange(len(weights), device=weights.device)
    block, rest = _walk(blocks.sum(dim=-1), draws[:, None])
    inside, _ = _walk(blocks[rows, block], rest, absolute=True)
    return block * blocks.shape[-1] + inside


def _walk(weights: Tensor, target: Tensor, absolute: bool = False) -> tuple[Tensor, Tensor]:
    """First place at which the sum exceeds target (a share of the total, unless absolute), and what is left of it."""
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
    target = target if absolute else target * cumulative[:, -1:]
    place = torch.searchsorted(cumulative, target, right=True)
    positive = weights > 0
    last = weights.shape[-1] - 1 - positive.flip(-1).to(torch.uint8).argmax(dim=-1, keepdim=True)
    place = torch.minimum(place, last)  # rounding must not step past what has weight
    before = cumulative.gather(-1, place) - weights.gather(-1, place)
    return place.squeeze(-1), target - before


def _blocks(x: Tensor) -> Tensor:
    """[rows, n] as [rows, n / block, block] with the largest power of two that fits."""
    n = x.shape[-1]
    return x.reshape(len(x), -1, min(n & -n, MAX_BLOCK))
