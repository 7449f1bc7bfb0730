"""Prompts: token ids with every image placeholder expanded, image headers, and positions.

Invariants: an image's placeholders are consecutive and exactly as many as its embedding has rows; images are in prompt
order; the number of placeholders in the text equals the number of images, so text that smuggles in a placeholder is
refused and can never shift another image.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

from epd_runtime.frontend.chat import split_messages
from epd_runtime.frontend.errors import RequestError, bad_request
from epd_runtime.frontend.images import ImageLimits, read_size, smart_resize
from epd_runtime.frontend.media import MediaFetcher
from epd_runtime.frontend.model_folder import ModelFolder
from epd_runtime.frontend.mrope import mrope_positions
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


class PromptBuilder:
    """Builds prompts for one model. context_length is in tokens."""

    def __init__(self, model: ModelFolder, fetcher: MediaFetcher, limits: ImageLimits, context_length: int) -> None:
        self.model = model
        self.context_length = context_length
        self._fetcher = fetcher
        self._limits = limits

    async def from_chat(self, messages: Sequence[Any], template_variables: dict[str, Any]) -> Prompt:
        """Prompt of OpenAI chat messages; raises RequestError."""
        if self.model.chat_template is None:
            raise bad_request("this model has no chat template; use /generate with text or input_ids", "messages")
        plain, sources = split_messages(messages, with_images=self.model.resize is not None)
        text = self.model.chat_template.render(plain, template_variables)
        return await self._build(text, sources, special_tokens=False)

    async def from_native(self, prompt: str | list[int], sources: Sequence[str]) -> Prompt:
        """Prompt of a text or token ids, which hold one placeholder per image; raises RequestError."""
        if sources and self.model.resize is None:
            raise bad_request("this model takes no images; send text only", "image_data")
        return await self._build(prompt, sources, special_tokens=True)

    async def read_image(self, source: str, param: str) -> ImageInput:
        """One image outside any prompt: its data, hash, grid and number of tokens. Raises RequestError."""
        data = await self._fetcher.fetch(source, param)
        return await asyncio.to_thread(self._image, data, param)

    async def _build(self, prompt: str | list[int], sources: Sequence[str], special_tokens: bool) -> Prompt:
        files = await self._fetch_all(sources)
        small = not files and len(prompt) <= INLINE_CHARACTERS
        if small:
            return self._assemble(prompt, files, special_tokens)
        return await asyncio.to_thread(self._assemble, prompt, files, special_tokens)

    async def _fetch_all(self, sources: Sequence[str]) -> list[bytes]:
        if len(sources) > self._limits.max_images:
            raise bad_request(
                f"the request has {len(sources)} images, more than the limit of {self._limits.max_images}; "
                "send fewer or raise --limit-images-per-request"
            )
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._fetcher.fetch(s, f"image {i}")) for i, s in enumerate(sources)]
        except* RequestError as errors:
            raise _first(errors) from None
        return [task.result() for task in tasks]

    def _assemble(self, prompt: str | list[int], files: list[bytes], special_tokens: bool) -> Prompt:
        ids = self._tokenize(prompt, special_tokens) if isinstance(prompt, str) else self._checked_ids(prompt)
        images = [self._image(data, f"image {index}") for index, data in enumerate(files)]
        ids, images = expand_placeholders(ids, images, self.model.image_token_id, self.model.image_token)
        if len(ids) >= self.context_length:
            raise self._too_long(len(ids))
        vision = self.model.config.vision
        if not images or vision is None:
            return Prompt(ids, images)
        positions, delta = mrope_positions(len(ids), images, vision.merge_size)
        return Prompt(ids, images, positions.tobytes(), delta)

    def _tokenize(self, text: str, special_tokens: bool) -> list[int]:
        if len(text) > self.context_length * MAX_CHARACTERS_PER_TOKEN:
            raise bad_request(
                f"{len(text)} characters cannot fit the context of {self.context_length} tokens; shorten the prompt"
            )
        ids: list[int] = self.model.tokenizer.encode(text, add_special_tokens=special_tokens).ids
        if not ids:
            raise bad_request("the prompt is empty; send at least one token")
        return ids

    def _checked_ids(self, ids: list[int]) -> list[int]:
        size = self.model.config.text.vocab_size
        if not ids:
            raise bad_request("input_ids is empty; send at least one token", "input_ids")
        if min(ids) < 0 or max(ids) >= size:
            raise bad_request(f"input_ids must be between 0 and {size - 1}, the model's vocabulary", "input_ids")
        return ids

    def _too_long(self, length: int) -> RequestError:
        return RequestError(
            400,
            f"the prompt has {length} tokens, but the context holds {self.context_length} with the answer; shorten it",
            code="context_length_exceeded",
        )

    def _image(self, data: bytes, param: str) -> ImageInput:
        rule, vision = self.model.resize, self.model.config.vision
        assert rule is not None
        assert vision is not None
        height, width = smart_resize(*read_size(data, self._limits, param), rule)
        grid = (1, height // vision.patch_size, width // vision.patch_size)
        return ImageInput(
            content_hash=hashlib.sha256(data).hexdigest(),
            grid=grid,
            offset=0,
            num_tokens=grid[1] * grid[2] // vision.merge_size**2,
            data=data,
        )


def expand_placeholders(
    ids: list[int], images: list[ImageInput], token_id: int | None, token: str | None
) -> tuple[list[int], list[ImageInput]]:
    """Repeat every placeholder num_tokens times, and tell each image its offset; raises RequestError on a mismatch."""
    found = ids.count(token_id) if token_id is not None else 0
    if found != len(images):
        raise bad_request(
            f"the prompt has {found} image placeholders {token or ''} but {len(images)} images; send equally many"
        )
    if not images:
        return ids, images
    expanded: list[int] = []
    placed: list[ImageInput] = []
    start = 0
    for image in images:
        assert token_id is not None
        end = ids.index(token_id, start)
        expanded += ids[start:end]
        placed.append(ImageInput(image.content_hash, image.grid, len(expanded), image.num_tokens, image.data))
        expanded += [token_id] * image.num_tokens
        start = end + 1
    expanded += ids[start:]
    return expanded, placed


def _first(errors: ExceptionGroup[RequestError]) -> RequestError:
    error = errors.exceptions[0]
    return error if isinstance(error, RequestError) else _first(error)
