"""The group's status as it was last written. Every part may be missing or of any type, for anybody may write it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rbg_operator.api.documents import Json
from rbg_operator.plan.decide.times import parse_time

MAX_COUNT = 1_000_000  # keeps arithmetic on a number from a foreign hand small


@dataclass(frozen=True, kw_only=True)
class PreviousRole:
    """What one entry of roleStatuses said. Times in seconds since the epoch."""

    phase: str = ""
    revision: str = ""
    restart_count: int = 0
    last_restart: float | None = None
    next_restart: float | None = None
    last_crash: Json | None = None
    entry: Json = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Previous:
    """The readable parts of a status."""

    generation: int | None
    conditions: Mapping[str, Json]
    roles: Mapping[str, PreviousRole]

    def role(self, name: str) -> PreviousRole:
        """What was said of the role; an empty entry if nothing was."""
        return self.roles.get(name, _NOTHING)

    def condition(self, kind: str, key: str) -> str:
        """A text of a condition, "" if there is none."""
        value = self.conditions.get(kind, {}).get(key)
        return value if isinstance(value, str) else ""


_NOTHING = PreviousRole()


def read_previous(status: Any) -> Previous:
    """Read what is readable."""
    status = status if isinstance(status, dict) else {}
    generation = status.get("observedGeneration")
    return Previous(
        generation=generation if isinstance(generation, int) else None,
        conditions={entry["type"]: entry for entry in _entries(status.get("conditions"), "type")},
        roles={entry["name"]: _role(entry) for entry in _entries(status.get("roleStatuses"), "name")},
    )


def _entries(items: Any, key: str) -> list[Json]:
    items = items if isinstance(items, list) else []
    return [item for item in items if isinstance(item, dict) and isinstance(item.get(key), str)]


def _role(entry: Json) -> PreviousRole:
    restarts = entry.get("restarts")
    restarts = restarts if isinstance(restarts, dict) else {}
    crash = entry.get("lastCrash")
    return PreviousRole(
        phase=_text(entry.get("phase")),
        revision=_text(entry.get("revision")),
        restart_count=_count(restarts.get("count")),
        last_restart=parse_time(restarts.get("lastTime")),
        next_restart=parse_time(restarts.get("nextTime")),
        last_crash=crash if isinstance(crash, dict) and crash else None,
        entry=entry,
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int:
    return min(max(value, 0), MAX_COUNT) if isinstance(value, int) else 0
