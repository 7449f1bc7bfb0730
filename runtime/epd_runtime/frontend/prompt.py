"""Prompts: token ids with every placeholder expanded, images and videos with their sizes, and positions.

Invariants: an image's placeholders are exactly as many as its embedding has rows, and consecutive, as are those of each
run of a video; images and videos are in prompt order; the number of placeholders in the text equals the number of
images and videos, so text that smuggles in a placeholder is refused and can never shift another image.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence

from epd_runtime.frontend.chat import Chat, split_continued, split_messages
from epd_runtime.frontend.errors import RequestError, bad_request
from epd_runtime.frontend.images import ImageLimits
from epd_runtime.frontend.media import MediaFetcher
from epd_runtime.frontend.media_reader import Media, MediaReader
from epd_runtime.frontend.model_folder import ModelFolder
from epd_runtime.frontend.mrope import mrope_positions
from epd_runtime.frontend.placeholders import Placeholder, expand_placeholders, one_run
from epd_runtime.frontend.sources import MediaSource
from epd_runtime.frontend.video_rules import timestamps
from epd_runtime.messages import ImageInput

MAX_CHARACTERS_PER_TOKEN = 128  # longest tokens of real vocabularies; longer text cannot fit and is not tokenized
INLINE_CHARACTERS = 4096  # tokenized on the event loop, in well under a millisecond; longer text in a thread


@dataclasses.dataclass(frozen=True)
class Prompt:
    """All that the engine must know of a prompt. positions and position_delta as in messages.GenerateRequest."""

    input_ids: list[int]
    images: list[ImageInput]
    positions: bytes = b""
    position_delta: int = 0


@dataclasses.dataclass(frozen=True)
class _Rules:
    """How a prompt is built. param: the field of the body that it comes from."""

    param: str
    special_tokens: bool = True
    bounded: bool = True


class PromptBuilder:
    """Builds prompts for one model. context_length is in tokens."""

    def __init__(self, model: ModelFolder, fetcher: MediaFetcher, limits: ImageLimits, context_length: int) -> None:
        self.model = model
        self.context_length = context_length
        self._reader = MediaReader(model, fetcher, limits)

    async def from_chat(self, chat: Chat, bounded: bool = True) -> Prompt:
        """Prompt of OpenAI chat messages; raises RequestError. bounded: it must fit the context with its answer."""
        if self.model.chat_template is None:
            raise bad_request("this model has no chat template; use /generate with text or input_ids", "messages")
        messages, sources = split_messages(chat.messages, with_images=self.model.resize is not None)
        continued = ""
        if chat.continues_last:
            messages, continued = split_continued(messages)
        tools = {} if chat.tools is None else {"tools": list(chat.tools)}
        text = self.model.chat_template.render(messages, {**chat.variables, **tools}) + continued
        return await self._build(text, sources, _Rules("messages", special_tokens=False, bounded=bounded))

    async def from_native(
        self, prompt: str | list[int], sources: Sequence[MediaSource] = (), param: str = "input_ids"
    ) -> Prompt:
        """Prompt of a text or ids, with one placeholder per image and video; raises RequestError naming `param`."""
        if sources and self.model.resize is None:
            raise bad_request("this model takes no images or videos; send text only", "image_data")
        return await self._build(prompt, sources, _Rules(param))

    async def tokenize(self, text: str, special_tokens: bool) -> list[int]:
        """Token ids of a text, which may be longer than the context; raises RequestError when it is absurdly long."""
        rules = _Rules("prompt", special_tokens)
        if len(text) <= INLINE_CHARACTERS:
            return self._tokenize(text, rules)
        return await asyncio.to_thread(self._tokenize, text, rules)

    async def read_media(self, source: MediaSource, param: str) -> ImageInput:
        """One image or video outside any prompt: its data, hash, grid and number of tokens. Raises RequestError."""
        media = await self._reader.fetch_one(source, param)
        item = await asyncio.to_thread(self._reader.read, media, param)
        if item.num_tokens >= self.context_length:
            raise self._too_long(item.num_tokens)
        return item

    async def _build(self, prompt: str | list[int], sources: Sequence[MediaSource], rules: _Rules) -> Prompt:
        files = await self._reader.fetch(sources)
        small = not files and len(prompt) <= INLINE_CHARACTERS
        if small:
            return self._assemble(prompt, files, rules)
        return await asyncio.to_thread(self._assemble, prompt, files, rules)

    def _assemble(self, prompt: str | list[int], files: list[Media], rules: _Rules) -> Prompt:
        ids = self._tokenize(prompt, rules) if isinstance(prompt, str) else self.checked_ids(prompt, rules.param)
        if not ids:
            raise bad_request(f"the prompt is empty; send at least one token in {rules.param}", rules.param)
        model = self.model
        image, video = (
            Placeholder(model.image_token_id, model.image_token), Placeholder(model.video_token_id, model.video_token)
        )  # fmt: skip
        ids, images = expand_placeholders(ids, self._reader.read_all(files), image, video, self._write_video)
        if rules.bounded and len(ids) >= self.context_length:
            raise self._too_long(len(ids))
        vision = model.config.vision
        if not images or vision is None:
            return Prompt(ids, images)
        positions, delta = mrope_positions(len(ids), images, vision.merge_size, vision.tokens_per_second)
        if rules.bounded and (highest := int(positions.max())) >= self.context_length:
            raise bad_request(
                f"the time of a video reaches position {highest}, beyond the context of {self.context_length} tokens; "
                "raise its fps or shorten it"
            )
        return Prompt(ids, images, positions.tobytes(), delta)

    def _write_video(self, item: ImageInput) -> list[list[int]]:
        """Tokens before every run of a video's placeholders, and behind the last."""
        video, marks = self.model.video, self.model.vision_marks
        if video is None or marks is None or item.video is None or not video.has_timestamps:
            return one_run(item)
        times = timestamps(item.video.frames, item.video.rate, video.temporal_patch_size)
        written = [self.model.tokenizer.encode(time, add_special_tokens=False).ids for time in times]
        start, end = marks
        return [[*written[0], start], *([end, *time, start] for time in written[1:]), [end]]

    def _tokenize(self, text: str, rules: _Rules) -> list[int]:
        if len(text) > self.context_length * MAX_CHARACTERS_PER_TOKEN:
            raise bad_request(
                f"{len(text)} characters cannot fit the context of {self.context_length} tokens; shorten the prompt",
                rules.param,
            )
        ids: list[int] = self.model.tokenizer.encode(text, add_special_tokens=rules.special_tokens).ids
        return ids

    def checked_ids(self, ids: list[int], param: str) -> list[int]:
        """The same ids; raises RequestError 400 naming `param` when one is outside the vocabulary."""
        size = self.model.config.text.vocab_size
        if ids and (min(ids) < 0 or max(ids) >= size):
            raise bad_request(f"{param} must be between 0 and {size - 1}, the model's vocabulary", param)
        return ids

    def _too_long(self, length: int) -> RequestError:
        return RequestError(
            400,
            f"the prompt has {length} tokens, but the context holds {self.context_length} with the answer; shorten it",
            code="context_length_exceeded",
        )
