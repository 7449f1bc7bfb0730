"""What the demonstration prints: pictures made of characters, and where the time of a request went."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from rich.text import Text

SHADES = " .:-=+*#%@"
FULL_SCALE = 0.55  # columns per pixel: a digit is about eight lines high
BAR_WIDTH = 64
STAGES = ("encode", "transfer", "queue", "prefill", "handoff", "decode")
COLOURS = {
    "encode": "magenta",
    "transfer": "yellow",
    "queue": "white",
    "prefill": "blue",
    "handoff": "cyan",
    "decode": "green",
}


def draw(image: Image.Image, scale: float) -> str:
    """Ink as characters, `scale` columns per pixel; a character is about twice as high as wide."""
    ink = 255 - np.asarray(image.convert("L"), dtype=np.uint8)
    columns, lines = max(round(image.width * scale), 1), max(round(image.height * scale / 2), 1)
    small = np.asarray(Image.fromarray(ink).resize((columns, lines), Image.Resampling.BOX), np.float32)
    floor, top = np.percentile(small, 30), max(small.max(), 1.0)
    scaled = np.clip((small - floor) / max(top - floor, 1.0), 0, 1) * (len(SHADES) - 1)
    return "\n".join("".join(SHADES[int(value)] for value in row).rstrip() for row in scaled.round())


def waterfall(spans: Sequence[tuple[str, float, float]], sent_at: float, total: float) -> Text:
    """One bar per stage on a common time axis from sending to the last token; equal stages of several images merge."""
    text = Text()
    for stage in STAGES:
        own = [(start - sent_at, end - sent_at) for name, start, end in spans if name == stage]
        if not own:
            continue
        first, last = min(start for start, _ in own), max(end for _, end in own)
        before = min(int(first / total * BAR_WIDTH), BAR_WIDTH - 1)
        length = max(round((last - first) / total * BAR_WIDTH), 1)
        text.append(f"  {stage:<9}")
        text.append(" " * before + "━" * min(length, BAR_WIDTH - before), style=COLOURS[stage])
        text.append(" " * max(BAR_WIDTH - before - length, 0))
        count = f"  x{len(own)}" if len(own) > 1 else ""
        text.append(f" {1000 * (last - first):7.1f} ms{count}\n")
    return text
