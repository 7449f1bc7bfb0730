"""What a model thinks before it answers, <think>…</think>, apart from the answer, as the text arrives.

    BEFORE ──<think>, or the model always thinks──▶ INSIDE ──</think>──▶ BEHIND
       └────────────any other text────────────────────────────────────▶ BEHIND

Blanks around both parts are dropped. An answer that ends INSIDE is all reasoning.
"""

from __future__ import annotations

import enum

from epd_runtime.frontend.detokenizer import overlap

OPEN, CLOSE = "<think>", "</think>"
PARSERS = {"qwen3": False, "deepseek-r1": True}  # whether answers begin inside, with or without the opening tag


class _Place(enum.Enum):
    BEFORE = enum.auto()
    INSIDE = enum.auto()
    BEHIND = enum.auto()


class ReasoningParser:
    """Splits one answer. always: it begins with reasoning even when the opening tag is missing."""

    def __init__(self, always: bool) -> None:
        self._always = always
        self._place = _Place.BEFORE
        self._held = ""
        self._begun = False  # something but blanks was handed out at this place

    def feed(self, text: str) -> tuple[str, str]:
        """(more reasoning, more content)."""
        text, self._held = self._held + text, ""
        if self._place is _Place.BEFORE:
            text = self._enter(text)
        if self._place is _Place.INSIDE:
            return self._inside(text)
        return "", self._behind(text)

    def finish(self) -> tuple[str, str]:
        """What was held back, now that no more text comes."""
        held, self._held = self._held, ""
        if self._place is _Place.INSIDE or (self._place is _Place.BEFORE and self._always):
            return self._begin(held).rstrip(), ""
        return "", held

    def _enter(self, text: str) -> str:
        """Text behind the place's beginning; held back while it may become the opening tag."""
        stripped = text.lstrip()
        if OPEN.startswith(stripped) and stripped != OPEN:
            self._held = text
            return ""
        opened = stripped.startswith(OPEN)
        self._place = _Place.INSIDE if opened or self._always else _Place.BEHIND
        self._begun = self._place is _Place.BEHIND  # an answer without reasoning stays as it is
        return stripped.removeprefix(OPEN) if self._place is _Place.INSIDE else text

    def _inside(self, text: str) -> tuple[str, str]:
        before, tag, behind = text.partition(CLOSE)
        if tag:
            reasoning = self._begin(before).rstrip()
            self._place, self._begun = _Place.BEHIND, False
            return reasoning, self._behind(behind)
        keep = overlap(text, CLOSE)
        shown = text[: len(text) - keep].rstrip()
        self._held = text[len(shown) :]
        return self._begin(shown), ""

    def _behind(self, text: str) -> str:
        return self._begin(text)

    def _begin(self, text: str) -> str:
        """Text without blanks at the beginning of its place."""
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        return text
