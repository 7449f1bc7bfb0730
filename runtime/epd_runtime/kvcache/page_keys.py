"""What a page's KV depends on, as bytes: the key of the page among those that follow the same pages.

A token is its id. A placeholder is not: equal placeholders of different images must never match. In its place stand the
words of a hash of the image's content and grid, in turn: four neighbouring placeholders hold all 256 bits.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from epd_runtime.messages import ImageInput

Ints = npt.NDArray[np.int64]
WORDS = 4


def page_keys(ids: Sequence[int], start: int, images: Sequence[ImageInput], page_size: int) -> list[bytes]:
    """Keys of the full pages of ids; start is the position of ids[0] in the prompt, where images say their offset."""
    values = np.array(ids, dtype=np.int64)
    for image in images:
        for offset, row, length in image.runs:
            begin, end = max(offset, start), min(offset + length, start + len(ids))
            if begin < end:
                words = _image_words(image.content_hash, image.grid)
                rows = np.arange(begin, end) + (row - offset)
                values[begin - start : end - start] = words[rows % WORDS]
    data = values.tobytes()
    width = page_size * values.itemsize
    return [data[place : place + width] for place in range(0, len(data) - width + 1, width)]


@functools.lru_cache(maxsize=256)
def _image_words(content_hash: str, grid: tuple[int, int, int]) -> Ints:
    """int64 [4], all negative, so that none is a token id."""
    digest = hashlib.sha256(f"{content_hash}:{grid}".encode()).digest()
    return np.frombuffer(digest, dtype="<i8").astype(np.int64) | np.int64(np.iinfo(np.int64).min)
