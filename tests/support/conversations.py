"""Random pictures and conversations about them, as our API takes them and as transformers' templates do."""

from __future__ import annotations

import base64
import io
import random
from typing import Any

import numpy as np
from PIL import Image


def picture(draw: random.Random) -> bytes:
    """Noise of a drawn size, from narrow to wide."""
    width, height = draw.randrange(8, 200), draw.randrange(8, 200)
    noise = np.random.default_rng(draw.randrange(2**31)).integers(
        0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8
    )
    file = io.BytesIO()
    Image.fromarray(noise).resize((width, height)).save(file, "PNG")
    return file.getvalue()


def conversation(text: str, images: list[bytes], as_api: bool) -> list[dict[str, Any]]:
    """One user turn, the images in the middle of its text."""
    urls = ["data:image/png;base64," + base64.b64encode(data).decode() for data in images]
    parts = [{"type": "image_url", "image_url": {"url": url}} if as_api else {"type": "image"} for url in urls]
    half = len(text) // 2
    content = [{"type": "text", "text": text[:half]}, *parts, {"type": "text", "text": text[half:]}]
    return [{"role": "user", "content": content}]
