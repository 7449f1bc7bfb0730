"""Video files and lists of frames, honest and hostile: headers, limits, options, and the encoder's part."""

from __future__ import annotations

import asyncio
import io
import random
import time
from pathlib import Path
from typing import Any

import av
import msgspec
import numpy as np
import pytest
import torch

from epd_runtime.disaggregation.embeddings.encoder_client import EncoderClient
from epd_runtime.encoder import vision_runner
from epd_runtime.encoder.vision_runner import Encoded, VisionRunner
from epd_runtime.frontend.chat import Chat
from epd_runtime.frontend.errors import RequestError
from epd_runtime.frontend.images import ImageLimits
from epd_runtime.frontend.media import MediaFetcher
from epd_runtime.frontend.model_folder import load_model_folder
from epd_runtime.frontend.prompt import Prompt, PromptBuilder
from epd_runtime.frontend.sources import native_video
from epd_runtime.kvcache.page_keys import page_keys
from epd_runtime.model_config import load_model_config
from epd_runtime.models.registry import load_vision_tower
from epd_runtime.server.encode_api import media_items
from epd_runtime.server.native_api import media_sources
from epd_runtime.server.protocol.base import EncodeBody
from epd_runtime.server.protocol.native import NativeRequest
from epd_runtime.video_file import VideoError, read_frames, read_header
from random_models import HANDWRITING, make_random
from videos import frame_urls, movie, movie_url, takes_videos

LIMITS = ImageLimits(4, 1 << 20, 1 << 16, max_videos=2, max_video_frames=12, max_video_seconds=20.0)


@pytest.fixture(scope="module")
def draw() -> random.Random:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture(scope="module")
def folder(draw: random.Random, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return takes_videos(make_random("qwen3_vl", tmp_path_factory.mktemp("model"), draw), draw)


@pytest.fixture
def builder(folder: Path) -> PromptBuilder:
    return PromptBuilder(load_model_folder(str(folder)), MediaFetcher(LIMITS, 1.0, ()), LIMITS, context_length=4096)


def even_clip(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Grey frames that become lighter."""
    return np.stack([np.full((height, width, 3), 10 + 200 * index // count, np.uint8) for index in range(count)])


CLIP = even_clip(40)
MOVIE = movie(CLIP, 10)


def ask(builder: PromptBuilder, *parts: dict[str, Any]) -> Prompt:
    return asyncio.run(builder.from_chat(Chat([{"role": "user", "content": list(parts)}])))


def file_part(data: bytes, **options: Any) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": movie_url(data)}, **options}


@pytest.mark.parametrize(
    ("container", "codec"),
    [("mp4", "libx264"), ("mov", "mpeg4"), ("webm", "libvpx-vp9"), ("avi", "mpeg4"), ("mpegts", "mpeg2video")],
)
def test_containers_are_read(container: str, codec: str) -> None:
    """Header, and frames at given places, of every container; some do not say how many frames they hold."""
    data = movie(even_clip(50), 25, container, codec)
    header = read_header(data)
    assert (header.num_frames, header.rate, header.height, header.width) == (50, 25.0, 48, 64)
    frames = list(read_frames(data, [0, 20, 49], 1 << 20))
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 3
    for frame, index in zip(frames, (0, 20, 49), strict=True):
        assert abs(float(frame.mean()) - (10 + 200 * index // 50)) < 5


def sound() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 44100
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is no video file"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "is no video file"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "is no video file"),
        (b"\0\0\0\x20ftypisom" + bytes(range(256)) * 8, "cannot be decoded|holds no video"),
        (MOVIE[: len(MOVIE) // 2], "cannot be decoded|holds no video"),
        (sound(), "holds no video"),
        (movie(even_clip(40, 400, 400), 10), "more than the limit of 65536"),
        (movie(even_clip(30), 1), "lasts 30 s, more than the limit of 20"),
    ],
)
def test_hostile_files_are_refused(builder: PromptBuilder, data: bytes, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        ask(builder, file_part(MOVIE), file_part(data))
    assert caught.value.status == 400
    assert caught.value.param == "video 1"


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (file_part(MOVIE, fps=0), "fps must be a number above 0"),
        (file_part(MOVIE, fps="2"), "fps must be a number above 0"),
        (file_part(MOVIE, fps=float("inf")), "fps must be a number above 0"),
        (file_part(MOVIE, nframes=0), "nframes must be an integer from 1"),
        (file_part(MOVIE, nframes=41), "41 frames are asked for; the video has 40"),
        (file_part(MOVIE, nframes=4, fps=1), "exclude each other"),
        (file_part(MOVIE, nframes=14), "14 frames are more than the limit of 12"),
        (file_part(MOVIE, max_pixels=5000), "max_pixels is not supported"),
        ({"type": "video_url"}, r"video_url must be an http\(s\) URL"),
        ({"type": "video", "video": []}, "is an empty list"),
        ({"type": "video", "video": [5]}, r"video\[0\] must be"),
        ({"type": "video", "video": frame_urls(CLIP[:13])}, "13 frames are more than the limit of 12"),
        ({"type": "video", "video": [*frame_urls(CLIP[:2]), *frame_urls(CLIP[:1, :40])]}, "frame 2 is"),
        ({"type": "video", "video": ["data:image/png;base64,AAAA"]}, "video 0, frame 0 is not a readable image"),
        ({"type": "video", "video": "file:///etc/passwd"}, "only http"),
        ({"type": "video", "video": "http://127.0.0.1/x.mp4"}, "private"),
    ],
)
def test_wrong_parts_are_refused(builder: PromptBuilder, part: dict[str, Any], reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        ask(builder, part)
    assert caught.value.status == 400


def test_native_prompts_hold_videos_and_images(builder: PromptBuilder) -> None:
    """/generate: text or ids, images and videos in any order of their placeholders."""
    text = "<|vision_start|><|video_pad|><|vision_end|> and <|vision_start|><|image_pad|><|vision_end|>"
    (image,), file, frames = frame_urls(CLIP[:1]), movie_url(MOVIE), frame_urls(CLIP[:4])
    bodies = [
        NativeRequest(text=text, image_data=image, video_data=file),
        NativeRequest(text=text, image_data=[{"url": image}], video_data=[{"url": file}]),
        NativeRequest(text=[text, "none"], image_data=[image, None], video_data=[[{"video": file}], None]),
        NativeRequest(text=text, image_data=image, video_data=[frames]),
    ]
    read = [media_sources(body, 2 if isinstance(body.text, list) else 1)[0] for body in bodies]
    prompts = [asyncio.run(builder.from_native(text, sources)) for sources in read]
    ids = builder.model.tokenizer.encode(text).ids
    assert asyncio.run(builder.from_native(ids, read[0])) == prompts[0] == prompts[1] == prompts[2]
    for prompt in prompts:
        assert [item.video is None for item in prompt.images] == [False, True]
        assert prompt.images[0].end < prompt.images[1].offset
    assert [prompt.images[0].grid[0] for prompt in prompts[2:]] == [4, 2]
    with pytest.raises(RequestError, match=r"video_data\.video must be"):
        media_sources(NativeRequest(text=text, video_data=5), 1)


def test_counts_are_bounded_and_placeholders_must_match(builder: PromptBuilder) -> None:
    with pytest.raises(RequestError, match="3 videos, more than the limit of 2"):
        ask(builder, *[file_part(MOVIE)] * 3)
    with pytest.raises(RequestError, match=r"2 video placeholders <\|video_pad\|> but 1 videos"):
        ask(builder, file_part(MOVIE), {"type": "text", "text": "<|video_pad|>"})


def test_a_file_that_ends_early(draw: random.Random) -> None:
    """A few missing frames are the last one again; many are an error."""
    frames = list(read_frames(MOVIE, [0, 30, 39, 45], 1 << 20))
    assert np.array_equal(frames[2], frames[3])
    with pytest.raises(VideoError, match="only 1 of 4 frames"):
        list(read_frames(MOVIE, [0, 45, 50, 55], 1 << 20))
    with pytest.raises(VideoError, match="64x48 pixels, more than"):
        list(read_frames(MOVIE, [0], 64 * 47))


def test_page_keys_tell_videos_apart(builder: PromptBuilder) -> None:
    """The same file read otherwise, or shown at another rate, is another video; equal ones share their pages."""
    parts = [file_part(MOVIE), file_part(MOVIE), file_part(MOVIE, fps=1), file_part(MOVIE, nframes=6)]
    frames = {"type": "video", "video": frame_urls(CLIP[:8])}
    parts += [frames, {**frames, "fps": 4}]
    prompts = [ask(builder, part) for part in parts]
    assert len(prompts[0].images[0].runs) == prompts[0].images[0].grid[0] > 1
    for prompt in prompts:
        for offset, _, length in prompt.images[0].runs:
            run = prompt.input_ids[offset - 1 : offset + length + 1]
            start, *pads, end = run
            assert len({start, end, *pads}) == 3
            assert len(set(pads)) == 1
    keys = [page_keys(prompt.input_ids[:64], 0, prompt.images, 16) for prompt in prompts]
    assert keys[0] == keys[1]
    assert len({tuple(key) for key in keys}) == len(parts) - 1


async def test_encoders_see_what_prefill_saw(builder: PromptBuilder) -> None:
    """What goes to an encoder is read there as here, so that its rows are as many as the placeholders."""
    client = EncoderClient.__new__(EncoderClient)
    client._receive_host, client._embedding_port = "10.0.0.7", 4567
    for part in (file_part(MOVIE, fps=2.5, max_frames=9), {"type": "video", "video": frame_urls(CLIP[:5]), "fps": 3}):
        prompt = await builder.from_chat(Chat([{"role": "user", "content": [part]}]))
        (video,) = prompt.images
        body = msgspec.json.decode(await client._body("r", 0, 1, video), type=EncodeBody)
        (source,) = media_items(body)
        read = await builder.read_media(source, "mm_items[0]")
        assert video.video is not None
        unplaced = msgspec.structs.replace(video.video, later_offsets=())
        assert msgspec.structs.replace(video, offset=0, video=unplaced) == read


def test_a_long_video_takes_several_passes(
    folder: Path, builder: PromptBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts are the whole; a video that cannot be decoded fails alone."""
    config = load_model_config(folder)
    tower = load_vision_tower(config, folder, torch.device("cpu"), torch.float32, None)
    assert tower is not None
    video, other = (ask(builder, file_part(MOVIE, nframes=count)).images[0] for count in (12, 10))
    broken = msgspec.structs.replace(other, data=MOVIE[:-600], content_hash="broken")

    def encode(patches_per_pass: int) -> tuple[torch.Tensor, int]:
        """The embedding, and how many steps it took."""
        monkeypatch.setattr(vision_runner, "VIDEO_PATCHES", patches_per_pass)
        runner = VisionRunner(tower, folder, torch.device("cpu"), 8, 1 << 26, 1 << 20, lambda: None)
        found: list[Encoded] = []
        failed: list[Encoded] = []
        runner.submit(video, found.append, lambda: True)
        runner.submit(broken, failed.append, lambda: True)
        steps = 0
        while runner.num_pending:
            if runner.has_work():
                runner.step()
                steps += 1
            time.sleep(0.001)
        assert [encoded.status for encoded in failed] == [400]
        assert found[0].embedding is not None
        return found[0].embedding, steps

    at_once, few = encode(1 << 20)
    in_parts, many = encode(2 * video.grid[1] * video.grid[2])
    assert at_once.shape == (video.num_tokens, config.embedding_width)
    torch.testing.assert_close(at_once, in_parts, rtol=1e-4, atol=1e-5)
    assert many == few + 2


async def test_time_beyond_the_context_is_refused() -> None:
    """Qwen2.5-VL's positions follow the clock, which a client sets; the table of positions ends with the context."""
    model = load_model_folder(str(HANDWRITING))
    builder = PromptBuilder(model, MediaFetcher(LIMITS, 1.0, ()), LIMITS, context_length=1000)
    text = "<|vision_start|><|video_pad|><|vision_end|> What is it?"
    for fps, is_far in ((1.0, False), (0.001, True), (1e-9, True)):
        source = native_video({"video": frame_urls(CLIP[:4]), "fps": fps}, "video_data")
        if not is_far:
            assert (await builder.from_native(text, [source])).position_delta < 0
            continue
        with pytest.raises(RequestError, match="beyond the context of 1000 tokens"):
            await builder.from_native(text, [source])
