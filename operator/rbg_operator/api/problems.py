"""Mistakes in a manifest, each with the path of its field, collected so that a user sees all of them at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, order=True)
class Problem:
    """One mistake: the path of the field ("" for the whole manifest), what is wrong, and what to do."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ManifestError(ValueError):
    """A manifest that cannot be used; `problems` holds every mistake found, one line each in the text."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


@dataclass
class Findings:
    """Collects what reading a manifest brings up: errors forbid its use, warnings are only shown."""

    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def error(self, path: str, message: str) -> None:
        """Record a mistake that forbids using the manifest."""
        self.errors.append(Problem(path, message))

    def warn(self, path: str, message: str) -> None:
        """Record something that is probably not meant so."""
        self.warnings.append(Problem(path, message))

    def raise_errors(self) -> None:
        """Raise ManifestError if any error was recorded."""
        if self.errors:
            raise ManifestError(self.errors)
