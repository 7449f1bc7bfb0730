"""M-RoPE positions of prompts with images and videos (Qwen2-VL and its successors).

Text counts up in all three rows; an image's tokens carry (temporal, height, width) within its merged grid, and the text
behind it continues after the longer of the image's sides. Positions are thus fewer than tokens, and generated tokens
need the difference. Qwen2.5-VL measures the time of a video's frames, which may go beyond the text that follows; in
Qwen3-VL every frame stands alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from epd_runtime.messages import ImageInput

Positions = npt.NDArray[np.int32]
Span = tuple[int, tuple[int, int, int], float]  # offset, grid, temporal positions between two patches of frames; 0: 1
FAR = np.float32(1 << 30)  # beyond any context; keeps absurd times within int32


def mrope_positions(
    num_tokens: int, images: Sequence[ImageInput], merge_size: int, tokens_per_second: int = 0
) -> tuple[Positions, int]:
    """Positions int32 [3, num_tokens] of a prompt, and the delta: position of token i beyond it is i + delta.

    Answers go on from the last text, as transformers' generate() does, whatever the time of a video.

    images are in order of their offset and do not overlap; their grids are in patches, before merging.
    tokens_per_second: temporal positions of a second of video; 0: they count patches of frames.
    """
    positions = np.empty((3, num_tokens), dtype=np.int32)
    token, position = 0, 0
    for offset, grid, interval in _spans(images, tokens_per_second):
        text = offset - token
        positions[:, token:offset] = np.arange(position, position + text, dtype=np.int32)
        position += text
        t, h, w = grid[0], grid[1] // merge_size, grid[2] // merge_size
        token = offset + t * h * w
        axes = np.indices((t, h, w), dtype=np.int32).reshape(3, -1)
        if interval:
            axes[0] = np.minimum(axes[0].astype(np.float32) * np.float32(interval), FAR)
        positions[:, offset:token] = axes + position
        position += max(h, w)
    positions[:, token:] = np.arange(position, position + num_tokens - token, dtype=np.int32)
    return positions, position - token


def _spans(images: Sequence[ImageInput], tokens_per_second: int) -> Iterator[Span]:
    for image in images:
        if image.video is None:
            yield image.offset, image.grid, 0.0
        elif not image.video.later_offsets:
            yield image.offset, image.grid, tokens_per_second * image.video.seconds
        else:
            for offset, _, _ in image.runs:
                yield offset, (1, *image.grid[1:]), 0.0
