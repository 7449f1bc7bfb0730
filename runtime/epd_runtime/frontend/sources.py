"""What a body says about one image or video, checked and in one form, whichever API it came through.

image   a source: http(s) URL, data URL or base64 string
video   a source of a video file, or a list of sources of its frames; fps, nframes, min_frames, max_frames beside
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from epd_runtime.frontend.errors import RequestError, bad_request
from epd_runtime.messages import VideoOptions

MAX_FRAMES = 1 << 20  # of any option; the model's own limit is lower
NOT_SUPPORTED = (
    "min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width", "video_start", "video_end",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class MediaSource:
    """Where one image or video comes from."""

    urls: tuple[str, ...]  # of its file, or of its frames
    video: VideoOptions | None = None  # None: an image
    is_frames: bool = False


def image_source(value: Any, where: str) -> MediaSource:
    """An image, from a string or an object with a url; raises RequestError 400 naming `where`."""
    return MediaSource((_url(value, where),))


def video_source(part: dict[str, Any], field: str, where: str) -> MediaSource:
    """A video, from part[field] and the options beside and inside of it; raises RequestError 400."""
    value = part.get(field)
    options = {**value, **part} if isinstance(value, dict) else part
    for name in NOT_SUPPORTED:
        if options.get(name) is not None:
            raise bad_request(f"{where}.{name} is not supported by this server; leave it out", where)
    video = VideoOptions(
        _rate(options.get("fps"), where),
        _count(options, "num_frames" if options.get("nframes") is None else "nframes", where),
        _count(options, "min_frames", where),
        _count(options, "max_frames", where),
    )
    if video.fps and video.num_frames:
        raise bad_request(f"{where}: fps and nframes exclude each other; send one of them", where)
    frames = value.get("url") if isinstance(value, dict) else value
    if not isinstance(frames, list):
        return MediaSource((_url(value, f"{where}.{field}"),), video)
    if not frames:
        raise bad_request(f"{where}.{field} is an empty list; send at least one frame", where)
    urls = tuple(_url(frame, f"{where}.{field}[{index}]") for index, frame in enumerate(frames))
    return MediaSource(urls, video, is_frames=True)


def native_video(item: Any, where: str) -> MediaSource:
    """A video of /generate and /encode: a source, a list of frames, or an object with `url` or `video`."""
    if not isinstance(item, dict):
        return video_source({"video": item}, "video", where)
    return video_source(item, "video" if item.get("video") is not None else "url", where)


def _url(value: Any, where: str) -> str:
    if isinstance(value, dict):
        value = value.get("url")
    if not isinstance(value, str) or not value:
        raise bad_request(f"{where} must be an http(s) URL, a data URL or a base64 string", where)
    return value


def _rate(value: Any, where: str) -> float | None:
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not 0 < value <= MAX_FRAMES:
        raise _wrong("fps", "a number above 0", value, where)
    return float(value)


def _count(options: dict[str, Any], name: str, where: str) -> int | None:
    value = options.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_FRAMES:
        raise _wrong(name, f"an integer from 1 to {MAX_FRAMES}", value, where)
    return value


def _wrong(name: str, allowed: str, value: Any, where: str) -> RequestError:
    return bad_request(f"{where}.{name} must be {allowed}, not {str(value)[:40]!r}", where)
