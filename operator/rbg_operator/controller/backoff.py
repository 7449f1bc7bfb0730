"""How long a failing key waits: longer each time, with jitter, and as long as the server asks."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

FIRST_SECONDS = 0.1
MAX_SECONDS = 25.0
MAX_RETRY_AFTER = 300.0  # a server that asks for more is broken


class Backoff(Generic[K]):
    """Failures in a row by key; bounded by the number of keys that fail now."""

    def __init__(self, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._uniform = uniform
        self._failures: dict[K, int] = {}

    def failed(self, key: K, retry_after: float | None = None) -> float:
        """Seconds to wait after one more failure: 0.1 · 2^n up to 25, at least half of it; at least retry_after."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        most = min(FIRST_SECONDS * 2.0 ** min(failures, 20), MAX_SECONDS)
        seconds = most * self._uniform(0.5, 1.0)
        return max(seconds, min(retry_after or 0.0, MAX_RETRY_AFTER))

    def succeeded(self, key: K) -> None:
        """Forget the key's failures."""
        self._failures.pop(key, None)

    def __len__(self) -> int:
        return len(self._failures)
