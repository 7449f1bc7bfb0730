"""Triton kernels between the matrix products equal plain PyTorch: odd sizes, slices of projections, no rows at all."""

from __future__ import annotations

import random

import pytest
import torch

from epd_runtime.kernels import plain, triton_ops
from triton_device import DEVICE, assert_close

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def seed() -> int:
    drawn = random.SystemRandom().randrange(2**31)
    print(f"seed {drawn}")
    torch.manual_seed(drawn)
    return drawn


def normal(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 96), (3, 1), (1, 3000), (0, 64), (70, 16)])
def test_rms_norm(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, weight = normal(*shape, dtype=dtype), normal(shape[1], dtype=dtype)
    assert_close(triton_ops.rms_norm(x, weight, 1e-6), plain.rms_norm(x, weight, 1e-6))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [16, 80, 128])
def test_rms_norm_of_heads_inside_a_projection(head_dim: int, dtype: torch.dtype) -> None:
    projected = normal(7, 5 * head_dim, dtype=dtype)
    x = projected[:, head_dim : 4 * head_dim].unflatten(-1, (3, head_dim))
    weight = normal(head_dim, dtype=dtype)
    assert_close(triton_ops.rms_norm(x, weight, 1e-5), plain.rms_norm(x, weight, 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 96), (33, 40), (1, 3000), (0, 64)])
def test_add_rms_norm(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, residual, weight = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype), normal(shape[1], dtype=dtype)
    (normed, total), (expected, sum_) = (
        module.add_rms_norm(x, residual, weight, 1e-6) for module in (triton_ops, plain)
    )
    assert_close(normed, expected)
    assert_close(total, sum_)  # the interpreter cuts bfloat16 off where a GPU rounds


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "head_dim"), [(6, 4, 2, 64), (1, 7, 1, 80), (9, 3, 3, 2), (0, 4, 2, 64)]
)
def test_rotate(tokens: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
    """q and k are slices of one projection; cosines in float32 as in vision towers, or in the model's type."""
    projected = normal(tokens, heads + 2 * kv_heads, head_dim, dtype=dtype)
    q, k = projected[:, :heads], projected[:, heads : heads + kv_heads]
    angles = torch.randn(tokens, head_dim // 2, device=DEVICE).repeat(1, 2)
    for angle_dtype in {torch.float32, dtype}:
        cos, sin = angles.cos().to(angle_dtype), angles.sin().to(angle_dtype)
        for actual, expected in zip(triton_ops.rotate(q, k, cos, sin), plain.rotate(q, k, cos, sin), strict=True):
            assert_close(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 2 * 96), (1, 2 * 1500), (3, 2), (0, 128)])
def test_silu_mul(shape: tuple[int, int], dtype: torch.dtype) -> None:
    gate_up = 4 * normal(*shape, dtype=dtype)
    assert_close(triton_ops.silu_mul(gate_up), plain.silu_mul(gate_up))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize("tokens", [0, 1, 37])
def test_store_kv(tokens: int, page_size: int, dtype: torch.dtype) -> None:
    """Into one layer of a pool; what is not written stays as it was."""
    kv_heads, head_dim, num_pages = 3, 20, 64
    projected = normal(tokens, 4 * kv_heads, head_dim, dtype=dtype)
    k, v = projected[:, kv_heads : 2 * kv_heads], projected[:, 3 * kv_heads :]
    places = torch.randperm(num_pages * page_size, device=DEVICE)[:tokens]
    pools = [torch.full((num_pages, 2, 2, page_size, kv_heads, head_dim), 7.0, dtype=dtype) for _ in range(2)]
    for module, pool in zip((triton_ops, plain), pools, strict=True):
        pool = pool.to(DEVICE)
        module.store_kv(k, v, pool[:, 1, 0], pool[:, 1, 1], places // page_size, places % page_size)
    assert torch.equal(*pools)
