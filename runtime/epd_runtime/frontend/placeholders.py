"""Where images and videos stand in a prompt: every placeholder repeated once per row of its embedding.

A placeholder of a video is written out first where the family tells the time (Qwen3-VL): for every patch of frames the
time as text, then a placeholder between marks of its own; marks around the whole video stay, as in transformers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import msgspec

from epd_runtime.frontend.errors import bad_request
from epd_runtime.messages import ImageInput


@dataclasses.dataclass(frozen=True)
class Placeholder:
    """The token that stands for one image, or one video, and its text. None: the model has no such token."""

    token_id: int | None
    text: str | None


Tokens = list[int]
WriteVideo = Callable[[ImageInput], list[Tokens]]  # tokens before every run of placeholders, and behind the last


def one_run(_: ImageInput) -> list[Tokens]:
    """All placeholders follow each other."""
    return [[], []]


def expand_placeholders(
    ids: Tokens, media: Sequence[ImageInput], image: Placeholder, video: Placeholder, write_video: WriteVideo = one_run
) -> tuple[Tokens, list[ImageInput]]:
    """Ids with every placeholder repeated, and images and videos in the order of the prompt, with their offsets.

    media: each kind in the order of its placeholders. Raises RequestError 400 unless there are equally many.
    """
    images = [item for item in media if item.video is None]
    videos = [item for item in media if item.video is not None]
    _check_count(ids, image, len(images), "image")
    _check_count(ids, video, len(videos), "video")
    if not media:
        return ids, []
    expanded: Tokens = []
    placed: list[ImageInput] = []
    queues = {image.token_id: iter(images), video.token_id: iter(videos)}
    start = 0
    for index, token in enumerate(ids):
        if token in queues:
            expanded += ids[start:index]
            item = next(queues[token])
            placed.append(_place(expanded, item, token, one_run if item.video is None else write_video))
            start = index + 1
    expanded += ids[start:]
    return expanded, placed


def _place(expanded: Tokens, item: ImageInput, token: int, write: WriteVideo) -> ImageInput:
    """Append an item's tokens; the item with the places of its runs."""
    *before, behind = write(item)
    offsets = []
    for text in before:
        expanded += text
        offsets.append(len(expanded))
        expanded += [token] * (item.num_tokens // len(before))
    expanded += behind
    video = item.video and msgspec.structs.replace(item.video, later_offsets=tuple(offsets[1:]))
    return msgspec.structs.replace(item, offset=offsets[0], video=video)


def _check_count(ids: Tokens, placeholder: Placeholder, given: int, kind: str) -> None:
    found = ids.count(placeholder.token_id) if placeholder.token_id is not None else 0
    if found != given:
        raise bad_request(
            f"the prompt has {found} {kind} placeholders {placeholder.text or ''} but {given} {kind}s; "
            "send equally many"
        )
