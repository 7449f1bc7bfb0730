"""From token ids back to text, one step at a time, and stop strings.

Invariants: text handed out is never taken back; it never ends inside a UTF-8 character nor inside what may still become
a stop string; after the end the pieces joined equal the decoding of all ids at once, cut before the stop string.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers.decoders import DecodeStream


class StopMatcher:
    """Finds stop strings in text that arrives in pieces. keeps: a stop string is part of the text it ends."""

    def __init__(self, stops: Sequence[str], keeps: bool = False) -> None:
        self._stops = tuple(stops)
        self._keeps = keeps
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """(text that is safe to hand out, the stop string that matched or None)."""
        text = self._held + text
        matches = [(text.find(stop), stop) for stop in self._stops if stop in text]
        if matches:
            index, stop = min(matches, key=lambda match: match[0])
            self._held = ""
            return text[: index + len(stop) if self._keeps else index], stop
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def flush(self) -> str:
        """What was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of text that begins stop."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)


class Detokenizer:
    """Text of one answer. Not to be fed again once a stop string matched or finish() was called."""

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        stops: Sequence[str] = (),
        skip_special: bool = True,
        keeps_stops: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._stream = DecodeStream(skip_special_tokens=skip_special)
        self._pending: list[int] = []  # ids whose text the stream still holds
        self._stops = StopMatcher(stops, keeps_stops) if stops else None

    def feed(self, ids: Iterable[int]) -> tuple[str, str | None]:
        """(new text, the stop string that matched or None)."""
        text = "".join(map(self._step, ids))
        return self._stops.feed(text) if self._stops is not None else (text, None)

    def finish(self) -> tuple[str, str | None]:
        """The rest: held back text, and incomplete characters as U+FFFD."""
        rest = self._tokenizer.decode(self._pending, skip_special_tokens=self._skip_special) if self._pending else ""
        if self._stops is None:
            return rest, None
        text, stop = self._stops.feed(rest)
        return (text, stop) if stop is not None else (text + self._stops.flush(), None)

    def _step(self, token: int) -> str:
        self._pending.append(token)
        try:
            text = self._stream.step(self._tokenizer, token)
        except Exception:  # the library's own error when a decoder rewrites earlier text: start afresh behind it
            text = self._tokenizer.decode(self._pending, skip_special_tokens=self._skip_special)
            self._stream = DecodeStream(skip_special_tokens=self._skip_special)
        if text is None:
            return ""
        self._pending.clear()
        return text
