"""How well the demonstration model reads digits it never saw, by greedy generation with transformers.

The figures: the share of digits read right, where an answer's wrong, missing and superfluous digits all count as errors
(edit distance), and the share of conversations answered right to the last character.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from demo.batches import MAX_DIGITS_OF_MANY, Example, Processor
from demo.conversation import MANY_IMAGES_QUESTIONS, ONE_IMAGE_QUESTIONS, answer_for, numbers_in, user_message
from demo.digits import MAX_DIGITS, Split, heldout

_BATCH = 50
_LONGEST_ANSWER = 64  # tokens; eight numbers of four digits need 58


@dataclasses.dataclass(frozen=True)
class Score:
    """Counts over a set of conversations; scores add up."""

    digits: int = 0
    wrong_digits: int = 0
    answers: int = 0
    right_answers: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(
            self.digits + other.digits,
            self.wrong_digits + other.wrong_digits,
            self.answers + other.answers,
            self.right_answers + other.right_answers,
        )

    @property
    def digit_accuracy(self) -> float:
        """Share of digits read right, 0 to 1."""
        return 1 - self.wrong_digits / max(self.digits, 1)

    @property
    def answer_accuracy(self) -> float:
        """Share of answers right to the last character, 0 to 1."""
        return self.right_answers / max(self.answers, 1)


def edit_distance(first: str, second: str) -> int:
    """Fewest insertions, deletions and replacements of single characters that turn one text into the other."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        previous, row[0] = row[0], i
        for j, b in enumerate(second, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


def score(example: Example, answer: str) -> Score:
    """Judge one answer; a wrong number of numbers makes every digit from the first missing one an error."""
    read = numbers_in(answer)
    read = read[: len(example.numbers)] + [""] * (len(example.numbers) - len(read))
    errors = (min(edit_distance(r, n), len(n)) for r, n in zip(read, example.numbers, strict=True))
    return Score(
        digits=sum(map(len, example.numbers)),
        wrong_digits=sum(errors),
        answers=1,
        right_answers=int(answer == answer_for(example.numbers)),
    )


def load_model(folder: Path) -> Any:
    """The model as transformers loads it, ready to generate."""
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).eval()


def answers_of(model: Any, processor: Processor, examples: Sequence[Example]) -> list[str]:
    """Greedy answers to conversations, generated in batches."""
    answers = []
    for start in range(0, len(examples), _BATCH):
        inputs = processor.batch(examples[start : start + _BATCH], with_answer=False)
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=_LONGEST_ANSWER, do_sample=False)
        answers += processor.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def single_image_examples(seed: int, digits: int | None, rows: int | None, split: Split) -> Iterator[Example]:
    """Endless conversations with one held-out image; see `heldout` for the layout."""
    rng = np.random.default_rng(seed)
    for shown in heldout(seed, digits, rows, split):
        question = str(rng.choice(ONE_IMAGE_QUESTIONS))
        yield Example([user_message(question, 1, bool(rng.random() < 0.5))], [shown])


def many_image_examples(seed: int, images: int, split: Split) -> Iterator[Example]:
    """Endless conversations with several held-out images of one to four digits each."""
    rng = np.random.default_rng(seed)
    sources = [heldout(seed + count, count, None, split) for count in range(1, MAX_DIGITS_OF_MANY + 1)]
    while True:
        shown = [next(sources[int(rng.integers(MAX_DIGITS_OF_MANY))]) for _ in range(images)]
        question = str(rng.choice(MANY_IMAGES_QUESTIONS))
        message = user_message(question, images, bool(rng.random() < 0.5))
        yield Example([message], shown)


def layouts(seed: int, split: Split) -> Iterator[tuple[str, Iterator[Example], int]]:
    """Every kind of conversation: its name, its examples, and how many images one example has."""
    for digits in range(1, MAX_DIGITS + 1):
        yield f"{digits} digits, 1 row", single_image_examples(seed + digits, digits, 1, split), 1
        if digits > 1:
            yield f"{digits} digits, 2 rows", single_image_examples(seed + 10 + digits, digits, 2, split), 1
    for images in (2, 3, 4, 6, 8):
        yield f"{images} images, 1 to 4 digits each", many_image_examples(seed + 20 + images, images, split), images


def evaluate(model: Any, processor: Processor, split: Split, images: int, seed: int = 1) -> Iterator[tuple[str, Score]]:
    """The score of every layout, measured on about that many images each."""
    for name, examples, images_each in layouts(seed, split):
        chosen = [next(examples) for _ in range(max(1, images // images_each))]
        answers = answers_of(model, processor, chosen)
        yield name, sum(map(score, chosen, answers), Score())


def report(folder: Path, split: Split = Split.TEST, images: int = 200) -> Score:
    """Print the score of every layout and of all together, and return the latter."""
    processor = Processor(folder)
    total = Score()
    print(f"{'held-out ' + split + ' digits':32} {'digits':>7} {'right':>8} {'answers':>8} {'right':>8}")
    for name, result in evaluate(load_model(folder), processor, split, images):
        _print_row(name, result)
        total += result
    _print_row("all", total)
    return total


def _print_row(name: str, result: Score) -> None:
    print(
        f"{name:32} {result.digits:7} {result.digit_accuracy:8.2%} {result.answers:8} {result.answer_accuracy:8.2%}",
        flush=True,
    )
