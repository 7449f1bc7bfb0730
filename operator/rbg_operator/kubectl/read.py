"""Reading objects that may be of any shape: what is missing or of another type is empty, never an exception."""

from __future__ import annotations

import re
from typing import Any

from rbg_operator.api.documents import Json

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def at(value: object, *path: str) -> Any:
    """What stands below these keys, or None."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def text(value: object, *path: str) -> str:
    """A string on one line without control characters, which could rewrite the terminal; "" if there is none."""
    found = at(value, *path)
    return one_line(found) if isinstance(found, str) else ""


def number(value: object, *path: str, default: int = 0) -> int:
    """A whole number, or the default."""
    found = at(value, *path)
    return found if isinstance(found, int) and not isinstance(found, bool) else default


def mapping(value: object, *path: str) -> Json:
    """A mapping; empty if there is none."""
    found = at(value, *path)
    return found if isinstance(found, dict) else {}


def mappings(value: object, *path: str) -> list[Json]:
    """The mappings of a list."""
    found = at(value, *path)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def strings(value: object, *path: str) -> list[str]:
    """The strings of a list."""
    found = at(value, *path)
    return [one_line(item) for item in found if isinstance(item, str)] if isinstance(found, list) else []


def one_line(value: str) -> str:
    """Text without control characters."""
    return CONTROL.sub(" ", value).strip()


def lines(value: str, last: int) -> list[str]:
    """The last lines of a text that are not empty, without control characters."""
    return [clean for line in value.splitlines() if (clean := CONTROL.sub(" ", line).rstrip())][-last:]
