"""Images and videos of a request: their bytes fetched, their headers read, their sizes after resizing.

Nothing is decoded here; the engine that encodes them gets the same bytes and the grid found here. Files come from
strangers: the number of images, videos and frames, the bytes, pixels and seconds are bounded before they cost anything.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

import msgspec

from epd_runtime.frontend.errors import RequestError, bad_request
from epd_runtime.frontend.images import ImageLimits, check_size, read_size, smart_resize, too_large
from epd_runtime.frontend.media import MediaFetcher
from epd_runtime.frontend.model_folder import ModelFolder
from epd_runtime.frontend.sources import MediaSource
from epd_runtime.frontend.video_rules import frame_size, sample_frames
from epd_runtime.messages import ImageInput, VideoInput, VideoOptions
from epd_runtime.video_config import VideoConfig
from epd_runtime.video_file import VideoError, VideoHeader, pack_frames, read_header

MAX_FETCHES = 16  # frames of one video under way at once
FRAMES_SECONDS = 60.0  # for all of them

Media = tuple[MediaSource, list[bytes]]


class MediaReader:
    """Reads what requests bring, for one model. The fetcher's limits are the reader's."""

    def __init__(self, model: ModelFolder, fetcher: MediaFetcher, limits: ImageLimits) -> None:
        self._model = model
        self._fetcher = fetcher
        self._limits = limits

    async def fetch(self, sources: Sequence[MediaSource]) -> list[Media]:
        """The files of every source, all at once; raises RequestError."""
        self._check_counts(sources)
        names = source_names(sources)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self.fetch_one(*pair)) for pair in zip(sources, names, strict=True)]
        except* RequestError as errors:
            raise _first(errors) from None
        return [task.result() for task in tasks]

    async def fetch_one(self, source: MediaSource, param: str) -> Media:
        """The files of one source: one, or those of a video's frames. Raises RequestError naming `param`."""
        if not source.is_frames:
            return source, [await self._fetcher.fetch(source.urls[0], param)]
        self._check_frames(len(source.urls), param)
        try:
            async with asyncio.timeout(FRAMES_SECONDS):
                return source, await self._fetch_frames(source.urls, param)
        except TimeoutError:
            raise bad_request(f"{param}: its frames did not come within {FRAMES_SECONDS:g} s", param) from None

    async def _fetch_frames(self, sources: Sequence[str], param: str) -> list[bytes]:
        files: list[bytes] = []
        for start in range(0, len(sources), MAX_FETCHES):
            urls = enumerate(sources[start : start + MAX_FETCHES], start)
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._fetcher.fetch(url, f"{param}, frame {i}")) for i, url in urls]
            except* RequestError as errors:
                raise _first(errors) from None
            files += [task.result() for task in tasks]
            if sum(map(len, files)) > self._limits.max_file_bytes:
                raise too_large(self._limits, param)
        return files

    def read_all(self, media: Sequence[Media]) -> list[ImageInput]:
        """What fetch() brought, with grids; not placed in a prompt yet. Raises RequestError."""
        names = source_names([source for source, _ in media])
        return [self.read(item, name) for item, name in zip(media, names, strict=True)]

    def read(self, media: Media, param: str) -> ImageInput:
        """One image or video: its data, hash, grid and number of tokens. Raises RequestError naming `param`."""
        source, files = media
        if source.video is None:
            return self._image(files[0], param)
        config = self._model.video
        if config is None:
            raise bad_request(f"{param}: this model takes no videos", param)
        if source.is_frames:
            return self._frames(files, source.video, config, param)
        return self._video(files[0], source.video, config, param)

    def _image(self, data: bytes, param: str) -> ImageInput:
        assert self._model.resize is not None
        height, width = smart_resize(*read_size(data, self._limits, param), self._model.resize)
        return self._placed(data, (1, height, width), hashlib.sha256(data), None)

    def _frames(self, files: list[bytes], asked: VideoOptions, config: VideoConfig, param: str) -> ImageInput:
        """A video given as its frames: all of them are read, asked.fps says how many show a second."""
        if config.max_frames < len(files):
            raise bad_request(f"{param} has {len(files)} frames; this model reads at most {config.max_frames}", param)
        sizes = [read_size(data, self._limits, f"{param}, frame {index}") for index, data in enumerate(files)]
        if odd := next((index for index, size in enumerate(sizes) if size != sizes[0]), None):
            raise bad_request(f"{param}: frame {odd} is {sizes[odd]} pixels, the first is {sizes[0]}", param)
        rate = asked.fps or config.fps
        video = VideoInput(asked, tuple(range(len(files))), True, rate, config.temporal_patch_size / rate)
        return self._clip(pack_frames(files), sizes[0], video, config)

    def _video(self, data: bytes, asked: VideoOptions, config: VideoConfig, param: str) -> ImageInput:
        """A video file, of which some frames are read."""
        try:
            header = read_header(data)
        except VideoError as error:
            raise bad_request(f"{param}: {error}", param) from None
        self._check_header(header, param)
        frames = sample_frames(header.num_frames, header.rate, asked, config, param)
        self._check_frames(len(frames), param)
        seconds = config.temporal_patch_size / (len(frames) / header.num_frames * header.rate)
        video = VideoInput(asked, frames, False, header.rate, seconds)
        return self._clip(data, (header.height, header.width), video, config)

    def _clip(self, data: bytes, size: tuple[int, int], video: VideoInput, config: VideoConfig) -> ImageInput:
        """A video whose frames have this size."""
        count, step = len(video.frames), config.temporal_patch_size
        height, width = frame_size(count, *size, config)
        digest = hashlib.sha256(data)
        digest.update(msgspec.msgpack.encode((video.frames, video.is_list, video.rate, video.seconds)))
        return self._placed(data, (-(-count // step), height, width), digest, video)

    def _placed(
        self, data: bytes, size: tuple[int, int, int], digest: hashlib._Hash, video: VideoInput | None
    ) -> ImageInput:
        """size: patches of frames, then pixels."""
        vision = self._model.config.vision
        assert vision is not None
        grid = (size[0], size[1] // vision.patch_size, size[2] // vision.patch_size)
        num_tokens = grid[0] * grid[1] * grid[2] // vision.merge_size**2
        return ImageInput(digest.hexdigest(), grid, 0, num_tokens, data, video)

    def _check_counts(self, sources: Sequence[MediaSource]) -> None:
        num_videos = sum(source.video is not None for source in sources)
        for count, limit, kind in (
            (len(sources) - num_videos, self._limits.max_images, "images"),
            (num_videos, self._limits.max_videos, "videos"),
        ):
            if count > limit:
                raise bad_request(
                    f"the request has {count} {kind}, more than the limit of {limit}; "
                    f"send fewer or raise --limit-{kind}-per-request"
                )

    def _check_frames(self, count: int, param: str) -> None:
        if count > self._limits.max_video_frames:
            raise bad_request(
                f"{param}: {count} frames are more than the limit of {self._limits.max_video_frames}; "
                "send fewer, lower fps, or raise --max-video-frames",
                param,
            )

    def _check_header(self, header: VideoHeader, param: str) -> None:
        check_size(header.width, header.height, self._limits, param)
        if header.num_frames / header.rate > self._limits.max_video_seconds:
            raise bad_request(
                f"{param}: the video lasts {header.num_frames / header.rate:.0f} s, more than the limit of "
                f"{self._limits.max_video_seconds:g} s; send a part of it or raise --max-video-seconds",
                param,
            )


def source_names(sources: Sequence[MediaSource]) -> list[str]:
    """What errors call them: image 0, image 1, video 0, …"""
    names: list[str] = []
    for index, source in enumerate(sources):
        is_video = source.video is not None
        number = sum((earlier.video is not None) == is_video for earlier in sources[:index])
        names.append(f"{'video' if is_video else 'image'} {number}")
    return names


def _first(errors: ExceptionGroup[RequestError]) -> RequestError:
    error = errors.exceptions[0]
    return error if isinstance(error, RequestError) else _first(error)
