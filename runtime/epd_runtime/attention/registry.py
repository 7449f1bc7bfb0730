"""Attention implementations by name; prefill and decode choose apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from epd_runtime.attention.base import AttentionPart
from epd_runtime.attention.paged import PagedAttention
from epd_runtime.attention.reference import ReferenceDecode, ReferencePrefill
from epd_runtime.kvcache.pool import KVPool


class AttentionUnavailableError(RuntimeError):
    """The chosen implementation cannot run here; the message is for the user."""


@dataclasses.dataclass(frozen=True)
class Implementation:
    """How to make the two parts, for a pool and the number of query heads."""

    prefill: Callable[[KVPool, int], AttentionPart]
    decode: Callable[[KVPool, int], AttentionPart]


def _reference() -> Implementation:
    return Implementation(
        prefill=lambda pool, num_heads: ReferencePrefill(),
        decode=lambda pool, num_heads: ReferenceDecode(pool.layout.page_size),
    )


IMPLEMENTATIONS: dict[str, Callable[[], Implementation]] = {"reference": _reference}


def default_attention(device: torch.device) -> str:
    """What runs when no flag says otherwise."""
    return "reference"


def open_attention(pool: KVPool, num_heads: int, prefill: str | None, decode: str | None) -> PagedAttention:
    """Attention over a pool by the names of its two parts; None is the device's default.

    Raises AttentionUnavailableError when a named implementation cannot run on the pool's device.
    """
    default = default_attention(pool.device)
    return PagedAttention(
        pool,
        IMPLEMENTATIONS[prefill or default]().prefill(pool, num_heads),
        IMPLEMENTATIONS[decode or default]().decode(pool, num_heads),
    )
