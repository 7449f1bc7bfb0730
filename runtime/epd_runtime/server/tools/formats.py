"""Where the families put their calls."""

from __future__ import annotations

from epd_runtime.frontend.detokenizer import overlap
from epd_runtime.server.tools.base import CallDelta, ToolParser, new_call_id

BLANK = " \t\r\n"


class HermesParser(ToolParser):
    """Qwen2.5, Qwen3, Hermes: <tool_call>{"name": …, "arguments": …}</tool_call>, among any text."""

    OPEN, CLOSE = "<tool_call>", "</tool_call>"

    def __init__(self, names: frozenset[str], parallel: bool = True) -> None:
        super().__init__(names, parallel)
        self._held = ""  # may become a marker
        self._closing = False  # behind a call, before its closing marker

    def _read(self, text: str) -> None:
        text, self._held = self._held + text, ""
        while text:
            if self._scanner is not None:
                text, self._closing = self._scan(text)
                self._closing = self._closing and self._scanner is None
            elif self._closing:
                text = self._skip_to_close(text)
            else:
                text = self._read_content(text)

    def _read_content(self, text: str) -> str:
        before, marker, rest = text.partition(self.OPEN)
        if marker:
            self._content(before)
            self._begin_call(self.OPEN)
            return rest
        keep = overlap(text, self.OPEN)
        self._held = text[len(text) - keep :]
        self._content(text[: len(text) - keep])
        return ""

    def _skip_to_close(self, text: str) -> str:
        _, marker, rest = text.partition(self.CLOSE)
        if marker:
            self._closing = False
            return rest
        self._held = text[len(text) - overlap(text, self.CLOSE) :]
        return ""

    def _read_end(self) -> None:
        if not self._closing:
            self._content(self._held)


class BareParser(ToolParser):
    """Objects from the first character on, with nothing but separators between them; everything else is content."""

    SEPARATORS = BLANK
    TAG = ""  # may stand before the first object

    def __init__(self, names: frozenset[str], parallel: bool = True) -> None:
        super().__init__(names, parallel)
        self._held = ""  # separators or part of the tag
        self._only_content = False

    def _read(self, text: str) -> None:
        text, self._held = self._held + text, ""
        while text:
            if self._only_content:
                self._content(text)
                return
            if self._scanner is None and not self._find_object(text):
                return
            text, is_call = self._scan(text if not self._held else text[len(self._held) :])
            self._held = ""
            self._only_content = not is_call

    def _find_object(self, text: str) -> bool:
        """Whether an object begins behind `_held`; else the text was held back or is content."""
        rest = text.lstrip(self.SEPARATORS)
        if not self.num_calls and self.TAG:
            if rest and self.TAG.startswith(rest):
                rest = ""
            rest = rest.removeprefix(self.TAG).lstrip(self.SEPARATORS)
        self._held = text[: len(text) - len(rest)]
        if not rest:
            self._held = text
            return False
        if rest[0] == "{":
            self._begin_call(self._held)
            return True
        self._held, self._only_content = "", True
        self._content(text)
        return False

    def _read_end(self) -> None:
        if not self.num_calls:
            self._content(self._held)


class Llama3Parser(BareParser):
    """Llama 3: {"name": …, "parameters": …}, several separated by semicolons, perhaps behind <|python_tag|>."""

    SEPARATORS = BLANK + ";,"
    TAG = "<|python_tag|>"


class JsonArrayParser(BareParser):
    """What the grammar of tool_choice "required" writes: a JSON array of calls."""

    SEPARATORS = BLANK + "[],"


class NamedParser(ToolParser):
    """What the grammar of a named tool_choice writes: the arguments of that one function."""

    def _read(self, text: str) -> None:
        if not self.num_calls and text:
            (name,) = self._names
            self.num_calls = 1
            self._pieces.append(CallDelta(0, "", new_call_id(), name))
        self._add_arguments(text)
