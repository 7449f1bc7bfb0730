"""What config.json says about the language model.

Checkpoints spell the same facts in two generations: `rope_theta` beside `rope_scaling`, or both inside
`rope_parameters`; this module is the only one that knows. What a family's name implies and its files do not say stands
in TEXT_FAMILIES.
"""

from __future__ import annotations

import dataclasses

from epd_runtime.json_fields import Fields, ModelConfigError


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretch of rotary positions. original_max_positions in tokens."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class ExpertsConfig:
    """A mixture of experts in place of the MLP. layers are those that have it, the others keep a plain MLP."""

    num_experts: int
    experts_per_token: int
    intermediate_size: int
    normalise: bool  # the chosen experts' weights add up to one
    layers: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes of a decoder-only language model."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_positions: int
    rope_theta: float
    rope_scaling: RopeScaling | None
    mrope_section: tuple[int, ...]  # () when positions are plain
    mrope_interleaved: bool  # frequencies take turns between the axes, instead of lying in blocks
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool  # RMSNorm over every head of q and k
    experts: ExpertsConfig | None
    tie_word_embeddings: bool


@dataclasses.dataclass(frozen=True)
class TextFamily:
    """What the name of a family says. head_dim None: hidden_size / num_attention_heads."""

    rope_theta: float = 10000.0
    head_dim: int | None = None
    qkv_bias: bool = False  # always; else attention_bias decides, for q, k, v and o
    qk_norm: bool = False
    mrope_section: tuple[int, ...] = ()
    mrope_interleaved: bool = False
    experts: bool = False
    always_normalises: bool = False  # experts' weights, whatever norm_topk_prob says


_QWEN2_VL = TextFamily(rope_theta=1_000_000.0, qkv_bias=True, mrope_section=(16, 24, 24))
_QWEN3_VL = TextFamily(rope_theta=500_000.0, qk_norm=True, mrope_section=(24, 20, 20), mrope_interleaved=True)

TEXT_FAMILIES = {
    "llama": TextFamily(),
    "qwen2": TextFamily(qkv_bias=True),
    "qwen3": TextFamily(head_dim=128, qk_norm=True),
    "qwen3_moe": TextFamily(qk_norm=True, experts=True),
    "qwen2_vl": _QWEN2_VL,
    "qwen2_5_vl": _QWEN2_VL,
    "qwen3_vl": dataclasses.replace(_QWEN3_VL, head_dim=128),
    "qwen3_vl_moe": dataclasses.replace(_QWEN3_VL, experts=True, always_normalises=True),
}
ROPE_TYPES = ("default", "mrope", "llama3")
MAX_LAYERS = 10_000


def read_text_config(model_type: str, config: Fields, raw: Fields) -> TextConfig:
    """config: the whole of config.json; raw: its text fields, wherever they stand. Raises ModelConfigError."""
    if (family := TEXT_FAMILIES.get(model_type)) is None:
        raise ModelConfigError(
            f"{config.where}: model_type {model_type!r} is not supported; known are {', '.join(TEXT_FAMILIES)}"
        )
    rope = raw.object("rope_parameters" if "rope_parameters" in raw else "rope_scaling")
    rope_type = rope.text("rope_type", rope.text("type", "default"))
    if rope_type not in ROPE_TYPES:
        raise ModelConfigError(f"rope type {rope_type!r} is not supported; known are {', '.join(ROPE_TYPES)}")
    _check_arithmetic(raw, rope)
    hidden_size, num_heads = raw.integer("hidden_size"), raw.integer("num_attention_heads")
    num_layers = raw.integer("num_hidden_layers")
    if num_layers > MAX_LAYERS:
        raw.refuse("num_hidden_layers", f"at most {MAX_LAYERS}")
    bias = raw.boolean("attention_bias", False)
    text = TextConfig(
        vocab_size=raw.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=raw.integer("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=raw.integer("num_key_value_heads", num_heads),
        head_dim=raw.integer("head_dim", family.head_dim or hidden_size // num_heads),
        rms_norm_eps=raw.number("rms_norm_eps"),
        max_positions=raw.integer("max_position_embeddings"),
        rope_theta=(rope if "rope_theta" in rope else raw).number("rope_theta", family.rope_theta),
        rope_scaling=_rope_scaling(rope) if rope_type == "llama3" else None,
        mrope_section=rope.integers("mrope_section", family.mrope_section) if family.mrope_section else (),
        mrope_interleaved=family.mrope_interleaved,
        qkv_bias=family.qkv_bias or bias,
        o_bias=bias and not family.qkv_bias,
        mlp_bias=model_type == "llama" and raw.boolean("mlp_bias", False),
        qk_norm=family.qk_norm,
        experts=_experts(family, raw, num_layers) if family.experts else None,
        tie_word_embeddings=_is_tied(family, config, raw),
    )
    _check_heads(raw, text)
    return text


def _is_tied(family: TextFamily, config: Fields, raw: Fields) -> bool:
    """The top level decides where it says something; Qwen2-VL's checkpoints may say it inside text_config only."""
    name = "tie_word_embeddings"
    if name in config and not (family.mrope_section and family.qkv_bias):
        return config.boolean(name, False)
    return config.boolean(name, False) or raw.boolean(name, False)


def _check_arithmetic(raw: Fields, rope: Fields) -> None:
    """Refuse what would compute other numbers."""
    if raw.boolean("use_sliding_window", False):
        raise ModelConfigError(f"{raw.where}: use_sliding_window is not supported; this engine attends to everything")
    kinds = raw.values.get("layer_types", [])
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raw.refuse("layer_types", "full_attention in every layer")
    for fields in (raw, rope):
        if fields.number("partial_rotary_factor", 1.0) != 1.0:
            fields.refuse("partial_rotary_factor", "1: heads are rotated as a whole")
    if raw.text("hidden_act", "silu") not in ("silu", "swish"):
        raw.refuse("hidden_act", "silu")


def _check_heads(raw: Fields, text: TextConfig) -> None:
    if text.num_heads % text.num_kv_heads:
        raise ModelConfigError(
            f"{raw.where}: num_attention_heads {text.num_heads} must be a multiple of "
            f"num_key_value_heads {text.num_kv_heads}"
        )
    if text.head_dim % 2:
        raise ModelConfigError(f"{raw.where}: head_dim {text.head_dim} must be even, for rotary positions")
    sections = text.mrope_section
    fits = len(sections) == 3 if text.mrope_interleaved else len(sections) % 3 == 0
    if sections and not (fits and sum(sections) * 2 == text.head_dim):
        raise ModelConfigError(
            f"{raw.where}: mrope_section {list(sections)} must be three numbers whose sum is half of "
            f"head_dim {text.head_dim}"
        )


def _rope_scaling(rope: Fields) -> RopeScaling:
    scaling = RopeScaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_max_positions=rope.integer("original_max_position_embeddings"),
    )
    if scaling.low_freq_factor >= scaling.high_freq_factor:
        rope.refuse("low_freq_factor", f"below high_freq_factor {scaling.high_freq_factor:g}")
    return scaling


def _experts(family: TextFamily, raw: Fields, num_layers: int) -> ExpertsConfig:
    """Both spellings of the number of experts; every decoder_sparse_step-th layer has them, but for named ones."""
    name = "num_experts" if "num_experts" in raw else "num_local_experts"
    step, plain = raw.integer("decoder_sparse_step", 1), set(raw.integers("mlp_only_layers", ()))
    experts = ExpertsConfig(
        num_experts=raw.integer(name),
        experts_per_token=raw.integer("num_experts_per_tok"),
        intermediate_size=raw.integer("moe_intermediate_size"),
        normalise=family.always_normalises or raw.boolean("norm_topk_prob", False),
        layers=tuple(layer for layer in range(step - 1, num_layers, step) if layer not in plain),
    )
    if experts.experts_per_token > experts.num_experts:
        raw.refuse("num_experts_per_tok", f"at most {name} = {experts.num_experts}")
    return experts
