"""Variation for training images: every digit bent differently, every sheet of paper lit differently.

About 1,400 digits are few; a model that sees each one in endless variants learns shapes instead of pixels. Held-out
images never pass through here.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

_FINE = 40  # pixels per side of the enlarged source that the mesh samples from


@dataclasses.dataclass(frozen=True)
class Distortion:
    """How far training images may stray; angles in degrees, lengths as fractions of a cell."""

    rotation: float = 14.0
    shear: float = 0.2
    scale: float = 0.18
    shift: float = 0.05
    bend_by: float = 0.035
    inverted: float = 0.15  # share of sheets with light ink on dark paper
    noise: float = 8.0  # highest standard deviation of pixel noise, in grey levels

    def bend(self, source: Image.Image, cell: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """A variant of one digit (mode L, square), cell x cell pixels: turned, sheared, scaled, bent, thinner or bolder."""
        fine = source.resize((_FINE, _FINE), Image.Resampling.BICUBIC)
        points = self._control_points(rng) * _FINE
        half = cell // 2
        edges = (0, half, cell)
        mesh = []
        for row in range(2):
            for column in range(2):
                box = (edges[column], edges[row], edges[column + 1], edges[row + 1])
                corners = (points[row, column], points[row + 1, column], points[row + 1, column + 1], points[row, column + 1])
                mesh.append((box, tuple(float(value) for corner in corners for value in corner)))
        bent = fine.transform((cell, cell), Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)
        return self._stroke(bent, rng)

    def _control_points(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """Where the 3x3 corners of the target's quarters lie in the source, as [row, column, (x, y)] from 0 to 1."""
        angle = np.deg2rad(rng.uniform(-self.rotation, self.rotation))
        shear = rng.uniform(-self.shear, self.shear)
        widen, heighten = np.exp(rng.uniform(-self.scale, self.scale, size=2))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = turn @ np.array([[widen, shear], [0.0, heighten]])
        rows, columns = np.meshgrid((-0.5, 0.0, 0.5), (-0.5, 0.0, 0.5), indexing="ij")
        grid = np.stack([columns, rows], axis=-1) @ matrix.T + 0.5
        return grid + rng.uniform(-self.shift, self.shift, size=2) + rng.normal(0, self.bend_by, size=grid.shape)

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
