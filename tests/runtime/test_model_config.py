"""Model folders that somebody got wrong: one clear error, naming file and field, instead of a traceback."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from epd_runtime.config import ConfigError, ServerConfig
from epd_runtime.encoder.preprocess import Normalisation
from epd_runtime.json_fields import ModelConfigError
from epd_runtime.model_config import load_model_config
from epd_runtime.models.loader import Cut, Piece, WeightError, load_weights

GIVEN = json.loads((Path(__file__).parents[2] / "models" / "handwriting" / "config.json").read_text())

QWEN3_VL_MOE: dict[str, Any] = {
    "model_type": "qwen3_vl_moe",
    "text_config": GIVEN["text_config"] | {
        "head_dim": 32, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2,
    },
    "vision_config": {
        "depth": 3, "hidden_size": 96, "intermediate_size": 100, "num_heads": 3, "out_hidden_size": 128,
        "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 2],
    },
}  # fmt: skip
_FLAT = {name: value for name, value in GIVEN["text_config"].items() if name != "rope_parameters"}
QWEN2_VL: dict[str, Any] = _FLAT | {
    "model_type": "qwen2_vl",
    "rope_scaling": {"type": "mrope", "mrope_section": GIVEN["text_config"]["rope_parameters"]["mrope_section"]},
    "vision_config": {
        "depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": _FLAT["hidden_size"], "mlp_ratio": 4, "in_chans": 3,
    },
}  # fmt: skip


def write(folder: Path, content: Any, name: str = "config.json") -> Path:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def changed(path: str, value: Any, base: dict[str, Any] = GIVEN) -> dict[str, Any]:
    """A configuration with one field, a.b.c, replaced."""
    config: dict[str, Any] = json.loads(json.dumps(base))
    *parents, name = path.split(".")
    place = config
    for parent in parents:
        place = place[parent]
    place[name] = value
    return config


def test_both_generations_of_one_model_are_equal(tmp_path: Path) -> None:
    old = {**GIVEN, **GIVEN["text_config"], "model_type": GIVEN["model_type"], "rope_theta": 10000.0}
    rope = {"type": "mrope", "mrope_section": GIVEN["text_config"]["rope_parameters"]["mrope_section"]}
    for name in ("text_config", "rope_parameters"):
        old.pop(name, None)
    new = load_model_config(write(tmp_path, GIVEN))
    assert load_model_config(write(tmp_path, {**old, "rope_scaling": rope, "tie_word_embeddings": False})) == new


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("text_config", [1], "text_config"),
        ("text_config.hidden_size", "128", "hidden_size"),
        ("text_config.hidden_size", True, "hidden_size"),
        ("text_config.hidden_size", None, "hidden_size"),
        ("text_config.num_attention_heads", 0, "num_attention_heads"),
        ("text_config.num_key_value_heads", 3, "num_key_value_heads"),
        ("text_config.num_hidden_layers", 10**30, "num_hidden_layers"),
        ("text_config.head_dim", 31, "head_dim"),
        ("text_config.rms_norm_eps", float("nan"), "rms_norm_eps"),
        ("text_config.rms_norm_eps", 10**400, "rms_norm_eps"),
        ("text_config.use_sliding_window", True, "use_sliding_window"),
        ("text_config.hidden_act", "gelu", "hidden_act"),
        ("text_config.layer_types", ["full_attention", "sliding_attention", "full_attention"], "layer_types"),
        ("text_config.partial_rotary_factor", 0.5, "partial_rotary_factor"),
        ("text_config.rope_parameters.partial_rotary_factor", 0.25, "partial_rotary_factor"),
        ("text_config.num_hidden_layers", 10_001, "num_hidden_layers"),
        ("text_config.eos_token_id", ["a"], "eos_token_id"),
        ("text_config.rope_parameters", "x", "rope_parameters"),
        ("text_config.rope_parameters.rope_type", "yarn", "yarn"),
        ("text_config.rope_parameters.rope_type", "llama3", "factor"),
        ("text_config.rope_parameters.mrope_section", [4, 6], "mrope_section"),
        ("text_config.rope_parameters.mrope_section", [4, 6, "6"], "mrope_section"),
        ("vision_config", 3, "vision_config"),
        ("vision_config.window_size", 8, "window_size"),
        ("vision_config.in_channels", 1, "in_channels"),
        ("vision_config.num_heads", 7, "num_heads"),
        ("vision_config.out_hidden_size", 64, "out_hidden_size"),
        ("vision_config.fullatt_block_indexes", [-1], "fullatt_block_indexes"),
        ("model_type", 5, "model_type"),
        ("architectures", 5, "architectures"),
        ("architectures", [5], "architectures"),
        ("dtype", "float8_e4m3fn", "dtype"),
        ("quantization_config", {"bits": 4}, "quantised"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, path: str, value: Any, named: str) -> None:
    with pytest.raises(ModelConfigError, match=named) as raised:
        load_model_config(write(tmp_path, changed(path, value)))
    assert len(str(raised.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("content", ["", "[1]", "{", "[" * 100_000, "\x00", '"x"'])
def test_files_that_are_no_json_object_are_named(tmp_path: Path, content: str) -> None:
    with pytest.raises(ModelConfigError, match=r"config\.json"):
        load_model_config(write(tmp_path, content))


def _paths(content: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name, value in content.items():
        found.append(prefix + name)
        if isinstance(value, dict):
            found += _paths(value, f"{prefix}{name}.")
    return found


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@given(
    place=st.sampled_from([(base, path) for base in (GIVEN, QWEN3_VL_MOE, QWEN2_VL) for path in _paths(base)]),
    value=JSON,
)
def test_any_value_anywhere_loads_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, place: tuple[dict[str, Any], str], value: Any
) -> None:
    base, path = place
    folder = write(tmp_path_factory.mktemp("model"), changed(path, value, base))
    with contextlib.suppress(ModelConfigError):
        load_model_config(folder)


def test_a_tower_of_an_unknown_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelConfigError, match="vision_config"):
        load_model_config(write(tmp_path, changed("model_type", "llama")))


@pytest.mark.parametrize(
    ("field", "value"),
    [("image_mean", [0.5]), ("image_std", [0, 1, 1]), ("image_std", "x"), ("resample", 99), ("rescale_factor", 0)],
)
def test_wrong_image_settings_are_named(tmp_path: Path, field: str, value: Any) -> None:
    with pytest.raises(ModelConfigError, match=field):
        Normalisation.load(write(tmp_path, {field: value}, "preprocessor_config.json"))


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("vision_config", "num_position_embeddings", 15),
        ("vision_config", "deepstack_visual_indexes", [0, 3]),
        ("vision_config", "deepstack_visual_indexes", [1, 1]),
        ("vision_config", "deepstack_visual_indexes", None),
        ("vision_config", "hidden_act", "relu"),
        ("vision_config", "out_hidden_size", 64),
        ("text_config", "num_experts_per_tok", 5),
        ("text_config", "num_experts", None),
        ("text_config", "moe_intermediate_size", 0),
        ("text_config", "mlp_only_layers", "x"),
        ("text_config", "decoder_sparse_step", 0),
    ],
)
def test_a_wrong_field_of_a_newer_family_is_named(tmp_path: Path, part: str, field: str, value: Any) -> None:
    good = load_model_config(write(tmp_path, QWEN3_VL_MOE))
    assert good.embedding_width == 3 * 128
    assert good.text.experts is not None
    wrong = QWEN3_VL_MOE | {part: QWEN3_VL_MOE[part] | {field: value}}
    with pytest.raises(ModelConfigError, match=field.removeprefix("num_")):
        load_model_config(write(tmp_path, wrong))


def test_more_deepstack_blocks_than_layers_are_refused(tmp_path: Path) -> None:
    shallow = QWEN3_VL_MOE["text_config"] | {"num_hidden_layers": 1}
    with pytest.raises(ModelConfigError, match="deepstack_visual_indexes names 2 blocks"):
        load_model_config(write(tmp_path, QWEN3_VL_MOE | {"text_config": shallow}))


def test_the_flat_form_of_older_checkpoints(tmp_path: Path) -> None:
    """Text fields at the top, a tower whose hidden_size is that of its output, a tie that only text_config knows."""
    config = load_model_config(write(tmp_path, QWEN2_VL))
    assert config.text.rope_theta == 1_000_000.0
    assert config.vision is not None
    assert (config.vision.hidden_size, config.vision.intermediate_size, config.vision.window_size) == (32, 128, 0)
    assert config.vision.activation == "quick_gelu"
    tied = {**QWEN2_VL, "tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}
    assert load_model_config(write(tmp_path, tied)).text.tie_word_embeddings


def test_image_settings_inside_a_processor_configuration_count(tmp_path: Path) -> None:
    settings = {"image_processor": {"image_mean": [0.5, 0.5, 0.5], "do_rescale": False}}
    loaded = Normalisation.load(write(tmp_path, settings, "processor_config.json"))
    assert (loaded.mean, loaded.rescale) == ((0.5, 0.5, 0.5), 1.0)


def test_damaged_and_doubled_weights_are_refused(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 2, bias=False)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(WeightError, match=r"model\.safetensors is damaged"):
        load_weights(module, tmp_path, lambda name, shape: ())
    save_file({"a": torch.ones(1, 2), "b": torch.ones(1, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightError, match="two tensors"):
        load_weights(module, tmp_path, lambda name, shape: [Piece("weight", (slice(0, 1),), Cut(0, 0, 1, 1))])
    save_file({"a": torch.ones(2, 2, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightError, match="quantised"):
        load_weights(module, tmp_path, lambda name, shape: [Piece("weight")])
    write(tmp_path, {"weight_map": {"a": 3}}, "model.safetensors.index.json")
    with pytest.raises(ModelConfigError, match="weight_map"):
        load_weights(module, tmp_path, lambda name, shape: ())


@pytest.mark.parametrize(
    "values",
    [
        {"media_url_timeout": float("nan")},
        {"media_url_timeout": 0.0},
        {"max_image_pixels": 0},
        {"media_url_max_file_size_mb": -1},
        {"limit_images_per_request": -1},
        {"port": 65536},
        {"port": 8998, "disaggregation_mode": "prefill"},
    ],
)
def test_flags_that_cannot_work_are_named(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--" + next(iter(values)).replace("_", "-")):
        ServerConfig(model_path="m", **values).validate()
