"""The frontend with the vocabulary of the real Qwen checkpoints: 151,643 tokens, many of them parts of characters."""

from __future__ import annotations

import json
import random
import shutil
import unicodedata

import pytest
import regex
from transformers import AutoTokenizer

from epd_runtime.frontend.chat import Chat
from epd_runtime.frontend.detokenizer import Detokenizer
from epd_runtime.frontend.images import ImageLimits
from epd_runtime.frontend.media import MediaFetcher
from epd_runtime.frontend.model_folder import ModelFolder, load_model_folder
from epd_runtime.frontend.prompt import PromptBuilder
from qwen_vocabulary import SPECIAL_TOKENS, merged, read_ranks, save_tokenizer
from random_models import HANDWRITING, KNOWN

WORDS = regex.compile(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ALPHABETS = (
    "abcdefgh ISN'T", "0123456789 .,", "äößéñ ", "日本語漢字、。", "한국어 ", "عربى ", "\n\t  \r", "{}[]();=<|>_",
    "🙂\N{FAMILY}\N{EMOJI MODIFIER FITZPATRICK TYPE-4}\N{ZERO WIDTH JOINER}\N{VARIATION SELECTOR-16}",
)  # fmt: skip
LIMITS = ImageLimits(max_images=4, max_file_bytes=1 << 20, max_pixels=1 << 22)


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    return read_ranks()


@pytest.fixture(scope="module")
def model(ranks: dict[bytes, int], tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """A model folder with everything that the API process reads."""
    folder = tmp_path_factory.mktemp("qwen")
    save_tokenizer(folder, ranks)
    for name in ("chat_template.jinja", "preprocessor_config.json", "generation_config.json"):
        shutil.copy(HANDWRITING / name, folder)
    ids = {f"{name}_token_id": len(ranks) + SPECIAL_TOKENS.index(f"<|{name}_pad|>") for name in ("image", "video")}
    text = KNOWN["text_config"] | {"vocab_size": 151_936, "eos_token_id": 151_645, "pad_token_id": 151_643}
    (folder / "config.json").write_text(json.dumps(KNOWN | ids | {"text_config": text}))
    return load_model_folder(str(folder))


def texts(count: int) -> list[str]:
    """Texts of several scripts."""
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    draw = random.Random(seed)
    drawn = ["".join("".join(draw.choices(draw.choice(ALPHABETS), k=8)) for _ in range(12)) for _ in range(count)]
    return [unicodedata.normalize("NFC", text) for text in drawn]  # as the tokenizer does


def test_texts_become_the_tokens_of_their_ranks_and_come_back(model: ModelFolder, ranks: dict[bytes, int]) -> None:
    """Against byte-pair encoding by ranks, written from its definition."""
    for text in texts(300):
        ids = model.tokenizer.encode(text).ids
        assert ids == [ranks[part] for word in WORDS.findall(text) for part in merged(word.encode(), ranks, len(ranks))]
        assert model.tokenizer.decode(ids) == text


def test_special_tokens_have_their_places(model: ModelFolder, ranks: dict[bytes, int]) -> None:
    assert len(ranks) == 151_643
    for place, token in enumerate(SPECIAL_TOKENS):
        assert model.tokenizer.encode(f"a{token}b").ids == [64, len(ranks) + place, 65]
        assert model.tokenizer.decode([64, len(ranks) + place]) == "a"
    assert (model.image_token_id, model.image_token) == (151_655, "<|image_pad|>")


async def test_a_chat_becomes_the_tokens_of_transformers(model: ModelFolder) -> None:
    builder = PromptBuilder(model, MediaFetcher(LIMITS, 1.0, ()), LIMITS, context_length=4096)
    reference = AutoTokenizer.from_pretrained(model.path)
    for text in texts(20):
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
        prompt = await builder.from_chat(Chat(messages))
        expected = reference.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        assert list(prompt.input_ids) == expected
        assert prompt.input_ids[0] == 151_644


def test_streams_never_show_a_part_of_a_character(model: ModelFolder) -> None:
    for text in texts(100):
        stream = Detokenizer(model.tokenizer)
        pieces = [stream.feed([token])[0] for token in model.tokenizer.encode(text).ids]
        assert not any("\ufffd" in piece for piece in pieces)
        assert "".join(pieces) + stream.finish()[0] == text


def test_streams_of_any_tokens_equal_the_whole(model: ModelFolder, ranks: dict[bytes, int]) -> None:
    """Bytes in any order, ends within characters and special tokens among them."""
    draw = random.Random(str(texts(1)))
    broken = [rank for token, rank in ranks.items() if "\ufffd" in token.decode(errors="replace")]
    for _ in range(300):
        ids = [draw.choice([draw.choice(broken), draw.randrange(151_657)]) for _ in range(draw.randrange(1, 20))]
        stream = Detokenizer(model.tokenizer)
        pieces = "".join(stream.feed([token])[0] for token in ids) + stream.finish()[0]
        assert pieces == model.tokenizer.decode(ids)
