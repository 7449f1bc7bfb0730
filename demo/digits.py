"""Handwritten digits as images of numbers: the data of the demonstration model, and of everything that tests it.

The source is scikit-learn's set of 1,797 digits of 8x8 pixels, which comes inside its package. A digit belongs to
exactly one split for ever: the model is trained on TRAIN, tuned on VALIDATION and judged on TEST, so a held-out image
never shows a digit that the model has seen. Everything here is a pure function of its arguments; no torch.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from demo.distortion import Distortion

MAX_DIGITS = 8
MAX_ROWS = 2
_SPLIT_SEED = 20240229
_TEST_DIGITS, _VALIDATION_DIGITS = 300, 100
_SOURCE_MAXIMUM = 16.0  # ink of the source data runs from 0 to 16


class Split(enum.StrEnum):
    """To which use a digit belongs."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


@dataclasses.dataclass(frozen=True)
class Digit:
    """One handwritten digit: its value, its ink (uint8 [8, 8], 255 is full ink) and its index in the source data."""

    value: int
    ink: NDArray[np.uint8]
    source: int

    @functools.cached_property
    def drawing(self) -> Image.Image:
        """The ink with a border of one empty pixel, mode L, 10x10."""
        return Image.fromarray(np.pad(self.ink, 1))


@dataclasses.dataclass(frozen=True)
class NumberImage:
    """A rendered image, the number it shows in reading order (leading zeros kept), and the digits it was made of.

    Each centre is (x, y) as a fraction of the image's width and height.
    """

    image: Image.Image
    number: str
    sources: tuple[int, ...]
    centres: tuple[tuple[float, float], ...]


@functools.cache
def digits_of(split: Split) -> tuple[Digit, ...]:
    """All digits of a split; the three splits are disjoint and together are the whole data set."""
    data = load_digits()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(data.target))
    bounds = {
        Split.TEST: order[:_TEST_DIGITS],
        Split.VALIDATION: order[_TEST_DIGITS : _TEST_DIGITS + _VALIDATION_DIGITS],
        Split.TRAIN: order[_TEST_DIGITS + _VALIDATION_DIGITS :],
    }
    inks = np.round(data.images * (255.0 / _SOURCE_MAXIMUM)).astype(np.uint8)
    return tuple(Digit(int(data.target[i]), inks[i], int(i)) for i in bounds[split])


def split_rows(count: int, rows: int) -> tuple[int, ...]:
    """Digits in each row, from the top; an odd one goes to the first. Raises ValueError when they cannot be placed."""
    if not 1 <= count <= MAX_DIGITS:
        raise ValueError(
            f"digits: an image shows 1 to {MAX_DIGITS} digits, not {count}; split them over several images"
        )
    if not 1 <= rows <= min(MAX_ROWS, count):
        raise ValueError(f"rows: {count} digits fill 1 to {min(MAX_ROWS, count)} rows, not {rows}")
    first = -(-count // rows)
    return (first,) if rows == 1 else (first, count - first)


def render(
    digits: Sequence[Digit], rows: int, rng: np.random.Generator, distortion: Distortion | None = None
) -> Image.Image:
    """Draw digits as ink on paper, row by row from the left, with a little play in where each one sits.

    Returns an RGB image; its size follows from the number of digits and rows and from the drawn cell size (28 to 31
    pixels). `distortion` also varies the shape of each digit and the look of the paper: for training only.
    Raises ValueError when the digits cannot be placed in the rows.
    """
    return compose(digits, rows, rng, distortion).image


def compose(
    digits: Sequence[Digit], rows: int, rng: np.random.Generator, distortion: Distortion | None = None
) -> NumberImage:
    """Draw digits as `render` does and keep what was drawn where."""
    cell, corners, size = _lay_out(split_rows(len(digits), rows), rng)
    coverage = np.zeros(size, dtype=np.uint8)
    for digit, (left, top) in zip(digits, corners, strict=True):
        _draw(coverage, _glyph(digit, cell, rng, distortion), top, left)
    return NumberImage(
        image=_paint(coverage, rng) if distortion is None else distortion.paint(coverage, rng),
        number="".join(str(digit.value) for digit in digits),
        sources=tuple(digit.source for digit in digits),
        centres=tuple(((x + cell / 2) / size[1], (y + cell / 2) / size[0]) for x, y in corners),
    )


def _lay_out(lengths: tuple[int, ...], rng: np.random.Generator) -> tuple[int, list[tuple[int, int]], tuple[int, int]]:
    """Cell size, (left, top) of every digit in reading order, and (height, width) of the sheet, in pixels."""
    cell = int(rng.integers(28, 32))
    pitch, line = rng.uniform(27, 29, size=2)
    margin = int(rng.integers(0, 6))
    places = [(margin + column * pitch, margin + row * line) for row, n in enumerate(lengths) for column in range(n)]
    play = rng.integers(-2, 3, size=(len(places), 2))
    corners = [(round(x) + int(dx), round(y) + int(dy)) for (x, y), (dx, dy) in zip(places, play, strict=True)]
    height, width = (
        round(2 * margin + cell + (n - 1) * step) for n, step in ((len(lengths), line), (lengths[0], pitch))
    )
    return cell, corners, (height, width)


def _glyph(digit: Digit, cell: int, rng: np.random.Generator, distortion: Distortion | None) -> NDArray[np.uint8]:
    """The digit enlarged to cell x cell pixels."""
    if distortion is not None:
        return distortion.bend(digit.drawing, cell, rng)
    return np.asarray(digit.drawing.resize((cell, cell), Image.Resampling.BICUBIC))


def _draw(coverage: NDArray[np.uint8], glyph: NDArray[np.uint8], top: int, left: int) -> None:
    """Put a glyph on the sheet; what falls off an edge is lost, where strokes overlap the darker one stays."""
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + glyph.shape[0], coverage.shape[0]), min(left + glyph.shape[1], coverage.shape[1])
    area = coverage[y0:y1, x0:x1]
    np.maximum(area, glyph[y0 - top : y1 - top, x0 - left : x1 - left], out=area)


def _paint(coverage: NDArray[np.uint8], rng: np.random.Generator) -> Image.Image:
    """Dark ink on light paper."""
    paper = rng.uniform(228, 255) + rng.uniform(-6, 6, size=3)
    ink = rng.uniform(10, 60) + rng.uniform(-10, 25, size=3)
    amount = coverage[..., None].astype(np.float32) / 255
    return Image.fromarray(np.clip(paper + amount * (ink - paper), 0, 255).astype(np.uint8))


def heldout(
    seed: int, digits: int | None = None, rows: int | None = None, split: Split = Split.TEST
) -> Iterator[NumberImage]:
    """Endless images made of digits that training never saw; the same seed gives the same images.

    Every digit of the split is used once before any is used again. `digits` (1 to 8) and `rows` (1 or 2) fix the
    layout, otherwise each image draws its own. Raises ValueError for a layout that cannot be drawn.
    """
    rng = np.random.default_rng(seed)
    pool = _shuffled_for_ever(digits_of(split), rng)
    while True:
        count = digits if digits is not None else int(rng.integers(1, MAX_DIGITS + 1))
        lines = rows if rows is not None else int(rng.integers(1, min(MAX_ROWS, count) + 1))
        yield compose([next(pool) for _ in range(count)], lines, rng)


def _shuffled_for_ever(digits: Sequence[Digit], rng: np.random.Generator) -> Iterator[Digit]:
    while True:
        for index in rng.permutation(len(digits)):
            yield digits[index]
