"""An image file to the patches that a vision tower reads, equal to transformers' Qwen2VLImageProcessorPil.

Patches stay uint8 until they are on the device; normalisation happens there. Runs in threads: PIL and numpy release the
interpreter lock for the expensive parts.
"""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from epd_runtime.json_fields import Fields
from epd_runtime.vision_config import VisionConfig, read_image_settings

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
Image.MAX_IMAGE_PIXELS = None  # the configured bound below takes the place of PIL's own, which only warns at first
Channels = tuple[float, ...]  # one value per channel
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


class ImageError(ValueError):
    """The file's header was fine but its content is not; the message is for the client."""


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """(value * rescale - mean) / std per channel, from preprocessor_config.json or processor_config.json."""

    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: Image.Resampling

    @classmethod
    def load(cls, folder: Path) -> Normalisation:
        """Read the model's settings; absent ones are Qwen2-VL's defaults. Raises ModelConfigError."""
        raw = read_image_settings(folder)
        mean, std = read_mean_and_std(raw, CLIP_MEAN, CLIP_STD)
        return cls(
            rescale=raw.number("rescale_factor", 1 / 255) if raw.boolean("do_rescale", True) else 1.0,
            mean=mean if raw.boolean("do_normalize", True) else (0.0, 0.0, 0.0),
            std=std if raw.boolean("do_normalize", True) else (1.0, 1.0, 1.0),
            resample=_resampling(raw),
        )

    def apply(self, patches: Tensor, channels: int) -> Tensor:
        """uint8 [n, channels * area] -> float32 of the same shape, on the patches' device.

        Rescaled in float64 and normalised in float32, as the reference does: the bits are equal.
        """
        mean, std = (torch.tensor(values, device=patches.device)[:, None] for values in (self.mean, self.std))
        rescaled = patches.view(patches.shape[0], channels, -1).double().mul_(self.rescale).float()
        return rescaled.sub_(mean).div_(std).flatten(1)


def read_mean_and_std(raw: Fields, mean: Channels, std: Channels) -> tuple[Channels, Channels]:
    """image_mean and image_std of the settings, or those given; raises ModelConfigError."""
    mean, std = raw.numbers("image_mean", mean), raw.numbers("image_std", std)
    if len(mean) != 3:
        raw.refuse("image_mean", "three numbers")
    if len(std) != 3 or min(std) <= 0:
        raw.refuse("image_std", "three numbers above 0")
    return mean, std


def _resampling(raw: Fields) -> Image.Resampling:
    try:
        return Image.Resampling(raw.values.get("resample", Image.Resampling.BICUBIC))
    except ValueError:
        raw.refuse("resample", "a filter of PIL, 0 to 5")


def read_patches(
    data: bytes, grid: tuple[int, int, int], vision: VisionConfig, resample: Image.Resampling, max_pixels: int
) -> npt.NDArray[np.uint8]:
    """Decode, resize to the grid and cut: uint8 [h * w, channels * patch * patch] in merge-block order.

    Raises ImageError for files that cannot be decoded or have more than max_pixels.
    """
    _, rows, columns = grid
    side, merge = vision.patch_size, vision.merge_size
    image = decode_image(data, max_pixels)
    resized = image.resize((columns * side, rows * side), resample=resample)
    pixels = np.asarray(resized, dtype=np.uint8)
    blocks = pixels.reshape(rows // merge, merge, side, columns // merge, merge, side, 3)
    return np.ascontiguousarray(blocks.transpose(0, 3, 1, 4, 6, 2, 5)).reshape(rows * columns, -1)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Three channels of 8 bits; what is transparent becomes white."""
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    background = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(background, image.convert("RGBA")).convert("RGB")


def decode_image(data: bytes, max_pixels: int) -> Image.Image:
    """Upright and RGB; raises ImageError."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)  # reads the header only
        if image.width * image.height > max_pixels:
            raise ImageError(f"the image has {image.width}x{image.height} pixels, more than {max_pixels}")
        return _to_rgb(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except Exception as error:  # PIL raises many types on hostile files
        raise ImageError(f"the image cannot be decoded: {error}") from None
