"""Mistakes of whoever typed the command."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class UnknownNameError(Exception):
    """A group, role or revision that does not exist; the message says which do."""


def unknown(what: str, name: str, known: Sequence[str], otherwise: str) -> UnknownNameError:
    """The error for a name that is not among the known ones; `otherwise` is the hint where nothing is known."""
    if close := difflib.get_close_matches(name, known, n=1):
        return UnknownNameError(f'{what}; did you mean "{close[0]}"?')
    return UnknownNameError(f"{what}; there are {', '.join(sorted(known)[:10])}" if known else f"{what}; {otherwise}")
