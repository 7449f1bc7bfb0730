"""What all parsers of tool calls share: what they hand out, and how a call under way becomes it.

Invariants: joined contents and calls do not depend on how the text was cut; what looks like a call and turns out to be
none (no JSON, an unknown function) is content, character for character, unless its name was already handed out; blanks
around calls are dropped.
"""

from __future__ import annotations

import abc
import dataclasses
import uuid
from typing import TypeAlias

from epd_runtime.server.tools.json_call import CallScanner, Phase


@dataclasses.dataclass(frozen=True, slots=True)
class CallDelta:
    """Part of call `index`: its id and name in the first part, then pieces of its arguments."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


Piece: TypeAlias = str | CallDelta  # content, or part of a call


def new_call_id() -> str:
    """An id as clients of the OpenAI API know it."""
    return f"call_{uuid.uuid4().hex[:24]}"


class ToolParser(abc.ABC):
    """Splits one answer into content and calls. names are the functions that the client offered."""

    def __init__(self, names: frozenset[str], parallel: bool = True) -> None:
        self.num_calls = 0
        self._names = names
        self._parallel = parallel
        self._pieces: list[Piece] = []
        self._blank = ""  # blanks that are content only if content follows
        self._scanner: CallScanner | None = None  # of the call under way
        self._opening = ""  # text before its object, that stands or falls with it
        self._announced = False

    def feed(self, text: str) -> list[Piece]:
        """What follows from more text."""
        self._read(text)
        return self._take()

    def finish(self) -> list[Piece]:
        """What was held back, now that no more text comes."""
        if self._scanner is not None:
            self._end_call(is_call=self._announced)
        self._read_end()
        if self._blank and not self.num_calls:
            self._pieces.append(self._blank)
        return self._take()

    @abc.abstractmethod
    def _read(self, text: str) -> None:
        """Take more text."""

    def _read_end(self) -> None:
        """No more text comes."""
        return

    def _take(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces

    def _content(self, text: str) -> None:
        text = self._blank + text
        shown = text.rstrip()
        self._blank = text[len(shown) :]
        if shown:
            self._pieces.append(shown)

    def _begin_call(self, opening: str = "") -> None:
        self._scanner, self._opening, self._announced = CallScanner(), opening, False

    def _scan(self, text: str) -> tuple[str, bool]:
        """Feed the call under way: (text behind it, whether it was a call); it goes on while _scanner is there."""
        scanner = self._scanner
        assert scanner is not None
        rest = scanner.feed(text)
        if scanner.name is not None and not self._announced:
            if scanner.name not in self._names:
                self._end_call(is_call=False)
                return rest, False
            self._announce(scanner.name)
        if self._announced:
            self._add_arguments(scanner.take_arguments())
        if scanner.ended:
            is_call = scanner.phase is Phase.DONE or self._announced
            self._end_call(is_call)
            return rest, is_call
        return rest, True

    def _announce(self, name: str) -> None:
        self._announced = True
        self._blank = ""
        self.num_calls += 1
        if self._shown:
            self._pieces.append(CallDelta(self.num_calls - 1, "", new_call_id(), name))

    def _add_arguments(self, arguments: str) -> None:
        if arguments and self._shown:
            self._pieces.append(CallDelta(self.num_calls - 1, arguments))

    @property
    def _shown(self) -> bool:
        """Whether the client gets the call under way: with parallel_tool_calls false only the first."""
        return self._parallel or self.num_calls == 1

    def _end_call(self, is_call: bool) -> None:
        assert self._scanner is not None
        if not is_call:
            self._content(self._opening + self._scanner.raw)
        self._scanner = None
