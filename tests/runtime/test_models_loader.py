"""Checkpoints: what does not fit is named before anything is read; the parts of several ranks make the whole."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from epd_runtime.json_fields import ModelConfigError
from epd_runtime.models.decoder import DecoderLayer, LanguageModel
from epd_runtime.models.loader import WeightError, fill_dummy, load_weights
from epd_runtime.models.names import LanguageNames
from epd_runtime.models.shard import WHOLE, Shard
from epd_runtime.text_config import ExpertsConfig, TextConfig

EXPERTS = ExpertsConfig(num_experts=3, experts_per_token=2, intermediate_size=12, normalise=True, layers=(1,))


def config(kv_heads: int = 2, tied: bool = False) -> TextConfig:
    """Two layers, the second with experts; a vocabulary that two ranks cannot halve."""
    return TextConfig(
        vocab_size=37, hidden_size=24, intermediate_size=20, num_layers=2, num_heads=4, num_kv_heads=kv_heads,
        head_dim=8, rms_norm_eps=1e-6, max_positions=64, rope_theta=1e4, rope_scaling=None, mrope_section=(),
        mrope_interleaved=False, qkv_bias=True, o_bias=True, mlp_bias=True, qk_norm=True, experts=EXPERTS,
        tie_word_embeddings=tied,
    )  # fmt: skip


def checkpoint(text: TextConfig, experts: str) -> dict[str, Tensor]:
    """Random tensors under the names of checkpoints; experts: "single", "fused" or "swapped" matrices."""
    hidden, width, kv = text.hidden_size, text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (text.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not text.tie_word_embeddings:
        shapes["lm_head.weight"] = (text.vocab_size, hidden)
    for layer in range(text.num_layers):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
        shapes |= {f"{at}self_attn.{name}_norm.weight": (text.head_dim,) for name in "qk"}
        for name, rows in (("q", width), ("k", kv), ("v", kv)):
            shapes |= {f"{at}self_attn.{name}_proj.weight": (rows, hidden), f"{at}self_attn.{name}_proj.bias": (rows,)}
        shapes |= {f"{at}self_attn.o_proj.weight": (hidden, width), f"{at}self_attn.o_proj.bias": (hidden,)}
    size = text.intermediate_size
    for name in ("gate", "up"):
        shapes |= {f"model.layers.0.mlp.{name}_proj.weight": (size, hidden)}
        shapes |= {f"model.layers.0.mlp.{name}_proj.bias": (size,)}
    shapes |= {"model.layers.0.mlp.down_proj.weight": (hidden, size), "model.layers.0.mlp.down_proj.bias": (hidden,)}
    return {name: torch.randn(shape) for name, shape in (shapes | expert_shapes(hidden, experts)).items()}


def expert_shapes(hidden: int, form: str) -> dict[str, tuple[int, ...]]:
    at, number, size = "model.layers.1.mlp.", EXPERTS.num_experts, EXPERTS.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {f"{at}gate.weight": (number, hidden)}
    if form == "fused":
        shapes |= {
            f"{at}experts.gate_up_proj": (number, 2 * size, hidden),
            f"{at}experts.down_proj": (number, hidden, size),
        }
    elif form == "swapped":
        shapes |= {
            f"{at}experts.gate_up_proj": (number, hidden, 2 * size),
            f"{at}experts.down_proj": (number, size, hidden),
        }
    else:
        for index in range(number):
            shapes |= {f"{at}experts.{index}.{name}_proj.weight": (size, hidden) for name in ("gate", "up")}
            shapes[f"{at}experts.{index}.down_proj.weight"] = (hidden, size)
    return shapes


def load(folder: Path, text: TextConfig, shard: Shard = WHOLE) -> LanguageModel:
    model = LanguageModel(shard.part_of(text)).requires_grad_(False)
    load_weights(model, folder, LanguageNames(text, shard))
    return model


def write(folder: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("experts", ["single", "fused", "swapped"])
def test_the_parts_of_two_ranks_make_the_whole(tmp_path: Path, experts: str, kv_heads: int) -> None:
    """Layers are compared by what they compute: sums over ranks behind o_proj and down_proj, heads side by side."""
    text = config(kv_heads)
    folder = write(tmp_path, checkpoint(text, experts))
    whole, parts = load(folder, text), [load(folder, text, Shard(rank, 2)) for rank in range(2)]
    x = torch.randn(5, text.hidden_size)
    torch.testing.assert_close(torch.cat([part.embed_tokens.weight for part in parts]), whole.embed_tokens.weight)
    heads = [model.lm_head(x) for model in (*parts, whole) if model.lm_head is not None]
    torch.testing.assert_close(torch.cat(heads[:2], dim=1), heads[2])
    for index in range(text.num_layers):
        one, *halves = (model.layers[index] for model in (whole, *parts))
        assert isinstance(one, DecoderLayer)
        assert all(isinstance(half, DecoderLayer) for half in halves)
        check_attention(one, halves, x)  # type: ignore[arg-type]
        biases = [getattr(half.mlp.down_proj, "bias", None) for half in halves]  # whole on every rank, added once
        extra = 0 if biases[0] is None else biases[0]
        torch.testing.assert_close(halves[0].mlp(x) + halves[1].mlp(x) - extra, one.mlp(x), rtol=1e-4, atol=1e-4)  # type: ignore[operator]


def check_attention(whole: DecoderLayer, parts: list[DecoderLayer], x: Tensor) -> None:
    def split(layer: DecoderLayer) -> list[Tensor]:
        return list(
            layer.self_attn.qkv_proj(x).split(
                [heads * layer.self_attn.head_dim for heads in layer.self_attn.heads], dim=1
            )
        )

    (q, k, v), first, second = split(whole), split(parts[0]), split(parts[1])
    torch.testing.assert_close(torch.cat((first[0], second[0]), dim=1), q)
    for mine, other, all_heads in ((first[1], second[1], k), (first[2], second[2], v)):
        copied = mine.shape == all_heads.shape
        torch.testing.assert_close(other if copied else torch.cat((mine, other), dim=1), all_heads)
        torch.testing.assert_close(mine, all_heads[:, : mine.shape[1]])
    projected = [part.self_attn.o_proj(half) for part, half in zip(parts, (first[0], second[0]), strict=True)]
    bias = whole.self_attn.o_proj.bias
    torch.testing.assert_close(sum(projected) - bias, whole.self_attn.o_proj(q), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("size", "named"), [(3, "num_attention_heads 4"), (8, "moe_intermediate_size 12")])
def test_a_model_that_ranks_cannot_share_is_refused(size: int, named: str) -> None:
    with pytest.raises(ModelConfigError, match=f"{named} cannot be divided among {size} ranks"):
        Shard(0, size).part_of(config())


def test_more_ranks_than_kv_heads_hold_copies() -> None:
    assert [Shard(rank, 4).kv_heads(2) for rank in range(4)] == [(0, 1), (0, 1), (1, 1), (1, 1)]
    with pytest.raises(ModelConfigError, match="num_key_value_heads 3 cannot be shared by 4 ranks"):
        Shard(0, 4).kv_heads(3)


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    text = config()
    good = checkpoint(text, "single")

    def message(change: dict[str, Tensor | None]) -> str:
        tensors = {name: tensor for name, tensor in (good | change).items() if tensor is not None}
        with pytest.raises(WeightError) as raised:
            load(write(tmp_path, tensors), text)
        return str(raised.value)

    load(write(tmp_path, good | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}), text)
    load(write(tmp_path, good | {"visual.blocks.0.norm1.weight": torch.ones(4)}), text)
    assert "'layers.0.self_attn.qkv_proj.weight'" in message({"model.layers.0.self_attn.k_proj.weight": None})
    assert "'lm_head.weight'" in message({"lm_head.weight": None})
    assert "'layers.1.mlp.down_proj'" in message({"model.layers.1.mlp.experts.2.down_proj.weight": None})
    for name in (
        "model.layers.0.self_attn.sinks", "model.layers.2.input_layernorm.weight", "extra.weight",
        "model.layers.1.mlp.experts.3.up_proj.weight", "model.layers.1.mlp.experts.0.gate_up_proj.weight",
        "model.layers.0.mlp.experts.0.up_proj.weight",
    ):  # fmt: skip
        assert repr(name) in message({name: torch.ones(4)})
    assert "and 2 more" in message({f"extra.{index}": torch.ones(1) for index in range(7)})
    long = torch.ones(40, 24)
    assert "has shape (40, 24), the model needs (32, 24)" in message({"model.layers.0.self_attn.q_proj.weight": long})
    assert "model needs (24, 20)" in message({"model.layers.0.mlp.down_proj.weight": torch.ones(24, 21)})
    assert "model needs" in message({"model.norm.weight": torch.ones(24, 1, 1)})


def test_a_tied_head_is_ignored_and_not_needed(tmp_path: Path) -> None:
    text = config(tied=True)
    tensors = checkpoint(text, "fused")
    assert "lm_head.weight" not in tensors
    assert load(write(tmp_path, tensors), text).lm_head is None
    load(write(tmp_path, tensors | {"lm_head.weight": torch.randn(37, 24)}), text)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_shards_of_any_float_type_are_converted(tmp_path: Path, dtype: torch.dtype) -> None:
    text = config()
    tensors = {name: tensor.to(dtype) for name, tensor in checkpoint(text, "swapped").items()}
    names = sorted(tensors)
    files = {f"model-{part}.safetensors": names[part::3] for part in range(3)}
    for file, held in files.items():
        save_file({name: tensors[name] for name in held}, tmp_path / file)
    index: dict[str, Any] = {"weight_map": {name: file for file, held in files.items() for name in held}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    model = load(tmp_path, text)
    expected = load_file(tmp_path / "model-0.safetensors") | load_file(tmp_path / "model-1.safetensors")
    expected |= load_file(tmp_path / "model-2.safetensors")
    swapped = expected["model.layers.1.mlp.experts.down_proj"].float().transpose(1, 2)
    assert torch.equal(dict(model.named_parameters())["layers.1.mlp.down_proj"], swapped)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(WeightError, match=r"lacks the shard model-1\.safetensors"):
        load(tmp_path, text)


class Terminal(io.StringIO):
    """A standard error that somebody watches."""

    def isatty(self) -> bool:
        return True


def test_progress_is_shown_to_people_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = config()
    folder = write(tmp_path, checkpoint(text, "single"))
    load(folder, text)
    assert capsys.readouterr().err == ""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    load(folder, text)
    assert terminal.getvalue() == "\rloading weights: 1 of 1 files\n"


def test_dummy_weights_fill_everything_and_depend_on_the_seed() -> None:
    models = [LanguageModel(config()).requires_grad_(False) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
        fill_dummy(model, seed)
    first, same, other = (dict(model.named_parameters()) for model in models)
    for name, parameter in first.items():
        assert parameter.isfinite().all(), name
        assert torch.equal(parameter, same[name])
        assert torch.equal(parameter, other[name]) == ("norm" in name), name


def test_making_a_model_imports_no_compiler() -> None:
    """Parts of torch that some operations on meta tensors import take longer than the rest of an engine's start."""
    code = """
import sys
from pathlib import Path
import torch
from epd_runtime.model_config import load_model_config
from epd_runtime.models.registry import load_language_model, load_vision_tower
config = load_model_config(Path(sys.argv[1]))
place = Path(sys.argv[1]), torch.device("cpu"), torch.float32
load_language_model(config, *place, 64, None)
load_vision_tower(config, *place, None)
late = {"torch._dynamo", "torch.fx.experimental.symbolic_shapes", "transformers"} & set(sys.modules)
assert not late, late
"""
    subprocess.run([sys.executable, "-c", code, str(Path(__file__).parents[2] / "models" / "handwriting")], check=True)
