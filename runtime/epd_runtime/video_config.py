"""How videos become frames and frames become patches, as the model folder says: for both processes.

Two schools. Qwen2-VL and Qwen2.5-VL bound the pixels of one frame and write a video as one run of placeholders;
Qwen3-VL bounds the pixels of all frames together and writes the time before each pair of frames.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from epd_runtime.json_fields import Fields, ModelConfigError
from epd_runtime.vision_config import VisionConfig

DEFAULT_FPS = 2.0
BUDGET_SHARE = 0.9  # of max_video_tokens that one video may take, with cap_pixels_per_frame


@dataclasses.dataclass(frozen=True)
class VideoConfig:
    """Sampling and sizes. Pixels are those of one frame, or of all frames together when has_timestamps."""

    has_timestamps: bool  # Qwen3-VL's school
    factor: int  # both sides of a resized frame are multiples of it
    temporal_patch_size: int  # frames of one patch
    min_pixels: int
    max_pixels: int
    fps: float  # frames to read per second of a video file
    min_frames: int
    max_frames: int
    num_frames: int | None  # instead of fps
    caps_frames: bool  # pixels of a frame are bounded by max_video_tokens too
    max_video_tokens: int
    tokens_per_second: int  # temporal positions of a second; 0: positions count patches of frames


def read_video_settings(folder: Path) -> Fields:
    """What a model folder says about preprocessing videos; the settings for images where it says nothing."""
    raw = Fields.read(folder / "processor_config.json", optional=True).object("video_processor")
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        raw = raw if raw.values else Fields.read(folder / name, optional=True)
    return raw


def read_video_config(folder: Path, vision: VisionConfig) -> VideoConfig:
    """The folder's settings, with the family's defaults; raises ModelConfigError."""
    raw = read_video_settings(folder)
    if not raw.boolean("do_resize", True):
        raw.refuse("do_resize", "true: frames of any size must become whole patches")
    for name in ("patch_size", "temporal_patch_size", "merge_size"):
        if raw.integer(name, getattr(vision, name)) != getattr(vision, name):
            raw.refuse(name, f"{getattr(vision, name)}, as config.json's vision_config says")
    factor = vision.patch_size * vision.merge_size
    lowest, highest = _pixels(raw, vision.has_timestamps)
    config = VideoConfig(
        has_timestamps=vision.has_timestamps,
        factor=factor,
        temporal_patch_size=vision.temporal_patch_size,
        min_pixels=lowest,
        max_pixels=highest,
        fps=raw.number("fps", DEFAULT_FPS),
        min_frames=raw.integer("min_frames", 4),
        max_frames=raw.integer("max_frames", 768),
        num_frames=raw.integer("num_frames") if "num_frames" in raw else None,
        caps_frames=raw.boolean("cap_pixels_per_frame", False),
        max_video_tokens=raw.integer("max_video_tokens", 768 if vision.has_timestamps else 128000),
        tokens_per_second=vision.tokens_per_second,
    )
    if config.min_pixels > config.max_pixels or config.min_frames > config.max_frames:
        raise ModelConfigError(f"{raw.where}: the least number of pixels or frames of a video is above the largest")
    return config


def _pixels(raw: Fields, has_timestamps: bool) -> tuple[int, int]:
    """Least and largest number of pixels; only the older family lets min_pixels and max_pixels replace `size`."""
    side = 32 if has_timestamps else 28
    size = raw.object("size")
    lowest = size.integer("shortest_edge", 128 * side * side)
    highest = size.integer("longest_edge", 768 * side * side)
    if has_timestamps:
        return lowest, highest
    return raw.integer("min_pixels", lowest), raw.integer("max_pixels", highest)
