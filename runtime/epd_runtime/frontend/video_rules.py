"""Which frames of a video are read, how large they become, and when they were: pure, equal to transformers'.

The API process of a prefill worker and that of an encoder both come here, so that the number of placeholders and the
number of embedding rows are the same.
"""

from __future__ import annotations

import math

import numpy as np

from epd_runtime.frontend.errors import bad_request
from epd_runtime.frontend.images import ResizeRule, smart_resize
from epd_runtime.messages import VideoOptions
from epd_runtime.video_config import BUDGET_SHARE, VideoConfig


def sample_frames(total: int, rate: float, asked: VideoOptions, config: VideoConfig, param: str) -> tuple[int, ...]:
    """Indices of the frames to read out of `total`, of which the file shows `rate` per second.

    Raises RequestError 400 naming param when more frames are asked for than the video has.
    """
    fps = asked.fps or (None if asked.num_frames or config.num_frames else config.fps)
    least, most = asked.min_frames or config.min_frames, min(asked.max_frames or config.max_frames, config.max_frames)
    wanted = total / rate * fps if fps else float(asked.num_frames or config.num_frames or 0)
    if not fps and not 1 <= wanted <= min(total, config.max_frames):
        raise bad_request(
            f"{param}: {wanted:g} frames are asked for; the video has {total}, and this model reads at most "
            f"{config.max_frames}",
            param,
        )
    if config.has_timestamps:
        count = int(wanted) if not fps else min(max(int(wanted), least), most, total)
        return tuple(np.linspace(0, total - 1, max(count, 1)).round().astype(int).tolist())
    step = config.temporal_patch_size
    if not fps:
        count = min(round(wanted / step), total // step) * step
    else:
        count = math.floor(min(max(wanted, least), most // step * step, total) / step) * step
    count = max(count, min(total, step))
    # In whole numbers: the quotient of floats now and then gives one index more, behind the last frame.
    return tuple(index * total // count for index in range(count))


def frame_size(count: int, height: int, width: int, config: VideoConfig) -> tuple[int, int]:
    """(height, width) in pixels to which `count` frames of the given size are resized."""
    if not config.has_timestamps:
        highest = config.max_pixels
        if config.caps_frames:
            budget = int(config.max_video_tokens * config.factor**2 * BUDGET_SHARE)
            share = budget * config.temporal_patch_size // count
            highest = max(min(highest, share), int(config.min_pixels * 1.05))
        return smart_resize(height, width, ResizeRule(config.factor, config.min_pixels, highest))
    return _clip_size(max(count, config.temporal_patch_size), height, width, config)


def _clip_size(count: int, height: int, width: int, config: VideoConfig) -> tuple[int, int]:
    """Qwen3-VL's rule: the bounds are for all frames together. Rounds half to even."""
    factor, step, highest = config.factor, config.temporal_patch_size, config.max_pixels
    if config.caps_frames:
        cap = min(config.max_video_tokens * factor**2, highest // count)
        highest = max(cap, int(config.min_pixels * 1.05)) * count
    if min(height, width) < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    rounded = round(height / factor) * factor, round(width / factor) * factor
    volume = round(count / step) * step * rounded[0] * rounded[1]
    if volume > highest:
        shrink = math.sqrt(count * height * width / highest)
        shrunk = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
        return next(shrunk), next(shrunk)
    if volume < config.min_pixels:
        grow = math.sqrt(config.min_pixels / (count * height * width))
        grown = (math.ceil(side * grow / factor) * factor for side in (height, width))
        return next(grown), next(grown)
    return rounded


def timestamps(frames: tuple[int, ...], rate: float, step: int) -> list[str]:
    """The text before each patch of `step` frames: the middle between its first and last frame, in seconds."""
    padded = (*frames, *(frames[-1:] * (-len(frames) % step)))
    times = [index / rate for index in padded]
    return [f"<{(times[i] + times[i + step - 1]) / 2:.1f} seconds>" for i in range(0, len(times), step)]
