"""One tool call as a JSON object that arrives in pieces: {"name": "…", "arguments": {…}}.

    START ─'{'─▶ KEY ─▶ COLON ─▶ VALUE ─▶ NEXT ─','─▶ KEY …          FAILED: anything else
                  └───────'}'──────────────┴──'}'──▶ DONE

Arguments are handed on as the model wrote them, while they are written; inside of them only strings and brackets are
followed, so that their end is known. "parameters" means the same as "arguments"; other fields are skipped.
"""

from __future__ import annotations

import enum
import json

ARGUMENTS = frozenset({"arguments", "parameters"})
BLANK = " \t\r\n"
CLOSING = {"{": "}", "[": "]"}


class Phase(enum.Enum):
    """What comes next."""

    START = enum.auto()
    KEY = enum.auto()
    COLON = enum.auto()
    VALUE = enum.auto()
    NEXT = enum.auto()
    DONE = enum.auto()
    FAILED = enum.auto()


class CallScanner:
    """Reads one object. name is None until it was read; raw is everything consumed."""

    def __init__(self) -> None:
        self.phase = Phase.START
        self.name: str | None = None
        self.raw = ""
        self._arguments: list[str] = []  # not taken yet
        self._has_arguments = False
        self._key: str | None = None
        self._token: list[str] = []  # the string, number or container under way
        self._brackets: list[str] = []
        self._in_string = self._escaped = False

    @property
    def ended(self) -> bool:
        """Whether it takes no more."""
        return self.phase in (Phase.DONE, Phase.FAILED)

    def feed(self, text: str) -> str:
        """Consume text; what is behind the object, once it has ended."""
        used = 0
        while used < len(text) and not self.ended:
            used += self._take(text[used])
        self.raw += text[:used]
        return text[used:]

    def take_arguments(self) -> str:
        """Arguments that came since the last call; "{}" for a whole call without any."""
        if self.phase is Phase.DONE and not self._has_arguments:
            self._has_arguments = True
            return "{}"
        taken = "".join(self._arguments)
        self._arguments.clear()
        return taken

    def _take(self, char: str) -> int:
        """Take one character; 0 when it belongs to what follows."""
        if self._token:
            return self._continue_token(char)
        if char in BLANK:
            return 1
        match self.phase, char:
            case Phase.START, "{":
                self.phase = Phase.KEY
            case Phase.KEY, '"':
                self._begin_token(char)
            case (Phase.KEY, "}") if self._key is None:
                self._finish()
            case Phase.COLON, ":":
                self.phase = Phase.VALUE
            case Phase.VALUE, _:
                self._begin_token(char)
            case Phase.NEXT, ",":
                self.phase = Phase.KEY
            case Phase.NEXT, "}":
                self._finish()
            case _:
                self.phase = Phase.FAILED
        return 1

    def _finish(self) -> None:
        self.phase = Phase.FAILED if self.name is None else Phase.DONE

    @property
    def _streams(self) -> bool:
        """Whether the value under way is the arguments, and no string that holds them."""
        return self.phase is Phase.VALUE and self._key in ARGUMENTS and self._token[0] != '"'

    def _begin_token(self, char: str) -> None:
        self._token.append(char)
        if char == '"':
            self._in_string = True
        elif char in CLOSING:
            self._brackets.append(CLOSING[char])
        elif char in ",:}]":
            self.phase = Phase.FAILED
        if self.phase is Phase.VALUE and self._key in ARGUMENTS:
            if self._has_arguments:
                self.phase = Phase.FAILED
            self._has_arguments = True
        if self._streams:
            self._arguments.append(char)

    def _continue_token(self, char: str) -> int:
        scalar = not self._in_string and not self._brackets
        if scalar and char in ",}" + BLANK:
            self._end_token()
            return 0
        self._token.append(char)
        if self._streams:
            self._arguments.append(char)
        if self._in_string:
            self._in_string = self._escaped or char != '"'
            self._escaped = char == "\\" and not self._escaped
        elif char == '"':
            self._in_string = True
        elif char in CLOSING:
            self._brackets.append(CLOSING[char])
        elif char in "]}" and (not self._brackets or self._brackets.pop() != char):
            self.phase = Phase.FAILED
        if not scalar and not self._in_string and not self._brackets and not self.ended:
            self._end_token()
        return 1

    def _end_token(self) -> None:
        text, streams = "".join(self._token), self._streams
        self._token.clear()
        if streams:
            self.phase = Phase.NEXT
            return
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            self.phase = Phase.FAILED
            return
        if self.phase is Phase.KEY:
            self._key, self.phase = value, Phase.COLON
        else:
            self._end_value(value)

    def _end_value(self, value: object) -> None:
        self.phase = Phase.NEXT
        if self._key in ARGUMENTS:
            self._arguments.append(str(value))  # some models write the arguments as a string of JSON
        elif self._key == "name":
            valid = isinstance(value, str) and self.name is None
            self.name, self.phase = (str(value), Phase.NEXT) if valid else (None, Phase.FAILED)
