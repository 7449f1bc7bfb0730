"""Variation for training images: every digit bent differently, every sheet of paper lit differently.

About 1,400 digits are few; a model that sees each one in endless variants learns shapes instead of pixels. Held-out
images never pass through here.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

_FINE = 40  # pixels per side of the enlarged source that the mesh samples from
_GRID = np.array([[(x, y) for x in (-0.5, 0.0, 0.5)] for y in (-0.5, 0.0, 0.5)])  # [row, column, (x, y)]


@dataclasses.dataclass(frozen=True)
class Distortion:
    """How far training images may stray; angles in degrees, lengths as fractions of a cell."""

    rotation: float = 12.0
    shear: float = 0.15
    scale: float = 0.15
    shift: float = 0.05
    bend_by: float = 0.03
    inverted: float = 0.1  # share of sheets with light ink on dark paper
    noise: float = 8.0  # highest standard deviation of pixel noise, in grey levels

    def at(self, strength: float) -> Distortion:
        """The same kind of variation, weaker: every limit multiplied by strength (0 to 1)."""
        return Distortion(**{name: limit * strength for name, limit in dataclasses.asdict(self).items()})

    def bend(self, source: Image.Image, cell: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """A variant of one digit (mode L, square) of cell x cell pixels: turned, sheared, bent, thinner or bolder."""
        fine = source.resize((_FINE, _FINE), Image.Resampling.BICUBIC)
        points: list[list[list[float]]] = (self._control_points(rng) * _FINE).tolist()
        edges = (0, cell // 2, cell)
        mesh = []
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            box = (edges[j], edges[i], edges[j + 1], edges[i + 1])
            mesh.append((box, (*points[i][j], *points[i + 1][j], *points[i + 1][j + 1], *points[i][j + 1])))
        bent = fine.transform((cell, cell), Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)
        return self._stroke(bent, rng)

    def _control_points(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """Where the 3x3 corners of the target's quarters lie in the source, as [row, column, (x, y)] from 0 to 1."""
        angle = math.radians(rng.uniform(-self.rotation, self.rotation))
        shear, widen, heighten = rng.uniform(-1, 1, size=3).tolist()
        widen, heighten = math.exp(widen * self.scale), math.exp(heighten * self.scale)
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        matrix = turn @ np.array([[widen, shear * self.shear], [0.0, heighten]])
        moved: NDArray[np.float64] = _GRID @ matrix.T + 0.5
        moved += rng.uniform(-self.shift, self.shift, size=2)
        moved += rng.normal(0, self.bend_by, size=moved.shape)
        return moved

    def _stroke(self, glyph: Image.Image, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Vary the width of the stroke and how much ink it carries."""
        kind = rng.random()
        if kind < 0.12:
            glyph = glyph.filter(ImageFilter.MaxFilter(3))
        elif kind < 0.2:
            glyph = glyph.filter(ImageFilter.MinFilter(3))
        elif kind < 0.35:
            glyph = glyph.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.5)))
        ink = np.asarray(glyph, dtype=np.float32) / 255
        ink = ink ** np.float32(np.exp(rng.uniform(-0.5, 0.5))) * np.float32(rng.uniform(0.75, 1.15))
        return np.clip(ink * 255, 0, 255).astype(np.uint8)

    def paint(self, coverage: NDArray[np.uint8], rng: np.random.Generator) -> Image.Image:
        """Ink on paper of any shade that leaves enough contrast, sometimes light on dark, with noise."""
        paper = rng.uniform(170, 255) + rng.uniform(-15, 15, size=3)
        ink = rng.uniform(0, 100) + rng.uniform(-25, 25, size=3)
        if rng.random() < self.inverted:
            paper, ink = ink, paper
        amount = coverage[..., None].astype(np.float32) / 255
        pixels = paper + amount * (ink - paper)
        if rng.random() < 0.5:
            pixels = pixels + rng.normal(0, rng.uniform(0, self.noise), size=(*coverage.shape, 1))
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
