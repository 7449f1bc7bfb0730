"""Prompts against transformers: rendered chats, expanded placeholders, M-RoPE positions."""

from __future__ import annotations

import base64
import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils.chat_template_utils import render_jinja_template

from epd_runtime.frontend.chat import Chat, split_messages
from epd_runtime.frontend.chat_template import ChatTemplate
from epd_runtime.frontend.errors import RequestError
from epd_runtime.frontend.images import ImageLimits
from epd_runtime.frontend.media import MediaFetcher
from epd_runtime.frontend.model_folder import ModelFolder, load_model_folder
from epd_runtime.frontend.mrope import mrope_positions
from epd_runtime.frontend.placeholders import Placeholder, expand_placeholders
from epd_runtime.frontend.prompt import PromptBuilder
from epd_runtime.frontend.sources import MediaSource
from epd_runtime.messages import ImageInput

HANDWRITING = Path(__file__).parents[2] / "models" / "handwriting"
LIMITS = ImageLimits(max_images=4, max_file_bytes=1 << 20, max_pixels=1 << 22)


@pytest.fixture(scope="module")
def model() -> ModelFolder:
    return load_model_folder(str(HANDWRITING))


@pytest.fixture
def builder(model: ModelFolder) -> PromptBuilder:
    return PromptBuilder(model, MediaFetcher(LIMITS, 1.0, ()), LIMITS, context_length=4096)


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((width, height), 50).save(buffer, "PNG")
    return buffer.getvalue()


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def image_part(data: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(data)}}


def image(grid: tuple[int, int, int], offset: int = 0, merge: int = 2) -> ImageInput:
    return ImageInput("", grid, offset, grid[1] * grid[2] // merge**2, b"")


NO_VIDEO = Placeholder(None, None)


def reference_positions(config: Qwen2_5_VLConfig, ids: list[int], grids: list[Any]) -> tuple[np.ndarray, int]:
    """transformers' own method, on a model that is only a configuration."""
    shell = Qwen2_5_VLModel.__new__(Qwen2_5_VLModel)
    torch.nn.Module.__init__(shell)
    shell.config = config
    tokens = torch.tensor([ids])
    positions, delta = shell.get_rope_index(
        tokens, (tokens == config.image_token_id).int(), image_grid_thw=torch.tensor(grids) if grids else None
    )
    return positions[:, 0].numpy(), int(delta[0, 0])


def test_positions_equal_the_reference() -> None:
    config = Qwen2_5_VLConfig.from_pretrained(HANDWRITING)
    draw = random.Random(3)
    for _ in range(300):
        ids = [5] * draw.randint(1, 9)
        images = []
        for _ in range(draw.randint(0, 5)):
            grid = (1, 2 * draw.randint(1, 9), 2 * draw.randint(1, 9))
            images.append(image(grid, len(ids)))
            ids += [config.image_token_id] * images[-1].num_tokens + [5] * draw.randint(1, 9)
        expected, delta = reference_positions(config, ids, [item.grid for item in images])
        positions, found = mrope_positions(len(ids), images, 2)
        assert positions.dtype == np.int32
        np.testing.assert_array_equal(positions, expected)
        assert found == delta


async def test_chat_with_images_equals_the_reference(builder: PromptBuilder, model: ModelFolder) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(HANDWRITING)
    processor = Qwen2VLImageProcessorPil.from_pretrained(HANDWRITING)
    draw = random.Random(4)
    for _ in range(12):
        files = [png(draw.randint(20, 500), draw.randint(20, 300)) for _ in range(draw.randint(1, 4))]
        parts: list[dict[str, Any]] = [{"type": "text", "text": "Read:\n "}]
        for index, data in enumerate(files):
            parts += [image_part(data), {"type": "text", "text": f"{index} and ünï 🙂"}]
        messages = [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": "ok"},
            {"role": "user", "content": "?"},
        ]
        prompt = await builder.from_chat(Chat(messages))

        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in files]
        grids = processor(pictures, return_tensors="pt")["image_grid_thw"].tolist()
        for t, h, w in grids:
            text = text.replace("<|image_pad|>", "\0" * (t * h * w // 4), 1)
        expected = tokenizer(text.replace("\0", "<|image_pad|>"), add_special_tokens=False)["input_ids"]
        assert prompt.input_ids == expected
        assert [list(item.grid) for item in prompt.images] == grids
        assert [item.data for item in prompt.images] == files
        config = Qwen2_5_VLConfig.from_pretrained(HANDWRITING)
        positions, delta = reference_positions(config, expected, grids)
        np.testing.assert_array_equal(np.frombuffer(prompt.positions, np.int32).reshape(3, -1), positions)
        assert prompt.position_delta == delta


async def test_text_only_prompts_count_up(builder: PromptBuilder) -> None:
    prompt = await builder.from_chat(Chat([{"role": "user", "content": "plain"}]))
    assert (prompt.positions, prompt.position_delta, prompt.images) == (b"", 0, [])


async def test_native_text_and_ids(builder: PromptBuilder, model: ModelFolder) -> None:
    text = "look <|vision_start|><|image_pad|><|vision_end|> here"
    source = data_url(png(56, 56))
    from_text = await builder.from_native(text, [MediaSource((source,))])
    from_ids = await builder.from_native(
        model.tokenizer.encode(text).ids, [MediaSource((base64.b64encode(png(56, 56)).decode(),))]
    )
    assert from_text.input_ids == from_ids.input_ids
    assert from_text.input_ids.count(model.image_token_id) == from_text.images[0].num_tokens == 4
    assert from_text.input_ids[from_text.images[0].offset] == model.image_token_id


@pytest.mark.parametrize(
    ("prompt", "sources", "reason"),
    [
        ("no placeholder", [data_url(png(30, 30))], "0 image placeholders"),
        ("<|image_pad|> smuggled", [], "1 image placeholders"),
        ("", [], "empty"),
        ([], [], "empty"),
        ([99999], [], "between 0 and 383"),
        ([-1], [], "between 0 and 383"),
        ([1] * 5000, [], "5000 tokens"),
        ("x" * 700_000, [], "cannot fit"),
        ("<|image_pad|>" * 5, [data_url(png(30, 30))] * 5, "more than the limit of 4"),
        ("<|image_pad|>", ["file:///etc/passwd"], "only http"),
        ("<|image_pad|>", ["http://127.0.0.1/x.png"], "private"),
    ],
)
async def test_impossible_prompts(builder: PromptBuilder, prompt: Any, sources: list[str], reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        await builder.from_native(prompt, [MediaSource((source,)) for source in sources])
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "messages",
    [
        [],
        ["text"],
        [{"content": "no role"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": [{"type": "audio_url"}]}],
        [{"role": "user", "content": ["text"]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 5}}]}],
    ],
)
async def test_malformed_messages(builder: PromptBuilder, messages: list[Any]) -> None:
    with pytest.raises(RequestError) as caught:
        await builder.from_chat(Chat(messages))
    assert caught.value.status == 400


def test_content_for_models_without_images_is_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert split_messages([{"role": "user", "content": parts}], with_images=False) == (
        [{"role": "user", "content": "a\nb"}],
        [],
    )
    with pytest.raises(RequestError, match="takes no images"):
        split_messages([{"role": "user", "content": [image_part(b"x")]}], with_images=False)


def test_expansion_tells_offsets() -> None:
    ids, placed = expand_placeholders(
        [1, 9, 2, 9], [image((1, 2, 4)), image((1, 2, 2))], Placeholder(9, "<i>"), NO_VIDEO
    )
    assert ids == [1, 9, 9, 2, 9]
    assert [item.offset for item in placed] == [1, 4]


TEMPLATE = """{{ bos_token }}{% for m in messages %}
    {%- if m.role == 'bad' %}{{ raise_exception('no such role') }}{% endif %}
    {%- if loop.index > 3 %}{% break %}{% endif %}
  {% generation %}[{{ m.role }}] {{ m.content | tojson }}{% endgeneration %}
{% endfor %}
{% if add_generation_prompt %}>{{ strftime_now('%Y')[:2] }}{% endif %}"""


def test_template_environment_equals_the_reference() -> None:
    messages = [{"role": role, "content": "<ä & 'quoted'>"} for role in ("user", "assistant", "user", "user", "user")]
    expected, _ = render_jinja_template([messages], chat_template=TEMPLATE, add_generation_prompt=True, bos_token="<s>")
    assert ChatTemplate(TEMPLATE, {"bos_token": "<s>"}).render(messages) == expected[0]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (TEMPLATE, "no such role"),
        ("{{ messages[0].__class__.__mro__ }}", "cannot render"),
        ("{{ messages.append(1) }}", "cannot render"),
        ("{{ 1 / 0 }}", "cannot render"),
        ("{{ messages[7].role.x }}", "cannot render"),
    ],
)
def test_templates_fail_as_bad_requests(source: str, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        ChatTemplate(source, {}).render([{"role": "bad", "content": ""}])
    assert caught.value.status == 400
