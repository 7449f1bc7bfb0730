"""A video's frames to the patches that a vision tower reads, equal to transformers' video processors of the families.

Frames are decoded one by one and resized at once, so that memory holds the small ones only. Resizing is PyTorch's, as
in transformers: Pillow rounds other bits. Runs in threads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's customary name
from torch import Tensor

from epd_runtime.encoder.preprocess import CLIP_MEAN, CLIP_STD, ImageError, decode_image, read_mean_and_std
from epd_runtime.messages import ImageInput
from epd_runtime.video_config import read_video_settings
from epd_runtime.video_file import Frame, VideoError, read_frames, unpack_frames
from epd_runtime.vision_config import VisionConfig

RESAMPLING = {2: "bilinear", 3: "bicubic"}  # PIL's numbers
HALVES = (0.5, 0.5, 0.5)


@dataclasses.dataclass(frozen=True)
class VideoNormalisation:
    """(value - scale * mean) / (scale * std) per channel, and the filter that resizes frames."""

    scale: float  # 255 for means and deviations of values up to 1
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: str

    @classmethod
    def load(cls, folder: Path, vision: VisionConfig) -> VideoNormalisation:
        """Read the model's settings; absent ones are the family's. Raises ModelConfigError."""
        raw = read_video_settings(folder)
        mean, std = read_mean_and_std(raw, *((HALVES, HALVES) if vision.has_timestamps else (CLIP_MEAN, CLIP_STD)))
        if (resample := RESAMPLING.get(raw.values.get("resample", 3))) is None:
            raw.refuse("resample", "2 (bilinear) or 3 (bicubic)")
        if not raw.boolean("do_normalize", True):
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        scale = 1.0 / raw.number("rescale_factor", 1 / 255) if raw.boolean("do_rescale", True) else 1.0
        return cls(scale, mean, std, resample)

    def apply(self, patches: Tensor, channels: int) -> Tensor:
        """uint8 [n, channels * area] -> float32 of the same shape, on the patches' device; bits as the reference's."""
        values = torch.tensor((self.mean, self.std), device=patches.device) * self.scale
        mean, std = values[:, :, None]
        return patches.view(patches.shape[0], channels, -1).float().sub_(mean).div_(std).flatten(1)


def read_video_patches(video: ImageInput, vision: VisionConfig, resample: str, max_pixels: int) -> Tensor:
    """Decode, resize to the grid and cut: uint8 [t * h * w, channels * frames * patch * patch] in merge-block order.

    The last frame fills up the last patch of frames. Raises ImageError for data that cannot be decoded.
    """
    t, rows, columns = video.grid
    step, side, merge = vision.temporal_patch_size, vision.patch_size, vision.merge_size
    clip = torch.empty((t * step, 3, rows * side, columns * side), dtype=torch.uint8)
    count = 0
    try:
        for frame in _frames(video, max_pixels):
            clip[count] = resize(frame, rows * side, columns * side, resample)
            count += 1
    except VideoError as error:
        raise ImageError(str(error)) from None
    clip[count:] = clip[count - 1]
    blocks = clip.view(t, step, 3, rows // merge, merge, side, columns // merge, merge, side)
    return blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * rows * columns, -1)


def resize(frame: Frame, height: int, width: int, resample: str) -> Tensor:
    """uint8 [h, w, 3] -> uint8 [3, height, width]."""
    pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1).contiguous()
    if pixels.shape[1:] == (height, width):
        return pixels
    return F.interpolate(pixels[None], size=(height, width), mode=resample, antialias=True)[0]


def _frames(video: ImageInput, max_pixels: int) -> Iterator[Frame]:
    assert video.video is not None
    if not video.video.is_list:
        yield from read_frames(video.data, video.video.frames, max_pixels)
        return
    for index, data in enumerate(unpack_frames(video.data)):
        try:
            yield np.array(decode_image(data, max_pixels))
        except ImageError as error:
            raise ImageError(f"frame {index}: {error}") from None
