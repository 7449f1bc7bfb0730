"""Colours and styles of the terminal, for all commands."""

from __future__ import annotations

import os
from typing import IO

BOLD, DIM = "1", "2"
RED, GREEN, YELLOW = "31", "32", "33"
OF_PODS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
"""To tell the lines of pods apart."""


def use_colour(stream: IO[str]) -> bool:
    """Whether to colour text for a stream: a terminal, and the user did not set NO_COLOR."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def paint(text: str, code: str | int, colour: bool) -> str:
    """Text in a colour or style of the terminal."""
    return f"\x1b[{code}m{text}\x1b[0m" if colour and text else text
