"""From drawn examples to the tensors a Qwen2.5-VL takes, the same way for training and for evaluation.

The chat template, tokenizer and image processor are the ones saved with the model, so nothing can differ from what a
server does with the same request.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

from demo import tokenizer as text
from demo.architecture import MERGE
from demo.conversation import MAX_IMAGES, Message, answer_for, draw_messages
from demo.digits import MAX_DIGITS, MAX_ROWS, Digit, NumberImage, Split, compose, digits_of
from demo.distortion import Distortion

IGNORED_LABEL = -100
MAX_DIGITS_OF_MANY = 4  # digits per image when a conversation has several


@dataclasses.dataclass(frozen=True)
class Example:
    """A conversation and what its images show, in order."""

    messages: list[Message]
    shown: list[NumberImage]

    @property
    def numbers(self) -> list[str]:
        """The numbers of its images."""
        return [item.number for item in self.shown]


@dataclasses.dataclass(frozen=True)
class Difficulty:
    """What may occur in a training batch; raised step by step."""

    distortion: Distortion
    digits: int = MAX_DIGITS
    images: int = MAX_IMAGES


class Processor:
    """The model folder's tokenizer and image processor."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.images = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self.image_token: int = self.tokenizer.convert_tokens_to_ids(text.IMAGE_PAD)
        self.digit_tokens: list[int] = self.tokenizer.convert_tokens_to_ids(list("0123456789"))
        self.pad_token: int = self.tokenizer.pad_token_id

    def batch(self, examples: Sequence[Example], with_answer: bool) -> dict[str, torch.Tensor]:
        """Inputs of the model for a batch of conversations, [batch, longest].

        With answers (training) padding is on the right, `labels` marks the answer's tokens and `covered` names, at the
        image token under the centre of each digit, that digit; without (generation) padding is on the left.
        """
        shown = [item for example in examples for item in example.shown]
        vision = self._pixels(shown)
        patches = vision["image_grid_thw"].tolist() if vision else []
        grids = [(height // MERGE, width // MERGE) for _, height, width in patches]
        sizes = iter(height * width for height, width in grids)
        prompts = [self._prompt_ids(example, sizes) for example in examples]
        answers = [self._answer_ids(example) if with_answer else [] for example in examples]
        rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        ids = self._pad(rows, self.pad_token, right=with_answer)
        inputs = {
            "input_ids": ids,
            "attention_mask": self._pad([[1] * len(row) for row in rows], 0, right=with_answer),
            "mm_token_type_ids": (ids == self.image_token).int(),
            **vision,
        }
        if with_answer:
            marked = [[IGNORED_LABEL] * len(p) + a for p, a in zip(prompts, answers, strict=True)]
            inputs["labels"] = self._pad(marked, IGNORED_LABEL, right=True)
            inputs["covered"] = torch.full_like(ids, IGNORED_LABEL)
            inputs["covered"][ids == self.image_token] = torch.tensor(
                [label for item, grid in zip(shown, grids, strict=True) for label in self._covered(item, grid)],
                dtype=ids.dtype,
            )
        return inputs

    def _pixels(self, shown: list[NumberImage]) -> dict[str, torch.Tensor]:
        if not shown:
            return {}
        processed: Any = self.images(images=[item.image for item in shown], return_tensors="pt")
        return {"pixel_values": processed["pixel_values"], "image_grid_thw": processed["image_grid_thw"]}

    def _covered(self, shown: NumberImage, grid: tuple[int, int]) -> list[int]:
        """For every image token, row by row, the token of the digit whose centre it covers."""
        height, width = grid
        labels = [IGNORED_LABEL] * (height * width)
        for value, (x, y) in zip(shown.number, shown.centres, strict=True):
            labels[int(y * height) * width + int(x * width)] = self.digit_tokens[int(value)]
        return labels

    def _prompt_ids(self, example: Example, sizes: Iterator[int]) -> list[int]:
        prompt: str = self.tokenizer.apply_chat_template(example.messages, tokenize=False, add_generation_prompt=True)
        pieces = prompt.split(text.IMAGE_PAD)
        expanded = "".join(piece + text.IMAGE_PAD * next(sizes) for piece in pieces[:-1]) + pieces[-1]
        ids: list[int] = self.tokenizer.encode(expanded, add_special_tokens=False)
        return ids

    def _answer_ids(self, example: Example) -> list[int]:
        ids: list[int] = self.tokenizer.encode(answer_for(example.numbers) + text.TURN_END, add_special_tokens=False)
        return ids

    @staticmethod
    def _pad(rows: Sequence[list[int]], value: int, right: bool) -> torch.Tensor:
        width = max(len(row) for row in rows)
        filled = [[value] * (width - len(row)) for row in rows]
        return torch.tensor([row + fill if right else fill + row for row, fill in zip(rows, filled, strict=True)])


class ExampleSource:
    """Draws training examples from the digits of one split."""

    def __init__(self, split: Split = Split.TRAIN) -> None:
        by_value: dict[int, list[Digit]] = {}
        for digit in digits_of(split):
            by_value.setdefault(digit.value, []).append(digit)
        self._digits = [by_value[value] for value in range(10)]

    def single(self, count: int, difficulty: Difficulty, rng: np.random.Generator) -> list[Example]:
        """Conversations with one image each, a few of them with none."""
        return [
            self._example(0 if rng.random() < 0.04 else 1, difficulty.digits, difficulty.distortion, rng)
            for _ in range(count)
        ]

    def several(self, images: int, difficulty: Difficulty, rng: np.random.Generator) -> list[Example]:
        """Conversations with two or more images each, together about that many images."""
        examples = []
        while images > 0:
            count = _longer(2, difficulty.images, rng)
            examples.append(
                self._example(count, min(difficulty.digits, MAX_DIGITS_OF_MANY), difficulty.distortion, rng)
            )
            images -= count
        return examples

    def _example(self, images: int, digits: int, distortion: Distortion, rng: np.random.Generator) -> Example:
        shown = []
        for _ in range(images):
            count = _longer(1, digits, rng)
            lines = int(rng.integers(1, min(MAX_ROWS, count) + 1))
            shown.append(compose([self._digit(rng) for _ in range(count)], lines, rng, distortion))
        return Example(draw_messages(images, rng), shown)

    def _digit(self, rng: np.random.Generator) -> Digit:
        pool = self._digits[int(rng.integers(10))]
        return pool[int(rng.integers(len(pool)))]


def _longer(least: int, most: int, rng: np.random.Generator) -> int:
    """A length from the range, the longer the likelier: long answers are the ones that go wrong."""
    return int(rng.integers(least, most + 1, size=2).max())
