"""Image files of every kind against transformers' image processor: the same grid from the header, the same pixels."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from epd_runtime.encoder.preprocess import ImageError, Normalisation, read_patches
from epd_runtime.frontend.errors import RequestError
from epd_runtime.frontend.images import ImageLimits, read_size, smart_resize
from epd_runtime.frontend.model_folder import load_model_folder
from epd_runtime.json_fields import ModelConfigError
from epd_runtime.vision_config import VisionConfig
from random_models import HANDWRITING, copy_tokenizer

LIMITS = ImageLimits(4, 1 << 24, 1 << 24)


@pytest.fixture
def draw() -> random.Random:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    return random.Random(seed)


def noise(draw: random.Random, size: tuple[int, int], channels: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    generator = np.random.default_rng(draw.randrange(2**31))
    return generator.integers(0, 256, (size[1], size[0], channels), np.uint8)


def saved(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def palette(draw: random.Random, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(noise(draw, size, 3)).convert("P", palette=Image.Palette.ADAPTIVE, colors=40)


def grey(draw: random.Random, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(noise(draw, size, 1)[..., 0])


def deep(draw: random.Random, size: tuple[int, int]) -> Image.Image:
    low, high = (noise(draw, size, 1)[..., 0].astype(np.uint16) for _ in range(2))
    return Image.fromarray(high % 8 * 256 + low)


def turned(draw: random.Random, size: tuple[int, int]) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = draw.randrange(1, 9)
    return saved(Image.fromarray(noise(draw, size, 3)), draw.choice(["PNG", "JPEG", "WEBP"]), exif=exif)


def turned_alpha(draw: random.Random, size: tuple[int, int]) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = draw.randrange(5, 9)
    return saved(Image.fromarray(noise(draw, size, 4)), exif=exif)


KINDS: dict[str, Callable[[random.Random, tuple[int, int]], bytes]] = {
    "rgb": lambda draw, size: saved(Image.fromarray(noise(draw, size, 3))),
    "rgba": lambda draw, size: saved(Image.fromarray(noise(draw, size, 4)), draw.choice(["PNG", "WEBP"])),
    "grey and alpha": lambda draw, size: saved(Image.fromarray(noise(draw, size, 2), "LA")),
    "grey": lambda draw, size: saved(grey(draw, size), draw.choice(["PNG", "JPEG", "BMP"])),
    "grey, one shade transparent": lambda draw, size: saved(grey(draw, size), transparency=draw.randrange(256)),
    "rgb, one colour transparent": lambda draw, size: saved(Image.new("RGB", size, (9, 9, 9)), transparency=(9, 9, 9)),
    "palette": lambda draw, size: saved(palette(draw, size), draw.choice(["PNG", "GIF", "BMP"])),
    "palette, one transparent": lambda draw, size: saved(
        palette(draw, size), draw.choice(["PNG", "GIF"]), transparency=draw.randrange(8)
    ),
    "palette, all alphas": lambda draw, size: saved(palette(draw, size), transparency=bytes(range(0, 200, 5))),
    "bits": lambda draw, size: saved(grey(draw, size).convert("1")),
    "16 bit": lambda draw, size: saved(deep(draw, size)),
    "cmyk": lambda draw, size: saved(Image.fromarray(noise(draw, size, 3)).convert("CMYK"), "JPEG"),
    "turned": turned,
    "turned, with alpha": turned_alpha,
}


def settings(patch: int) -> tuple[Path, Qwen2VLImageProcessorPil]:
    """The handwriting model's processor, with patches of another size."""
    raw = json.loads((HANDWRITING / "preprocessor_config.json").read_text())
    return HANDWRITING, Qwen2VLImageProcessorPil(**{**raw, "patch_size": patch})


def vision(patch: int) -> VisionConfig:
    return VisionConfig(
        depth=1, hidden_size=8, intermediate_size=8, num_heads=2, in_channels=3, patch_size=patch,
        temporal_patch_size=2, merge_size=2, out_hidden_size=8, rope_theta=1e4,
    )  # fmt: skip


SIZES = [(1, 1), (1, 200), (200, 1), (3, 590), (28, 28), (13, 57), (600, 450)]


@pytest.mark.parametrize("patch", [14, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_grid_and_pixels_equal_the_image_processor(kind: str, patch: int, draw: random.Random) -> None:
    folder, processor = settings(patch)
    model, normalisation = load_model_folder(str(folder)), Normalisation.load(folder)
    assert model.resize is not None
    rule = type(model.resize)(2 * patch, model.resize.min_pixels, model.resize.max_pixels)
    for size in draw.sample(SIZES, 3):
        data = KINDS[kind](draw, size)
        opened = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        theirs = processor(opened, return_tensors="pt")
        height, width = smart_resize(*read_size(data, LIMITS, "image 0"), rule)
        grid = (1, height // patch, width // patch)
        assert grid == tuple(theirs["image_grid_thw"][0].tolist())
        patches = torch.from_numpy(read_patches(data, grid, vision(patch), normalisation.resample, 1 << 24))
        frames = theirs["pixel_values"].view(-1, 3, 2, patch * patch)
        assert torch.equal(normalisation.apply(patches, 3), frames[:, :, 0].flatten(1))
        assert torch.equal(frames[:, :, 0], frames[:, :, 1]), "a still clip"


def test_what_the_processor_refuses_is_refused() -> None:
    processor = settings(14)[1]
    for size in ((1, 201), (201, 1)):
        image = Image.new("RGB", size)
        with pytest.raises(ValueError, match="aspect ratio"):
            processor(image)
        with pytest.raises(RequestError, match="aspect ratio"):
            read_size(saved(image), LIMITS, "image 0")


def test_truncated_files_are_refused_by_name(draw: random.Random) -> None:
    for form in ("PNG", "JPEG", "GIF", "WEBP", "BMP"):
        data = saved(Image.fromarray(noise(draw, (90, 90), 3)), form)
        with pytest.raises(ImageError, match="cannot be decoded"):
            read_patches(data[: len(data) // 2], (1, 6, 6), vision(14), Image.Resampling.BICUBIC, 1 << 24)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("do_resize", False), ("patch_size", 16), ("merge_size", 3), ("temporal_patch_size", 1), ("min_pixels", -1),
        ("max_pixels", "x"), ("size", []), ("min_pixels", 10**9),
    ],
)  # fmt: skip
def test_image_settings_that_do_not_fit_the_tower_are_named(tmp_path: Path, field: str, value: Any) -> None:
    copy_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text((HANDWRITING / "config.json").read_text())
    raw = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(raw | {field: value}))
    with pytest.raises(ModelConfigError, match=field if value != 10**9 else "number of pixels"):
        load_model_folder(str(tmp_path))
