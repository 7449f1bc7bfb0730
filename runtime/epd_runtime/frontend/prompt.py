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

from epd_runtime.frontend.chat import Chat, split_continued, split_messages
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
        self._fetcher = fetcher
        self._limits = limits

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
        self, prompt: str | list[int], sources: Sequence[str] = (), param: str = "input_ids"
    ) -> Prompt:
        """Prompt of a text or token ids, which hold one placeholder per image; raises RequestError naming `param`."""
        if sources and self.model.resize is None:
            raise bad_request("this model takes no images; send text only", "image_data")
        return await self._build(prompt, sources, _Rules(param))

    async def tokenize(self, text: str, special_tokens: bool) -> list[int]:
        """Token ids of a text, which may be longer than the context; raises RequestError when it is absurdly long."""
        rules = _Rules("prompt", special_tokens)
        if len(text) <= INLINE_CHARACTERS:
            return self._tokenize(text, rules)
        return await asyncio.to_thread(self._tokenize, text, rules)

    async def read_image(self, source: str, param: str) -> ImageInput:
        """One image outside any prompt: its data, hash, grid and number of tokens. Raises RequestError."""
        data = await self._fetcher.fetch(source, param)
        return await asyncio.to_thread(self._image, data, param)

    async def _build(self, prompt: str | list[int], sources: Sequence[str], rules: _Rules) -> Prompt:
        files = await self._fetch_all(sources)
        small = not files and len(prompt) <= INLINE_CHARACTERS
        if small:
            return self._assemble(prompt, files, rules)
        return await asyncio.to_thread(self._assemble, prompt, files, rules)

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

    def _assemble(self, prompt: str | list[int], files: list[bytes], rules: _Rules) -> Prompt:
        ids = self._tokenize(prompt, rules) if isinstance(prompt, str) else self.checked_ids(prompt, rules.param)
        if not ids:
            raise bad_request(f"the prompt is empty; send at least one token in {rules.param}", rules.param)
        images = [self._image(data, f"image {index}") for index, data in enumerate(files)]
        ids, images = expand_placeholders(ids, images, self.model.image_token_id, self.model.image_token)
        if rules.bounded and len(ids) >= self.context_length:
            raise self._too_long(len(ids))
        vision = self.model.config.vision
        if not images or vision is None:
            return Prompt(ids, images)
        positions, delta = mrope_positions(len(ids), images, vision.merge_size)
        return Prompt(ids, images, positions.tobytes(), delta)

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
