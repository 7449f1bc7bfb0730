"""Vision towers padded to the sizes of CUDA graphs give the rows that they give without."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from epd_runtime.encoder import tower_graphs
from epd_runtime.encoder.tower_graphs import PaddedTower, graph_tokens
from epd_runtime.kernels import ops
from epd_runtime.model_config import load_model_config
from epd_runtime.models.registry import load_vision_tower
from epd_runtime.models.vision import Grid, VisionTower
from random_models import make_random
from triton_device import DEVICE


@pytest.fixture(scope="module")
def draw() -> random.Random:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    torch.manual_seed(seed)
    return random.Random(seed)


def load(family: str, folder: Path, draw: random.Random) -> VisionTower:
    model = make_random(family, folder, draw)
    tower = load_vision_tower(load_model_config(model), model, DEVICE, torch.float32, None)
    assert tower is not None
    return tower


def pixels(tower: VisionTower, grids: list[Grid]) -> torch.Tensor:
    patches = sum(t * h * w for t, h, w in grids)
    return torch.randn(patches, 3 * tower.config.patch_size**2, device=DEVICE)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@torch.inference_mode()
def test_padded_towers_give_the_same_rows(family: str, tmp_path: Path, draw: random.Random) -> None:
    """A larger batch before a smaller one leaves nothing behind; what fits no size runs as it is."""
    tower = load(family, tmp_path, draw)
    padded = PaddedTower(tower, (8, 32), DEVICE)
    side = 2 * tower.config.merge_size
    batches: list[list[Grid]] = [
        [(1, side, 2 * side), (1, side, side)], [(1, side, side)], [(1, 2, 14), (1, 4, 2)], [(1, 4 * side, 3 * side)],
    ]  # fmt: skip
    used: list[int] = []
    for grids in batches:
        image = pixels(tower, grids)
        expected = tower(image, grids)
        buffers = [size for size, one in padded._sizes.items() if one.takes(image, tower.plan(grids))]
        used.append(buffers[0] if buffers else 0)
        torch.testing.assert_close(padded(image, grids), expected, rtol=1e-5, atol=1e-5)
    assert used == [128, 32, 128, 0]


@torch.inference_mode()
def test_a_graph_needs_nothing_but_what_lies_in_the_buffers(
    tmp_path: Path, draw: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the kernels that a graph would hold: the same inputs serve one batch after the other."""
    monkeypatch.setattr(tower_graphs, "SPARE_TILES", 2)  # few, for the interpreter
    tower = load("qwen2_5_vl", tmp_path, draw)
    buffers = PaddedTower(tower, (16,), DEVICE)._sizes[64]
    inputs = buffers.inputs
    batches: list[list[Grid]] = [[(1, 6, 4), (1, 2, 6)], [(1, 4, 4)]]
    images = [pixels(tower, grids) for grids in batches]
    expected = [tower(image, grids) for image, grids in zip(images, batches, strict=True)]
    ops.choose("triton")
    try:
        for image, grids, rows in zip(images, batches, expected, strict=True):
            buffers.load(image, tower.plan(grids))
            torch.testing.assert_close(tower.compute(*inputs)[: len(rows)], rows, rtol=1e-4, atol=1e-4)
    finally:
        ops.choose("plain")


def test_videos_run_as_they_are(tmp_path: Path, draw: random.Random) -> None:
    """Their patches have several frames, and are wider."""
    tower = load("qwen2_vl", tmp_path, draw)
    buffers = PaddedTower(tower, (16,), DEVICE)._sizes[64]
    image = pixels(tower, [(1, 4, 4)])
    assert buffers.takes(image, tower.plan([(1, 4, 4)]))
    assert not buffers.takes(torch.cat((image, image), dim=1), tower.plan([(1, 4, 4)]))


def test_sizes() -> None:
    assert graph_tokens(0) == ()
    assert graph_tokens(63) == ()
    assert graph_tokens(300) == (64, 128, 256)
