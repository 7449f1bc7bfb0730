"""M-RoPE positions of prompts with images (Qwen2-VL and its successors).

Text counts up in all three rows; an image's tokens carry (temporal, height, width) within its merged grid, and the text
behind it continues after the longer of the image's sides. Positions are thus fewer than tokens, and generated tokens
need the difference.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from epd_runtime.messages import ImageInput

Positions = npt.NDArray[np.int32]


def mrope_positions(num_tokens: int, images: Sequence[ImageInput], merge_size: int) -> tuple[Positions, int]:
    """Positions int32 [3, num_tokens] of a prompt, and the delta: position of token i beyond it is i + delta.

    images are in order of their offset and do not overlap; their grids are in patches, before merging.
    """
    positions = np.empty((3, num_tokens), dtype=np.int32)
    token, position = 0, 0
    for image in images:
        text = image.offset - token
        positions[:, token : image.offset] = np.arange(position, position + text, dtype=np.int32)
        position += text
        token = image.offset + image.num_tokens
        t, h, w = image.grid[0], image.grid[1] // merge_size, image.grid[2] // merge_size
        positions[:, image.offset : token] = np.indices((t, h, w), dtype=np.int32).reshape(3, -1) + position
        position += max(h, w)
    positions[:, token:] = np.arange(position, position + num_tokens - token, dtype=np.int32)
    highest = int(positions.max()) if num_tokens else -1
    return positions, highest + 1 - num_tokens
