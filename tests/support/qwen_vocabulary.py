"""The tokenizer of the Qwen2 to Qwen3 families with its real vocabulary, 151,643 ranks out of a package on the index.

The package lists tokens by rank, as tiktoken does; a tokenizer.json wants the merge that makes each token: the last one
that the lower ranks leave to do.
"""

from __future__ import annotations

import base64
import importlib.util
import itertools
from collections.abc import Sequence
from pathlib import Path

from transformers import Qwen2TokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip


def read_ranks() -> dict[bytes, int]:
    """Rank by token."""
    package = importlib.util.find_spec("dashscope")  # imported it would want to talk to its service
    assert package is not None
    assert package.origin is not None
    lines = (Path(package.origin).parent / "resources" / "qwen.tiktoken").read_bytes().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}


def merged(word: bytes, ranks: dict[bytes, int], below: int) -> list[bytes]:
    """Byte-pair encoding of a word by the tokens that rank below a number."""
    parts = [word[place : place + 1] for place in range(len(word))]
    while len(parts) > 1:
        pairs = [ranks.get(left + right, below) for left, right in itertools.pairwise(parts)]
        best = min(pairs)
        if best >= below:
            break
        place = pairs.index(best)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts


def last_merge(token: bytes, ranks: dict[bytes, int]) -> Sequence[bytes]:
    """The two tokens that become this one."""
    splits = [(token[:place], token[place:]) for place in range(1, len(token))]
    known = [split for split in splits if split[0] in ranks and split[1] in ranks]
    return known[0] if len(known) == 1 else merged(token, ranks, ranks[token])


def save_tokenizer(folder: Path, ranks: dict[bytes, int]) -> None:
    """Write the tokenizer's files, special tokens behind the ranks."""
    letters = bytes_to_unicode()

    def text(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = [tuple(map(text, last_merge(token, ranks))) for token in ranks if len(token) > 1]
    tokenizer = Qwen2TokenizerFast(
        vocab={text(token): rank for token, rank in ranks.items()}, merges=merges,
        extra_special_tokens=list(SPECIAL_TOKENS),
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
