"""Preprocessing and vision tower against transformers; the cache; batches with bad images."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from epd_runtime.accelerator import DeviceLostError
from epd_runtime.encoder.cache import EmbeddingCache
from epd_runtime.encoder.preprocess import ImageError, Normalisation, read_patches
from epd_runtime.encoder.vision_runner import Encoded, VisionRunner
from epd_runtime.messages import ImageInput
from epd_runtime.model_config import VisionConfig
from epd_runtime.models.loader import load_weights
from epd_runtime.models.names import vision_names
from epd_runtime.models.qwen2_5_vl import NAMES, Qwen25VisionTower

CPU = torch.device("cpu")
SIZES = [(28, 28), (300, 200), (57, 501), (640, 480), (29, 140)]
VISION = VisionConfig(
    depth=3, hidden_size=32, intermediate_size=48, num_heads=2, in_channels=3, patch_size=14, temporal_patch_size=2,
    merge_size=2, window_size=56, full_attention_blocks=frozenset({1}), out_hidden_size=24, rope_theta=10000.0,
)  # fmt: skip


def picture(width: int, height: int, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def towers(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Qwen2_5_VisionTransformerPretrainedModel, Qwen25VisionTower]:
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 24,
            "window_size": 56, "fullatt_block_indexes": [1], "initializer_range": 0.2,
        }
    ).vision_config  # fmt: skip
    theirs = Qwen2_5_VisionTransformerPretrainedModel._from_config(config).eval()
    ours = Qwen25VisionTower(VISION).requires_grad_(False).eval()
    folder = tmp_path_factory.mktemp("tower")
    save_file({f"visual.{name}": tensor for name, tensor in theirs.state_dict().items()}, folder / "m.safetensors")
    load_weights(ours, folder, vision_names(NAMES, VISION.intermediate_size))
    return theirs, ours


@pytest.mark.parametrize("size", SIZES)
def test_patches_equal_the_image_processor(size: tuple[int, int]) -> None:
    data = picture(*size)
    processor = Qwen2VLImageProcessorPil()
    expected = processor(Image.open(io.BytesIO(data)), return_tensors="pt")
    grid = tuple(expected["image_grid_thw"][0].tolist())
    normalisation = Normalisation.load(Path("/nonexistent"))
    patches = torch.from_numpy(read_patches(data, grid, VISION, normalisation.resample, 1 << 26))
    single = expected["pixel_values"].view(-1, 3, 2, 14 * 14)[:, :, 0].flatten(1)  # both frames are equal
    torch.testing.assert_close(normalisation.apply(patches, 3), single, rtol=0, atol=2e-6)


def test_tower_equals_transformers(towers: tuple[Qwen2_5_VisionTransformerPretrainedModel, Qwen25VisionTower]) -> None:
    theirs, ours = towers
    grids = [(1, 10, 14), (1, 2, 2), (1, 8, 6), (1, 2, 30), (1, 10, 14)]
    patches = torch.randn(sum(h * w for _, h, w in grids), 3, 1, 14 * 14)
    with torch.inference_mode():
        expected = theirs(patches.expand(-1, -1, 2, -1).flatten(1), torch.tensor(grids)).pooler_output
        torch.testing.assert_close(ours(patches.flatten(1), grids), expected, rtol=1e-4, atol=1e-5)


def test_an_image_does_not_depend_on_its_batch(
    towers: tuple[Qwen2_5_VisionTransformerPretrainedModel, Qwen25VisionTower],
) -> None:
    _, ours = towers
    grids = [(1, 4, 6), (1, 10, 10)]
    patches = torch.randn(24 + 100, 3 * 14 * 14)
    with torch.inference_mode():
        together = ours(patches, grids)
        torch.testing.assert_close(together[6:], ours(patches[24:], grids[1:]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "data", [b"", b"not an image", picture(40, 40)[:200], b"\x89PNG\r\n\x1a\n" + b"\0" * 100, b"<svg/>"]
)
def test_broken_files_raise_image_errors(data: bytes) -> None:
    with pytest.raises(ImageError):
        read_patches(data, (1, 2, 2), VISION, 3, 1 << 26)


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    file = io.BytesIO()
    Image.new("1", (20000, 20000)).save(file, "PNG")
    with pytest.raises(ImageError, match="20000x20000"):
        read_patches(file.getvalue(), (1, 2, 2), VISION, 3, 1 << 26)


def test_cache_is_bounded_and_forgets_the_oldest() -> None:
    cache = EmbeddingCache(max_bytes=3 * 400)
    for name in "abc":
        cache.put(name, torch.zeros(100))
    cache.get("a")
    cache.put("d", torch.zeros(100))
    assert cache.get("b") is None
    assert cache.get("a") is not None
    assert cache.nbytes == 1200
    cache.put("huge", torch.zeros(1000))
    assert cache.get("huge") is None


def test_runner_batches_shares_and_isolates_bad_images(
    towers: tuple[Qwen2_5_VisionTransformerPretrainedModel, Qwen25VisionTower],
) -> None:
    runner = VisionRunner(towers[1], Path("/nonexistent"), CPU, 8, 1 << 26, 1 << 20, lambda: None)
    results: dict[str, Encoded] = {}

    def submit(name: str, data: bytes, content: str) -> None:
        image = ImageInput(content, (1, 4, 4), 0, 4, data)
        runner.submit(image, lambda encoded: results.__setitem__(name, encoded), lambda: True)

    submit("one", picture(56, 56, 1), "one")
    submit("again", picture(56, 56, 1), "one")
    submit("bad", b"garbage", "bad")
    submit("two", picture(56, 56, 2), "two")
    assert runner.num_pending == 3
    deadline = time.monotonic() + 20
    while len(results) < 4 and time.monotonic() < deadline:
        runner.step()
        time.sleep(0.01)
    assert results["one"].embedding is results["again"].embedding
    assert results["one"].embedding is not None
    assert results["one"].embedding.shape == (4, 24)
    assert "cannot be decoded" in results["bad"].error
    assert results["bad"].status == 400
    assert results["two"].embedding is not None
    assert runner.num_pending == 0
    submit("cached", b"", "one")
    assert results["cached"].embedding is results["one"].embedding


def drain(runner: VisionRunner, seconds: float = 20.0) -> None:
    """Step until nothing is pending."""
    deadline = time.monotonic() + seconds
    while runner.num_pending:
        assert time.monotonic() < deadline, "an image never ended"
        runner.step()
        time.sleep(0.002)


def test_an_image_that_the_tower_cannot_take_fails_alone(
    towers: tuple[Qwen2_5_VisionTransformerPretrainedModel, Qwen25VisionTower], monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = towers[1]
    forward = tower.forward

    def limited(pixels: torch.Tensor, grids: list[tuple[int, int, int]]) -> torch.Tensor:
        if len(grids) > 1 or grids[0][2] > 4:
            raise RuntimeError("out of memory")
        return forward(pixels, grids)

    monkeypatch.setattr(tower, "forward", limited)
    runner = VisionRunner(tower, Path("/nonexistent"), CPU, 8, 1 << 26, 1 << 20, lambda: None)
    results: dict[str, Encoded] = {}
    for name, width in (("small", 4), ("large", 6), ("other", 4)):
        image = ImageInput(name, (1, 4, width), 0, width, picture(14 * width, 56))
        runner.submit(image, lambda encoded, name=name: results.__setitem__(name, encoded), lambda: True)  # type: ignore[misc]
    drain(runner)
    assert results["small"].embedding is not None
    assert results["other"].embedding is not None
    assert (results["large"].status, results["large"].error) == (500, "the vision tower failed: out of memory")


def test_an_error_that_the_device_keeps_ends_the_engine(
    towers: tuple[Qwen2_5_VisionTransformerPretrainedModel, Qwen25VisionTower], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(pixels: torch.Tensor, grids: list[tuple[int, int, int]]) -> torch.Tensor:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(towers[1], "forward", broken)
    runner = VisionRunner(towers[1], Path("/nonexistent"), CPU, 8, 1 << 26, 1 << 20, lambda: None)
    runner.submit(ImageInput("any", (1, 4, 4), 0, 4, picture(56, 56)), lambda _: None, lambda: True)
    with pytest.raises(DeviceLostError, match="device-side assert"):
        drain(runner)


def test_images_that_nobody_wants_any_more_cost_nothing(
    towers: tuple[Qwen2_5_VisionTransformerPretrainedModel, Qwen25VisionTower],
) -> None:
    runner = VisionRunner(towers[1], Path("/nonexistent"), CPU, 8, 1 << 26, 1 << 20, lambda: None)
    called: list[str] = []
    image = ImageInput("left", (1, 4, 4), 0, 4, picture(56, 56))
    runner.submit(image, lambda _: called.append("left"), lambda: False)
    drain(runner)
    assert called == []
    assert runner.cache.nbytes == 0


def test_an_image_dropped_by_one_client_and_wanted_by_the_next_is_computed(
    towers: tuple[Qwen2_5_VisionTransformerPretrainedModel, Qwen25VisionTower],
) -> None:
    looked = threading.Event()
    runner = VisionRunner(towers[1], Path("/nonexistent"), CPU, 8, 1 << 26, 1 << 20, looked.set)
    called: list[Encoded] = []
    image = ImageInput("shared", (1, 4, 4), 0, 4, picture(56, 56))
    runner.submit(image, lambda _: None, lambda: False)
    assert looked.wait(20), "the thread has not looked at the image"
    runner.submit(image, called.append, lambda: True)
    drain(runner)
    assert len(called) == 1
    assert called[0].embedding is not None
