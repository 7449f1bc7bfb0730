"""The operations in C equal plain PyTorch; the library is made where a compiler is, and missed politely."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from epd_runtime.attention.batch import ForwardBatch
from epd_runtime.attention.reference import ReferenceDecode
from epd_runtime.kernels import ops, plain
from epd_runtime.kernels.native_ops import library, operations
from epd_runtime.kernels.packed_linear import PackedLinear, pack_linears

SIZES = [(1, 1, 1), (1, 9, 64), (5, 3, 20), (300, 4, 128)]  # tokens, heads, head_dim; the last is worth threads


@pytest.fixture(autouse=True)
def seed() -> int:
    drawn = random.SystemRandom().randrange(2**31)
    print(f"seed {drawn}")
    torch.manual_seed(drawn)
    return drawn


def slices(tokens: int, heads: int, size: int) -> Tensor:
    """[tokens, heads, size] as a part of a projection is: rows with gaps."""
    return torch.randn(tokens, (heads + 3) * size)[:, size : (heads + 1) * size].unflatten(1, (heads, size))


@pytest.mark.parametrize(("tokens", "heads", "size"), SIZES)
def test_norms(tokens: int, heads: int, size: int) -> None:
    x, weight = slices(tokens, heads, size), torch.randn(size)
    assert_close(operations.rms_norm(x, weight, 1e-5), plain.rms_norm(x, weight, 1e-5))
    assert_close(operations.rms_norm(x[:, 0], weight, 1e-5), plain.rms_norm(x[:, 0], weight, 1e-5))
    assert_close(operations.rms_norm(x.mT, torch.randn(heads), 1e-5).shape, x.mT.shape)
    row, residual = x[:, 0], torch.randn(tokens, size)
    for ours, expected in zip(
        operations.add_rms_norm(row, residual, weight, 1e-6),
        plain.add_rms_norm(row, residual, weight, 1e-6),
        strict=True,
    ):
        assert_close(ours, expected)


@pytest.mark.parametrize(("tokens", "heads", "size"), [size for size in SIZES if size[2] % 2 == 0])
def test_rotation(tokens: int, heads: int, size: int) -> None:
    """Any angles: nothing says that the two halves of cos and sin are equal."""
    q, k, cos, sin = (
        slices(tokens, heads, size),
        slices(tokens, 1, size),
        torch.randn(tokens, size),
        torch.randn(tokens, size),
    )
    for ours, expected in zip(operations.rotate(q, k, cos, sin), plain.rotate(q, k, cos, sin), strict=True):
        assert_close(ours, expected)


@pytest.mark.parametrize(("inside", "out"), [(1, 1), (50, 37), (64, 64), (33, 80), (576, 1000)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_products(inside: int, out: int, has_bias: bool) -> None:
    """Every size of tile; outputs that fill no panel, rows with gaps, no rows at all."""
    plainly = nn.Linear(inside, out, bias=has_bias).requires_grad_(False)
    packed = PackedLinear(plainly.weight, plainly.bias)
    for rows in (0, 1, 2, 3, 4, 5, 6, 7, 18):
        x = torch.randn(rows, inside + 3)[:, 1 : inside + 1]
        assert_close(packed(x), plainly(x), rtol=1e-4, atol=1e-5)
    x = torch.randn(2, inside, 3).mT
    assert_close(packed(x), plainly(x), rtol=1e-4, atol=1e-5)
    assert_close(packed(x[0, 0]), plainly(x[0, 0]), rtol=1e-4, atol=1e-5)
    for wrong in (torch.randn(2, inside + 1), torch.randn(2, inside).double()):
        with pytest.raises(ValueError, match="expected"):
            packed(wrong)


def test_only_what_c_takes_is_packed() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2).bfloat16()))
    pack_linears(module)
    kinds = [type(child) for child in (module[0], *module[1])]  # type: ignore[misc]
    assert kinds == [PackedLinear, PackedLinear, nn.Linear]


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_activation(scale: float) -> None:
    """Large numbers too: their exponential leaves float32."""
    for tokens, size in ((1, 3), (7, 300), (90, 1536)):
        gate_up = torch.randn(tokens, 2 * size) * scale
        assert_close(operations.silu_mul(gate_up), plain.silu_mul(gate_up))
    special = torch.tensor([[0.0, -1e30, 1e30, float("nan"), 1.0, 1.0, 1.0, 1.0]])
    assert_close(operations.silu_mul(special), plain.silu_mul(special), equal_nan=True)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "page_size"), [(9, 3, 64, 16), (1, 1, 6, 1), (8, 1, 80, 64), (4, 4, 33, 16)]
)
def test_decode_reads_what_was_stored(heads: int, kv_heads: int, head_dim: int, page_size: int) -> None:
    """Tokens stored in random pages of a pool of several layers; other pages and places hold NaN."""
    lengths = torch.tensor([1, 200, 64, 65, 17])
    counts = [-(-int(length) // page_size) for length in lengths]
    free = torch.randperm(sum(counts) + 5)
    pool = torch.full((len(free), 3, 2, page_size, kv_heads, head_dim), float("nan"))
    keys, values = pool[:, 1, 0], pool[:, 1, 1]
    tables = torch.zeros(len(lengths), max(counts) + 3, dtype=torch.int64)[:, : max(counts)]  # as buffers are cut
    clean = torch.zeros_like(pool)
    for index, count in enumerate(counts):
        pages, free = free[:count], free[count:]
        tables[index] = pages[-1]
        tables[index, :count] = pages
        length = int(lengths[index])
        where = (pages.repeat_interleave(page_size)[:length], torch.arange(page_size).repeat(count)[:length])
        k, v = slices(length, kv_heads, head_dim), slices(length, kv_heads, head_dim)
        operations.store_kv(k, v, keys, values, *where)
        plain.store_kv(k, v, clean[:, 1, 0], clean[:, 1, 1], *where)
    q, rows = slices(7, heads, head_dim), torch.tensor([6, 0, 3, 1, 5])
    ours, expected = torch.full(q.shape, -1.0), torch.full(q.shape, -1.0)
    operations.decode_attention(q, keys, values, rows, tables, lengths, ours)
    empty = torch.zeros(0, dtype=torch.int64)
    batch = ForwardBatch(torch.zeros(7), empty, empty, empty, empty, empty, (), rows, tables, lengths)
    reference = ReferenceDecode(page_size)
    reference.prepare(batch)
    reference.attend(q, q, q, clean[:, 1, 0], clean[:, 1, 1], batch, expected)
    assert_close(ours, expected)
    assert not pool[:, [0, 2]].isfinite().any()


def test_nothing_and_other_types_are_taken() -> None:
    nothing = torch.randn(0, 2, 8)
    assert operations.rms_norm(nothing, torch.ones(8), 1e-5).shape == nothing.shape
    assert operations.silu_mul(torch.randn(0, 8)).shape == (0, 4)
    half = torch.randn(3, 8).bfloat16()
    assert_close(operations.silu_mul(half), plain.silu_mul(half))
    weight = torch.ones(8).bfloat16()
    assert_close(operations.rms_norm(half, weight, 1e-5), plain.rms_norm(half, weight, 1e-5))
    out = torch.full((1, 2, 8), 7.0)
    one = torch.zeros(1, dtype=torch.int64)
    operations.decode_attention(out, nothing[None], nothing[None], one, torch.zeros(1, 0, dtype=torch.int64), one, out)
    assert_close(out, torch.zeros_like(out))


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and a library that was not loaded yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.load.cache_clear()
    yield tmp_path / "epd-runtime"
    library.load.cache_clear()


def test_a_broken_library_is_made_again(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library.load()
    (made,) = fresh.glob("*.so")
    monkeypatch.setenv("XDG_CACHE_HOME", str(fresh))
    broken = fresh / "epd-runtime" / made.name
    broken.parent.mkdir(mode=0o700)
    broken.write_bytes(b"not whole")
    library.load.cache_clear()
    library.load()
    assert broken.read_bytes() == made.read_bytes()
    assert list(broken.parent.iterdir()) == [broken]


def test_without_a_compiler_the_engine_says_so_and_runs(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", "/nowhere/cc")
    assert ops.fastest(torch.device("cpu")) == "plain"
    assert "slower: /nowhere/cc made no library" in caplog.text
    module = nn.Sequential(nn.Linear(3, 4))
    pack_linears(module)
    assert type(module[0]) is nn.Linear
    library.load.cache_clear()
    monkeypatch.setenv("CC", "false")
    with pytest.raises(library.NativeUnavailableError, match="non-zero exit status"):
        library.load()


def test_a_cache_that_cannot_be_written_is_not_needed(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    library.load()
