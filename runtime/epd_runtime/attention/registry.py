"""Attention implementations by name; prefill and decode choose apart."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Callable

import torch

from epd_runtime.attention.base import AttentionPart
from epd_runtime.attention.paged import PagedAttention
from epd_runtime.attention.reference import ReferenceDecode, ReferencePrefill
from epd_runtime.kernels.native_ops import library
from epd_runtime.kvcache.pool import KVPool


class AttentionUnavailableError(RuntimeError):
    """The chosen implementation cannot run here; the message is for the user."""


@dataclasses.dataclass(frozen=True)
class Implementation:
    """How to make the two parts, for a pool and the number of query heads."""

    prefill: Callable[[KVPool, int], AttentionPart]
    decode: Callable[[KVPool, int], AttentionPart]


def _reference(device: torch.device) -> Implementation:
    return Implementation(
        prefill=lambda pool, num_heads: ReferencePrefill(),
        decode=lambda pool, num_heads: ReferenceDecode(pool.layout.page_size),
    )


def _native(device: torch.device) -> Implementation:
    if device.type != "cpu":
        raise AttentionUnavailableError("attention backend native runs on CPU; on this device use triton")
    try:
        library.load()
    except library.NativeUnavailableError as error:
        raise AttentionUnavailableError(f"attention backend native: {error}; use reference") from error
    from epd_runtime.attention.native_parts import open_decode

    return Implementation(prefill=lambda pool, num_heads: ReferencePrefill(), decode=open_decode)


def _triton(device: torch.device) -> Implementation:
    if device.type != "cuda" and not os.environ.get("TRITON_INTERPRET"):
        raise AttentionUnavailableError("attention backend triton runs on CUDA; on this device use reference")
    from epd_runtime.attention.triton_parts import TritonDecode, TritonPrefill

    return Implementation(prefill=TritonPrefill, decode=TritonDecode)


def _flashinfer(device: torch.device) -> Implementation:
    if device.type != "cuda":
        raise AttentionUnavailableError("attention backend flashinfer runs on CUDA; on this device use reference")
    if importlib.util.find_spec("flashinfer") is None:
        raise AttentionUnavailableError(
            "attention backend flashinfer is not installed; install it (pip install 'rbg-epd[cuda]') or use triton"
        )
    from epd_runtime.attention.flashinfer_parts import FlashInferDecode, FlashInferPrefill

    return Implementation(prefill=FlashInferPrefill, decode=FlashInferDecode)


IMPLEMENTATIONS: dict[str, Callable[[torch.device], Implementation]] = {
    "reference": _reference,
    "native": _native,
    "triton": _triton,
    "flashinfer": _flashinfer,
}


def default_attention(device: torch.device) -> str:
    """What runs when no flag says otherwise."""
    if device.type == "cuda":
        return "triton"
    return "native" if library.is_available() else "reference"


def open_attention(pool: KVPool, num_heads: int, prefill: str | None, decode: str | None) -> PagedAttention:
    """Attention over a pool by the names of its two parts; None is the device's default.

    Raises AttentionUnavailableError when a named implementation cannot run on the pool's device.
    """
    default = default_attention(pool.device)
    return PagedAttention(
        pool,
        IMPLEMENTATIONS[prefill or default](pool.device).prefill(pool, num_heads),
        IMPLEMENTATIONS[decode or default](pool.device).decode(pool, num_heads),
    )
