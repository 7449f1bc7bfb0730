"""Videos: as frames, as files, and what transformers' own processors and models make of them."""

from __future__ import annotations

import base64
import dataclasses
import fractions
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.video_utils import VideoMetadata, read_video_pyav

Clip = npt.NDArray[np.uint8]  # [frames, height, width, 3]
PROCESSORS = {
    "qwen2_vl": (Qwen2VLProcessor, Qwen2VLVideoProcessor),
    "qwen2_5_vl": (Qwen2_5_VLProcessor, Qwen2VLVideoProcessor),
    "qwen3_vl": (Qwen3VLProcessor, Qwen3VLVideoProcessor),
    "qwen3_vl_moe": (Qwen3VLProcessor, Qwen3VLVideoProcessor),
}
IMAGE_BRANCH = "{%- elif part['type'] == 'text' -%}"
VIDEO_BRANCH = "{%- elif part['type'] == 'video' -%}\n{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}\n"


def random_clip(draw: random.Random, count: int) -> Clip:
    """Frames of one random size that differ from each other."""
    height, width = draw.randrange(20, 120), draw.randrange(20, 120)
    coarse = np.random.default_rng(draw.randrange(2**31)).integers(
        0, 256, (count, height // 6 + 1, width // 6 + 1, 3), np.uint8
    )
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height))) for frame in coarse])


def frame_urls(clip: Clip) -> list[str]:
    urls = []
    for frame in clip:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "PNG")
        urls.append("data:image/png;base64," + base64.b64encode(file.getvalue()).decode())
    return urls


def movie(clip: Clip, rate: fractions.Fraction | int, container: str = "mp4", codec: str = "libx264") -> bytes:
    """A video file of the clip, whose sides must be even."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate)
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in clip:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())
    return file.getvalue()


def movie_url(data: bytes) -> str:
    return "data:video/mp4;base64," + base64.b64encode(data).decode()


def takes_videos(folder: Path, draw: random.Random) -> Path:
    """Give a model folder a template for videos, and settings that keep them small."""
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template.replace(IMAGE_BRANCH, VIDEO_BRANCH + IMAGE_BRANCH))
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    is_third = json.loads((folder / "config.json").read_text())["model_type"].startswith("qwen3_vl")
    side = settings["patch_size"] * settings["merge_size"]
    frames = 8 if is_third else 1  # bounds are for the whole clip, or for one frame
    video = {
        "size": {
            "shortest_edge": draw.randrange(1, 5) * frames * side**2,
            "longest_edge": draw.randrange(5, 13) * frames * side**2,
        },
        "patch_size": settings["patch_size"], "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": settings["image_mean"], "image_std": settings["image_std"], "fps": 2,
        "cap_pixels_per_frame": draw.random() < 0.5, "max_video_tokens": draw.randrange(6, 60),
    }  # fmt: skip
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video))
    return folder


class VideoReference:
    """A Qwen-VL of any generation with transformers' own processor."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        processor, video_processor = PROCESSORS[self.model.config.model_type]
        self.processor = processor(
            Qwen2VLImageProcessorPil.from_pretrained(folder),
            AutoTokenizer.from_pretrained(folder),
            video_processor.from_pretrained(folder),
            chat_template=(folder / "chat_template.jinja").read_text(),
        )

    def inputs(
        self, messages: list[dict[str, Any]], images: Sequence[bytes], videos: Sequence[tuple[Clip, VideoMetadata]]
    ) -> dict[str, Any]:
        """What the model takes. Videos are frames that were sampled already."""
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        given: dict[str, Any] = {}
        if images:
            given["images"] = [Image.open(io.BytesIO(data)).convert("RGB") for data in images]
        if videos:
            given["videos"] = [clip for clip, _ in videos]
            given["video_metadata"] = [metadata for _, metadata in videos]
        made = self.processor(text=[text], **given, do_sample_frames=False, return_tensors="pt")
        return {name: value for name, value in made.items() if name != "video_metadata"}

    @torch.inference_mode()
    def generate(self, inputs: dict[str, Any], max_new_tokens: int) -> list[int]:
        """Exactly max_new_tokens greedy tokens (no stop token)."""
        out = self.model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        tokens: list[int] = out[0, inputs["input_ids"].shape[1] :].tolist()
        return tokens

    def sampled(self, data: bytes, folder: Path, **options: Any) -> tuple[Clip, VideoMetadata]:
        """The frames of a file that transformers' own sampling reads, through its PyAV backend."""
        path = folder / "movie"
        path.write_bytes(data)

        def choose(metadata: VideoMetadata, **_: Any) -> Any:
            indices = np.asarray(self.processor.video_processor.sample_frames(metadata=metadata, **options))
            return indices[indices < metadata.total_num_frames]

        clip, metadata = read_video_pyav(path, choose)
        return clip, metadata


def given_frames(clip: Clip, fps: float) -> tuple[Clip, VideoMetadata]:
    """Frames that a client sends."""
    return clip, VideoMetadata(total_num_frames=len(clip), fps=fps, frames_indices=list(range(len(clip))))


@dataclasses.dataclass(frozen=True)
class Question:
    """One user turn of parts: texts, images as files, videos as frames with their rate."""

    parts: Sequence[str | bytes | tuple[Clip, float]]

    def ours(self) -> list[dict[str, Any]]:
        """As our API takes it."""
        return [{"role": "user", "content": [self._part(part) for part in self.parts]}]

    def inputs(self, reference: VideoReference) -> dict[str, Any]:
        """As transformers takes it."""
        kinds: list[dict[str, Any]] = []
        for part in self.parts:
            kind = "image" if isinstance(part, bytes) else "video"
            kinds.append({"type": "text", "text": part} if isinstance(part, str) else {"type": kind})
        images = [part for part in self.parts if isinstance(part, bytes)]
        videos = [given_frames(*part) for part in self.parts if isinstance(part, tuple)]
        return reference.inputs([{"role": "user", "content": kinds}], images, videos)

    @staticmethod
    def _part(part: str | bytes | tuple[Clip, float]) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        if isinstance(part, bytes):
            url = "data:image/png;base64," + base64.b64encode(part).decode()
            return {"type": "image_url", "image_url": {"url": url}}
        return {"type": "video", "video": frame_urls(part[0]), "fps": part[1]}
