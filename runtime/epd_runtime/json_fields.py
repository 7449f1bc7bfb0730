"""Typed reading of the JSON files of a model folder, which anybody may have written.

Every mistake is a ModelConfigError that names file, field, value and what is allowed, instead of a traceback from the
place where the value is used first. null counts as absent, as the writers of these files mean it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

MAX_INTEGER = 1 << 31


class ModelConfigError(ValueError):
    """A file of the model folder lacks a field or asks for what this engine does not run; the message says what."""


class Fields:
    """One JSON object. Reading a field without a default raises ModelConfigError when it is absent."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        """where: file, and path of the object in it, for messages."""
        self.values = {name: value for name, value in values.items() if value is not None}
        self.where = where

    @classmethod
    def read(cls, path: Path, *, optional: bool = False) -> Fields:
        """The object in a file; an absent file counts as an empty object if optional. Raises ModelConfigError."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if optional:
                return cls({}, str(path))
            message = f"{path} does not exist; --model-path must name a Hugging Face model folder"
            raise ModelConfigError(message) from None
        except (OSError, ValueError, RecursionError) as error:
            raise ModelConfigError(f"{path} cannot be read as JSON: {error}") from None
        if not isinstance(content, dict):
            raise ModelConfigError(f"{path} must hold a JSON object")
        return cls(content, str(path))

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def refuse(self, name: str, allowed: str) -> NoReturn:
        """Raise ModelConfigError about a field's value."""
        raise ModelConfigError(f"{self.where}: {name} must be {allowed}, not {str(self.values.get(name))[:100]!r}")

    def object(self, name: str) -> Fields:
        """A nested object; empty when absent."""
        value = self.values.get(name, {})
        if not isinstance(value, dict):
            self.refuse(name, "an object")
        return Fields(value, f"{self.where}: {name}")

    def text(self, name: str, default: str | None = None) -> str:
        """A string."""
        value = self._get(name, default)
        return value if isinstance(value, str) else self.refuse(name, "a string")

    def boolean(self, name: str, default: bool) -> bool:
        """true or false."""
        value = self._get(name, default)
        return value if isinstance(value, bool) else self.refuse(name, "true or false")

    def integer(self, name: str, default: int | None = None) -> int:
        """An integer from 1 to MAX_INTEGER."""
        value = self._get(name, default)
        return int(value) if _is_integer(value, 1) else self.refuse(name, f"an integer from 1 to {MAX_INTEGER}")

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self._get(name, default)
        return float(value) if _is_number(value) and value > 0 else self.refuse(name, "a number above 0")

    def integers(self, name: str, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """A list of integers from 0 to MAX_INTEGER."""
        value = self._get(name, default)
        if not isinstance(value, list | tuple) or not all(_is_integer(one, 0) for one in value):
            self.refuse(name, "a list of integers of at least 0")
        return tuple(value)

    def numbers(self, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """A list of finite numbers."""
        value = self._get(name, default)
        if not isinstance(value, list | tuple) or not all(_is_number(one) for one in value):
            self.refuse(name, "a list of numbers")
        return tuple(float(one) for one in value)

    def _get(self, name: str, default: Any) -> Any:
        value = self.values.get(name, default)
        if value is None:
            raise ModelConfigError(f"{self.where} has no field {name!r}")
        return value


def _is_integer(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= MAX_INTEGER


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300 and math.isfinite(value)
    )
