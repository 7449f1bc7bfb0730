"""What the API process reads from a model folder: sizes, tokenizer, chat template, resizing rule, sampling defaults.

`transformers` would read the same files but imports torch, which costs seconds and hundreds of megabytes per process.
Everything is read once at the start; a folder that cannot serve is refused there with one line.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import tokenizers

from epd_runtime.frontend.chat_template import ChatTemplate
from epd_runtime.frontend.images import ResizeRule
from epd_runtime.model_config import ModelConfig, ModelConfigError, load_model_config
from epd_runtime.video_config import VideoConfig, read_video_config
from epd_runtime.vision_config import VisionConfig, read_image_settings

ModelFolderError = ModelConfigError  # the same mistake, found a little later


@dataclasses.dataclass(frozen=True)
class SamplingDefaults:
    """What generation_config.json says about requests that say nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """One model as the frontend knows it."""

    path: Path
    config: ModelConfig
    architectures: tuple[str, ...]
    tokenizer: tokenizers.Tokenizer
    chat_template: ChatTemplate | None
    sampling: SamplingDefaults
    resize: ResizeRule | None  # None: no images
    image_token_id: int | None
    video: VideoConfig | None = None  # None: no videos
    video_token_id: int | None = None
    vision_marks: tuple[int, int] | None = None  # ids of vision_start and vision_end

    @property
    def image_token(self) -> str | None:
        """Text of the placeholder that stands for one image in a prompt."""
        return None if self.image_token_id is None else self.tokenizer.id_to_token(self.image_token_id)

    @property
    def video_token(self) -> str | None:
        """Text of the placeholder that stands for one video in a prompt."""
        return None if self.video_token_id is None else self.tokenizer.id_to_token(self.video_token_id)


def check_model_folder(path: str) -> Path:
    """The folder, or ModelFolderError saying what is missing; reads no file."""
    folder = Path(path)
    if not folder.is_dir():
        raise ModelFolderError(f"--model-path {path} is not a folder; give a folder in Hugging Face layout")
    if not (folder / "config.json").is_file():
        raise ModelFolderError(
            f"{folder / 'config.json'} does not exist; --model-path must name a Hugging Face model folder"
        )
    return folder


def load_model_folder(path: str) -> ModelFolder:
    """Read a model folder; raises ModelFolderError with one line that names the file."""
    folder = check_model_folder(path)
    raw = read_json(folder / "config.json")
    config = load_model_config(folder)
    image_token_id = raw.get("image_token_id")
    has_images = config.vision is not None and isinstance(image_token_id, int)
    video_token_id, marks = raw.get("video_token_id"), _vision_marks(raw)
    has_videos = has_images and isinstance(video_token_id, int)
    return ModelFolder(
        path=folder,
        config=config,
        architectures=tuple(raw.get("architectures") or ()),
        tokenizer=_load_tokenizer(folder / "tokenizer.json"),
        chat_template=_load_chat_template(folder),
        sampling=_sampling_defaults(read_json(folder / "generation_config.json")),
        resize=_resize_rule(folder, config.vision) if config.vision is not None and has_images else None,
        image_token_id=image_token_id if has_images else None,
        video=_video_config(folder, config, marks) if has_videos else None,
        video_token_id=video_token_id if has_videos else None,
        vision_marks=marks,
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, {} when there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise ModelFolderError(f"{path} must hold a JSON object")
    return content


def _load_tokenizer(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise ModelFolderError(f"{path} does not exist; save the model's fast tokenizer there")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ModelFolderError(f"{path} is not a valid tokenizer: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _load_chat_template(folder: Path) -> ChatTemplate | None:
    raw = read_json(folder / "tokenizer_config.json")
    file = folder / "chat_template.jinja"
    source = file.read_text(encoding="utf-8") if file.is_file() else raw.get("chat_template")
    source = source or read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(source, list):  # several named templates
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    if not isinstance(source, str):
        return None
    special = {name: _token_text(raw.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    try:
        return ChatTemplate(source, {name: text for name, text in special.items() if text is not None})
    except Exception as error:  # a template may hold anything
        raise ModelFolderError(f"the chat template of {folder} cannot be compiled: {error}") from None


def _token_text(value: Any) -> str | None:
    return value.get("content") if isinstance(value, dict) else value


def _sampling_defaults(raw: dict[str, Any]) -> SamplingDefaults:
    known = {field.name for field in dataclasses.fields(SamplingDefaults)}
    given = {name: raw[name] for name in known if raw.get(name) is not None}
    return SamplingDefaults(**({**given, "temperature": 0.0} if raw.get("do_sample") is False else given))


def _vision_marks(raw: dict[str, Any]) -> tuple[int, int] | None:
    start, end = raw.get("vision_start_token_id"), raw.get("vision_end_token_id")
    return (start, end) if isinstance(start, int) and isinstance(end, int) else None


def _video_config(folder: Path, config: ModelConfig, marks: tuple[int, int] | None) -> VideoConfig:
    assert config.vision is not None
    video = read_video_config(folder, config.vision)
    if video.has_timestamps and marks is None:
        raise ModelFolderError(f"{folder / 'config.json'} needs vision_start_token_id and vision_end_token_id")
    return video


def _resize_rule(folder: Path, vision: VisionConfig) -> ResizeRule:
    """The image processor's bounds; a processor that cuts other patches than the tower takes is refused."""
    raw = read_image_settings(folder)
    if not raw.boolean("do_resize", True):
        raw.refuse("do_resize", "true: images of any size must become whole patches")
    for name in ("patch_size", "temporal_patch_size", "merge_size"):
        if raw.integer(name, getattr(vision, name)) != getattr(vision, name):
            raw.refuse(name, f"{getattr(vision, name)}, as config.json's vision_config says")
    size = raw.object("size")
    lowest = size.integer("shortest_edge", size.integer("min_pixels", 56 * 56))
    highest = size.integer("longest_edge", size.integer("max_pixels", 28 * 28 * 1280))
    rule = ResizeRule(
        factor=vision.patch_size * vision.merge_size,
        min_pixels=raw.integer("min_pixels", lowest),
        max_pixels=raw.integer("max_pixels", highest),
    )
    if rule.min_pixels > rule.max_pixels:
        raise ModelFolderError(f"{raw.where}: the least number of pixels is above the largest")
    return rule
