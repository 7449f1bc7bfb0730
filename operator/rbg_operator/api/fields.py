"""Typed reading of one mapping of a manifest: every mistake is recorded with its path, then reading goes on.

A value of the wrong type is recorded once and replaced by the default, so that the caller never sees a wrong type.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Any

from rbg_operator.api.documents import Json, kind_of
from rbg_operator.api.problems import Findings

MAX_INT32 = 2**31 - 1


class Fields:
    """One mapping at `path`. Absent and null are the same, as in Kubernetes."""

    def __init__(self, value: object, path: str, findings: Findings) -> None:
        self.path = path
        self.findings = findings
        if not isinstance(value, dict):
            findings.error(path, f"must be a mapping, not a {kind_of(value)}")
            value = {}
        self.value: Json = value

    def at(self, key: str) -> str:
        """Path of a field of this mapping."""
        return f"{self.path}.{key}" if self.path else key

    def error(self, key: str, message: str) -> None:
        """Record an error at a field."""
        self.findings.error(self.at(key), message)

    def string(self, key: str, default: str = "") -> str:
        """A string; an absent one is the default."""
        value = self._typed(key, str, "string", default)
        return str(value)

    def required_string(self, key: str, advice: str) -> str:
        """A string that must not be absent or empty; the advice ends the error."""
        value = self.string(key)
        if not value and not isinstance(self.value.get(key), int | float | list | dict):
            self.error(key, f"is missing; {advice}")
        return value

    def integer(self, key: str, default: int, minimum: int = 0, maximum: int = MAX_INT32) -> int:
        """A whole number between two limits."""
        value = self._typed(key, int, "whole number", default)
        if not minimum <= value <= maximum:
            self.error(key, f"must be between {minimum} and {maximum}, not {_short(value)}")
            return default
        return int(value)

    def boolean(self, key: str, default: bool = False) -> bool:
        """true or false."""
        return bool(self._typed(key, bool, "boolean", default))

    def choice(self, key: str, default: str, choices: tuple[str, ...]) -> str:
        """One of several words."""
        value = self.string(key, default)
        if value not in choices:
            self.error(key, f"must be one of {', '.join(choices)}, not {value!r}")
            return default
        return value

    def mapping(self, key: str) -> Json:
        """A mapping, empty when absent."""
        value: Json = self._typed(key, dict, "mapping", {})
        return value

    def inner(self, key: str) -> Fields:
        """The fields of a mapping inside this one."""
        return Fields(self.mapping(key), self.at(key), self.findings)

    def string_map(self, key: str) -> dict[str, str]:
        """A mapping of strings to strings, such as labels."""
        return self._only_strings(self.mapping(key).items(), lambda name: self.at(key) + f'["{name}"]')

    def strings(self, key: str) -> list[str]:
        """A list of strings; other items are recorded and left out."""
        items = self._typed(key, list, "list", [])
        return list(self._only_strings(enumerate(items), lambda index: f"{self.at(key)}[{index}]").values())

    def each(self, key: str) -> Iterator[Fields]:
        """The mappings of a list."""
        for index, item in enumerate(self._typed(key, list, "list", [])):
            yield Fields(item, f"{self.at(key)}[{index}]", self.findings)

    def has(self, key: str) -> bool:
        """Whether the field is there and not null."""
        return self.value.get(key) is not None

    def reject_unknown(self, known: tuple[str, ...]) -> None:
        """Name every field that this mapping does not have, with the one probably meant."""
        for key in self.value:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"fields here are {', '.join(known)}"
                self.error(key, f"unknown field; {hint}")

    def _typed(self, key: str, wanted: type, name: str, default: Any) -> Any:
        value = self.value.get(key)
        if value is None:
            return default
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            quote = ": put it in quotes" if wanted is str and isinstance(value, int | float) else ""
            self.error(key, f"must be a {name}, not the {kind_of(value)} {_short(value)}{quote}")
            return default
        return value

    def _only_strings(self, items: Any, path: Callable[[Any], str]) -> dict[Any, str]:
        kept: dict[Any, str] = {}
        for key, item in items:
            if isinstance(item, str):
                kept[key] = item
            else:
                self.findings.error(
                    path(key), f"must be a string, not the {kind_of(item)} {_short(item)}: put it in quotes"
                )
        return kept


def _short(value: object) -> str:
    text = "true" if value is True else "false" if value is False else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
