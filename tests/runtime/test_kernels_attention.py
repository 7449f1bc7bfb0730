"""Triton attention equals plain PyTorch: pages of several sizes, grouped heads, odd head sizes, rows without keys."""

from __future__ import annotations

import random

import pytest
import torch

from epd_runtime.attention.base import AttentionPart
from epd_runtime.attention.batch import ForwardBatch, Sequence
from epd_runtime.attention.packed import Segments
from epd_runtime.attention.reference import ReferenceDecode, ReferencePrefill
from epd_runtime.kernels import plain, triton_ops
from epd_runtime.kernels.triton_ops import decode, prefill
from triton_device import DEVICE, HALF, assert_close

NONE = torch.empty(0, dtype=torch.int64)


@pytest.fixture(autouse=True)
def draw() -> random.Random:
    drawn = random.SystemRandom().randrange(2**31)
    print(f"seed {drawn}")
    torch.manual_seed(drawn)
    return random.Random(drawn)


class Pages:
    """One layer's pages, with a second layer between them, and sequences that own random ones of them."""

    def __init__(self, lengths: list[int], page_size: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
        self.page_size = page_size
        counts = [-(-length // page_size) for length in lengths]
        pool = torch.randn(sum(counts) + 1, 2, 2, page_size, kv_heads, head_dim, device=DEVICE).to(dtype)
        self.keys, self.values = pool[:, 1, 0], pool[:, 1, 1]
        self.owned = list(torch.randperm(sum(counts) + 1, device=DEVICE)[: sum(counts)].split(counts))

    def spoil(self, lengths: list[int]) -> None:
        """NaN wherever no token is: kernels must not let it into any result."""
        written = torch.zeros(self.keys.shape[:2], dtype=torch.bool, device=DEVICE)
        for pages, length in zip(self.owned, lengths, strict=True):
            index = torch.arange(length, device=DEVICE)
            written[pages[index // self.page_size], index % self.page_size] = True
        self.keys[~written] = float("nan")
        self.values[~written] = float("nan")

    def table(self) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(self.owned, batch_first=True)


def batch(
    prefills: tuple[Sequence, ...] = (), rows: torch.Tensor | None = None, **decodes: torch.Tensor
) -> ForwardBatch:
    return ForwardBatch(
        NONE, NONE, NONE, NONE, NONE, NONE, prefills, rows, decodes.get("pages"), decodes.get("lengths")
    )


def attend(part: AttentionPart, q: torch.Tensor, pages: Pages, work: ForwardBatch) -> torch.Tensor:
    """By a reference, which reads all keys from the pages; rows that it leaves alone are zero."""
    part.prepare(work)
    out = torch.zeros_like(q)
    part.attend(q, q, q, pages.keys, pages.values, work, out)
    return out


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "page_size", "dtype"),
    [(4, 2, 64, 16, torch.float32), (7, 1, 80, 1, HALF), (3, 3, 20, 64, torch.float32), (4, 1, 128, 16, HALF)],
)
def test_decode(heads: int, kv_heads: int, head_dim: int, page_size: int, dtype: torch.dtype) -> None:
    """With one split and with several, of which some find nothing to do; rows in any order."""
    lengths = [1, decode.MIN_SPAN + 44, 40]
    pages = Pages(lengths, page_size, kv_heads, head_dim, dtype)
    q = torch.randn(5, heads, head_dim, device=DEVICE).to(dtype)
    rows, counted = torch.tensor([0, 4, 2], device=DEVICE), torch.tensor(lengths, device=DEVICE)
    expected = attend(ReferenceDecode(page_size), q, pages, batch(rows=rows, pages=pages.table(), lengths=counted))
    pages.spoil(lengths)
    for splits in (1, 4):
        out = torch.zeros_like(q)
        decode.decode_attention(q, pages.keys, pages.values, rows, pages.table(), counted, splits, out)
        assert_close(out, expected)


def test_decode_of_nothing_is_zero() -> None:
    """A row without keys gives zeros and touches no page; no rows at all launch nothing."""
    pages = Pages([16], 16, 1, 16, torch.float32)
    pages.spoil([0])
    q = torch.randn(1, 2, 16, device=DEVICE)
    empty, table = torch.zeros(1, dtype=torch.int64, device=DEVICE), torch.full((1, 1), 10**6, device=DEVICE)
    for splits in (1, 2):
        out = torch.full_like(q, 7.0)
        decode.decode_attention(q, pages.keys, pages.values, empty, table, empty, splits, out)
        assert torch.equal(out, torch.zeros_like(q))
    decode.decode_attention(q, pages.keys, pages.values, empty[:0], table[:0], empty[:0], 1, q)


def test_splits_fill_the_machine_and_no_more() -> None:
    assert decode.num_splits(1, 8, 100_000, 264) == 64  # 33 are wanted
    assert decode.num_splits(1, 8, 600, 264) == 4  # 3 spans of keys
    assert decode.num_splits(64, 8, 100_000, 264) == 1
    assert decode.num_splits(1, 1, 1, 1) == 1


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "page_size", "dtype"),
    [(4, 2, 64, 16, torch.float32), (7, 1, 80, 1, HALF), (3, 3, 20, 64, torch.float32), (4, 1, 128, 64, HALF)],
)
def test_prefill(
    heads: int, kv_heads: int, head_dim: int, page_size: int, dtype: torch.dtype, draw: random.Random
) -> None:
    """Chunks after a cached prefix, one of a single token; between them rows of others, which stay as they are."""
    lengths = [(2, 3), (70, 71), (1, 90), (20, 20 + draw.randrange(1, 64))]
    pages = Pages([kv_len for _, kv_len in lengths], page_size, kv_heads, head_dim, dtype)
    chunks, start = [], 2
    for (q_len, kv_len), own in zip(lengths, pages.owned, strict=True):
        chunks.append(Sequence(start, q_len, kv_len, own))
        start += q_len + 1
    q = torch.randn(start, heads, head_dim, device=DEVICE).to(dtype)
    expected = attend(ReferencePrefill(), q, pages, batch(tuple(chunks)))
    pages.spoil([kv_len for _, kv_len in lengths])
    tokens = prefill.tokens_per_tile(heads, kv_heads, head_dim, q.element_size())
    tiles = prefill.plan_tiles([(chunk.start, chunk.q_len, chunk.kv_len) for chunk in chunks], page_size, tokens)
    out = torch.zeros_like(q)
    prefill.prefill_attention(q, pages.keys, pages.values, torch.cat(pages.owned), tiles.to(DEVICE), tokens, out)
    assert_close(out, expected)


def test_a_group_that_fits_no_block_is_refused() -> None:
    with pytest.raises(ValueError, match="64 query heads per key head"):
        prefill.tokens_per_tile(64, 1, 256, 4)


def test_tiles_cover_every_token_once_and_begin_with_the_longest() -> None:
    chunks = [(0, 5, 5), (5, 1, 100), (6, 33, 40)]
    tiles = prefill.plan_tiles(chunks, page_size=16, tokens=16)
    covered = sorted(
        start + token for _, first, start, q_len, _ in tiles.tolist() for token in range(first, min(first + 16, q_len))
    )
    assert covered == list(range(39))
    assert tiles[0].tolist() == [1, 0, 5, 1, 100]
    assert tiles[1].tolist() == [8, 32, 6, 33, 40]


@pytest.mark.parametrize(
    ("lengths", "heads", "head_dim", "dtype"),
    [([64, 64, 16, 1], 1, 80, torch.float32), ([130, 0, 67], 2, 32, HALF), ([], 2, 16, torch.float32)],
)
def test_packed(lengths: list[int], heads: int, head_dim: int, dtype: torch.dtype) -> None:
    """Windows, images of odd sizes, none at all; q, k and v are slices of one projection."""
    projected = torch.randn(sum(lengths), 3, heads, head_dim, device=DEVICE).to(dtype)
    q, k, v = projected.unbind(1)
    segments = Segments.from_lengths(lengths).to(DEVICE)
    expected = plain.packed_attention(q, k, v, segments.groups, segments.tiles)
    assert_close(triton_ops.packed_attention(q, k, v, segments.groups, segments.tiles), expected)
