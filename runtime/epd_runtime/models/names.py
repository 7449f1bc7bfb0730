"""Where the tensors of a checkpoint go: their names and layouts, and the share of one rank.

Prefixes: `model.layers…` of text models and of older vision-language checkpoints, `model.language_model.layers…` of
newer ones; `visual.…` and `model.visual.…`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from epd_runtime.models.loader import Cut, Piece, Place, Shape
from epd_runtime.models.shard import WHOLE, Run, Shard
from epd_runtime.text_config import ExpertsConfig, TextConfig

_TEXT = re.compile(r"^(?:model\.language_model\.|language_model\.model\.|model\.)(?=layers|embed_tokens|norm)")
_VISION = re.compile(r"^(?:model\.)?visual\.")
_HEAD = re.compile(r"^(?:language_model\.)?lm_head\.weight$")
_EXPERT = re.compile(
    r"^(layers\.\d+\.mlp\.)experts\.(?:(\d+)\.)?(gate_up_proj|gate_proj|up_proj|down_proj)(?:\.weight)?$"
)
_COMPUTED = (".inv_freq",)  # buffers that old checkpoints hold and every engine computes


class LanguageNames:
    """A Place for the language model. config has the sizes of the whole model."""

    def __init__(self, config: TextConfig, shard: Shard = WHOLE) -> None:
        dim = config.head_dim
        self._config = config
        self._q = _times(shard.divide(config.num_heads, "num_attention_heads"), dim)
        self._kv = _times(shard.kv_heads(config.num_kv_heads), dim)
        self._mlp = shard.divide(config.intermediate_size, "intermediate_size")
        self._vocabulary = shard.vocabulary(config.vocab_size)
        self._shard = shard

    def __call__(self, name: str, shape: Shape) -> Sequence[Piece] | None:
        """Pieces of a tensor; see loader.Place."""
        if _VISION.match(name) or name.endswith(_COMPUTED):
            return ()
        if _HEAD.match(name):
            return () if self._config.tie_word_embeddings else [self._vocabulary_rows("lm_head.weight")]
        if not _TEXT.match(name):
            return None
        bare = _TEXT.sub("", name)
        if bare == "embed_tokens.weight":
            return [self._vocabulary_rows(bare)]
        if (match := _EXPERT.match(bare)) is not None:
            return self._expert(match, shape)
        return [self._layer(bare)]

    def _vocabulary_rows(self, parameter: str) -> Piece:
        return Piece(parameter, (), Cut(0, *self._vocabulary, self._config.vocab_size))

    def _layer(self, bare: str) -> Piece:
        """A plain tensor of a layer: its rows divided, its columns divided, or whole."""
        config = self._config
        *path, projection, kind = bare.split(".")
        total_q, total_kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        q, kv, mlp = self._q[1], self._kv[1], self._mlp[1]
        rows = {  # projection: matrix that holds it, first row there, its part of the tensor, of how many rows
            "q_proj": ("qkv_proj", 0, self._q, total_q),
            "k_proj": ("qkv_proj", q, self._kv, total_kv),
            "v_proj": ("qkv_proj", q + kv, self._kv, total_kv),
            "gate_proj": ("gate_up_proj", 0, self._mlp, config.intermediate_size),
            "up_proj": ("gate_up_proj", mlp, self._mlp, config.intermediate_size),
        }
        columns = {"o_proj": (self._q, total_q), "down_proj": (self._mlp, config.intermediate_size)}
        if projection in rows:
            fused, first, run, total = rows[projection]
            into = (slice(first, first + run[1]),)
            return Piece(".".join((*path, fused, kind)), into, Cut(0, *run, total))
        if projection in columns and kind == "weight":
            run, total = columns[projection]
            return Piece(bare, (), Cut(1, *run, total))
        return Piece(bare)

    def _expert(self, match: re.Match[str], shape: Shape) -> Sequence[Piece] | None:
        """One expert's matrix, or all of them in one tensor, in either order of its last axes."""
        prefix, number, projection = match.groups()
        experts = self._config.experts
        if experts is None or (number is not None and int(number) >= experts.num_experts):
            return None
        run = self._shard.divide(experts.intermediate_size, "moe_intermediate_size")
        if number is not None:
            return None if projection == "gate_up_proj" else [_single(prefix, int(number), projection, experts, run)]
        if projection == "gate_up_proj":
            return _all_gate_up(prefix, self._config.hidden_size, experts, run, shape)
        return _all_down(prefix, self._config.hidden_size, experts, run, shape) if projection == "down_proj" else None


def _single(prefix: str, number: int, projection: str, experts: ExpertsConfig, run: Run) -> Piece:
    if projection == "down_proj":
        return Piece(prefix + "down_proj", (number,), Cut(1, *run, experts.intermediate_size))
    first = 0 if projection == "gate_proj" else run[1]
    into = (number, slice(first, first + run[1]))
    return Piece(prefix + "gate_up_proj", into, Cut(0, *run, experts.intermediate_size))


def _all_gate_up(prefix: str, hidden: int, experts: ExpertsConfig, run: Run, shape: Shape) -> list[Piece]:
    """[experts, 2 * intermediate, hidden], or with the last two axes swapped."""
    size = experts.intermediate_size
    swapped = shape != (experts.num_experts, 2 * size, hidden)
    return [
        Piece(
            prefix + "gate_up_proj",
            (slice(None), slice(half * run[1], (half + 1) * run[1])),
            Cut(2 if swapped else 1, half * size + run[0], run[1], 2 * size),
            swapped,
        )
        for half in (0, 1)
    ]


def _all_down(prefix: str, hidden: int, experts: ExpertsConfig, run: Run, shape: Shape) -> list[Piece]:
    """[experts, hidden, intermediate], or with the last two axes swapped."""
    swapped = shape != (experts.num_experts, hidden, experts.intermediate_size)
    return [Piece(prefix + "down_proj", (), Cut(1 if swapped else 2, *run, experts.intermediate_size), swapped)]


def _times(run: Run, size: int) -> Run:
    return run[0] * size, run[1] * size


def vision_names(renamed: Mapping[str, str], intermediate: int) -> Place:
    """A Place for a vision tower. renamed: parts of names that differ here; intermediate: rows of gate and of up."""

    def place(name: str, shape: Shape) -> Sequence[Piece] | None:
        if _TEXT.match(name) or _HEAD.match(name) or name.endswith(_COMPUTED):
            return ()
        if not _VISION.match(name):
            return None
        bare = _VISION.sub("", name).replace("patch_embed.proj.", "patch_embed.")
        for old, new in renamed.items():
            bare = bare.replace(old, new)
        *path, projection, kind = bare.split(".")
        if projection not in ("gate_proj", "up_proj"):
            return [Piece(bare)]
        first = 0 if projection == "gate_proj" else intermediate
        into = (slice(first, first + intermediate),)
        return [Piece(".".join((*path, "gate_up_proj", kind)), into, Cut(0, 0, intermediate, intermediate))]

    return place
