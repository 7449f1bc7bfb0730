"""The demonstration model as files in the repository: transformers reads digits with it that its training never saw."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from demo.batches import Example, Processor
from demo.conversation import NO_IMAGE_ANSWER, answer_for, numbers_in, user_message
from demo.digits import Split, digits_of, heldout, render, split_rows
from demo.evaluate import (
    Score,
    answers_of,
    edit_distance,
    load_model,
    many_image_examples,
    score,
    single_image_examples,
)
from demo.muon import orthogonalized
from demo.tokenizer import SPECIAL_TOKENS, build_tokenizer
from demo.train import Settings, train

FOLDER = Path(__file__).resolve().parents[2] / "models" / "handwriting"
LARGEST_TOTAL = 5_000_000  # bytes


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor(FOLDER)


@pytest.fixture(scope="module")
def model() -> Any:
    torch.set_num_threads(1)
    return load_model(FOLDER)


class TestReading:
    def test_held_out_digits_of_every_layout(self, model: Any, processor: Processor) -> None:
        layouts = [(n, rows) for n in range(1, 9) for rows in (1, 2) if rows <= n]
        examples = [
            example
            for n, rows in layouts
            for example in itertools.islice(single_image_examples(100 * n + rows, n, rows, Split.TEST), 3)
        ]
        answers = answers_of(model, processor, examples)
        total = sum(map(score, examples, answers), Score())
        assert total.answers == 45
        assert total.digit_accuracy >= 0.95, list(zip(answers, (e.numbers for e in examples), strict=True))

    def test_several_images_in_one_question(self, model: Any, processor: Processor) -> None:
        counts = (2, 3, 4, 6, 8)
        examples = [next(many_image_examples(7, images, Split.TEST)) for images in counts]
        answers = answers_of(model, processor, examples)
        assert [len(numbers_in(answer)) for answer in answers] == list(counts)
        assert sum(map(score, examples, answers), Score()).digit_accuracy >= 0.9

    @pytest.mark.parametrize("question", ["Good morning! Any plans for the weekend?", "12 * 12 = ?", "Привет"])
    def test_without_an_image_it_asks_for_one(self, model: Any, processor: Processor, question: str) -> None:
        example = Example([{"role": "user", "content": question}], [])
        assert answers_of(model, processor, [example]) == [NO_IMAGE_ANSWER]

    @pytest.mark.parametrize("question", ["Kindly spell out what somebody scribbled down on that paper.", "?", ""])
    def test_the_wording_does_not_matter(self, model: Any, processor: Processor, question: str) -> None:
        shown = list(itertools.islice(heldout(5, 4, 1), 8))
        examples = [Example([user_message(question, 1)], [item]) for item in shown]
        answers = answers_of(model, processor, examples)
        assert sum(map(score, examples, answers), Score()).digit_accuracy >= 0.9


@pytest.fixture
def free_algorithms_again() -> Iterator[None]:
    """Training makes torch deterministic for its whole process; other tests must not inherit that."""
    yield
    torch.use_deterministic_algorithms(False)


class TestTraining:
    @pytest.mark.usefixtures("free_algorithms_again")
    def test_two_runs_write_the_same_bytes(self, tmp_path: Path) -> None:
        settings = Settings(steps=2, batch_images=4, validation_images=1)
        written = []
        for name in ("first", "second"):
            train(tmp_path / name, settings)
            written.append({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()})
        assert written[0] == written[1]
        assert written[0].keys() | {"README.md"} == {file.name for file in FOLDER.iterdir()}


class TestFiles:
    def test_small_enough_for_a_repository(self) -> None:
        assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= LARGEST_TOTAL

    def test_complete(self) -> None:
        wanted = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
                  "generation_config.json", "preprocessor_config.json", "README.md"}  # fmt: skip
        assert {file.name for file in FOLDER.iterdir()} == wanted

    def test_config_names_the_tokenizers_tokens(self, model: Any) -> None:
        ids = {token: tokenizer().token_to_id(token) for token in SPECIAL_TOKENS}
        assert model.config.image_token_id == ids["<|image_pad|>"]
        assert model.config.vision_start_token_id == ids["<|vision_start|>"]
        assert ids["<|im_end|>"] in model.generation_config.eos_token_id
        assert model.config.text_config.vocab_size == tokenizer().get_vocab_size()

    def test_both_kinds_of_attention_occur_in_the_vision_tower(self, model: Any) -> None:
        vision = model.config.vision_config
        assert 0 < len(vision.fullatt_block_indexes) < vision.depth


class TestTokenizer:
    @given(st.text(max_size=200))
    def test_any_text_comes_back(self, text: str) -> None:
        ids = tokenizer().encode(text, add_special_tokens=False).ids
        assert tokenizer().decode(ids, skip_special_tokens=False) == text

    @given(st.from_regex(r"[0-9]{1,12}", fullmatch=True))
    def test_a_digit_is_a_token(self, number: str) -> None:
        assert tokenizer().encode(number).tokens == list(number)

    def test_building_again_gives_the_file(self) -> None:
        assert build_tokenizer().to_str() == tokenizer().to_str()

    def test_chat_template(self) -> None:
        messages = [
            user_message("What is this?", 2),
            {"role": "assistant", "content": "The numbers are 1 and 2."},
            {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "image_url", "image_url": {}}]},
        ]
        image = "<|vision_start|><|image_pad|><|vision_end|>"
        rendered = AutoTokenizer.from_pretrained(FOLDER).apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        assert rendered == (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            f"<|im_start|>user\n{image}{image}What is this?<|im_end|>\n"
            "<|im_start|>assistant\nThe numbers are 1 and 2.<|im_end|>\n"
            f"<|im_start|>user\nAnd {image}<|im_end|>\n<|im_start|>assistant\n"
        )


class TestDigits:
    def test_every_digit_belongs_to_exactly_one_split(self) -> None:
        sources = [digit.source for split in Split for digit in digits_of(split)]
        assert sorted(sources) == list(range(len(load_digits().target)))

    def test_no_two_splits_share_a_picture(self) -> None:
        drawn = {split: {digit.ink.tobytes() for digit in digits_of(split)} for split in Split}
        assert all(not drawn[a] & drawn[b] for a, b in itertools.combinations(Split, 2))

    def test_held_out_images_use_test_digits_only_and_each_equally_often(self) -> None:
        test = {digit.source for digit in digits_of(Split.TEST)}
        used = [source for item in itertools.islice(heldout(3, 4), len(test) // 4) for source in item.sources]
        assert sorted(used) == sorted(test)

    def test_same_seed_same_images(self) -> None:
        first, again = (list(itertools.islice(heldout(11), 5)) for _ in range(2))
        assert [(i.number, i.image.tobytes()) for i in first] == [(i.number, i.image.tobytes()) for i in again]

    @given(st.integers(1, 8), st.integers(1, 2), st.integers(0, 2**32))
    def test_centres_lie_inside_and_in_reading_order(self, count: int, rows: int, seed: int) -> None:
        item = next(heldout(seed, count, min(rows, count)))
        assert all(0 < x < 1 and 0 < y < 1 for x, y in item.centres)
        first = split_rows(count, min(rows, count))[0]
        for row in (item.centres[:first], item.centres[first:]):
            assert [x for x, _ in row] == sorted(x for x, _ in row)
        assert all(y < below for _, y in item.centres[:first] for _, below in item.centres[first:])

    @pytest.mark.parametrize(("count", "rows"), [(0, 1), (9, 1), (1, 2), (4, 0), (4, 3)])
    def test_impossible_layouts_are_refused(self, count: int, rows: int) -> None:
        with pytest.raises(ValueError, match=r"digits|rows"):
            render(digits_of(Split.TEST)[:count], rows, np.random.default_rng(0))


class TestMeasuring:
    @pytest.mark.parametrize(
        ("numbers", "answer"),
        [([], NO_IMAGE_ANSWER), (["4071"], "The number is 4071."), (["07", "2", "8"], "The numbers are 07, 2 and 8.")],
    )
    def test_answers(self, numbers: list[str], answer: str) -> None:
        assert answer_for(numbers) == answer
        assert numbers_in(answer) == numbers

    @given(st.text("01", max_size=6), st.text("01", max_size=6))
    def test_edit_distance_is_a_distance(self, a: str, b: str) -> None:
        assert edit_distance(a, b) == edit_distance(b, a)
        assert (edit_distance(a, b) == 0) == (a == b)
        assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))

    def test_a_missing_number_costs_all_its_digits(self) -> None:
        shown = [next(heldout(seed, 3, 1)) for seed in (1, 2)]
        example = Example([user_message("Read.", 2)], shown)
        assert score(example, answer_for(example.numbers)) == Score(6, 0, 1, 1)
        assert score(example, answer_for(example.numbers[:1])) == Score(6, 3, 1, 0)

    def test_orthogonalized_keeps_directions_and_evens_lengths(self) -> None:
        generator = torch.Generator().manual_seed(0)
        tall = torch.randn(2, 24, 8, generator=generator)
        values = torch.linalg.svdvals(orthogonalized(tall))
        assert bool((values > 0.6).all() and (values < 1.3).all())
