"""Which of several healthy workers takes the next request. Pure but for the random numbers and the turn.

power_of_two is the default: it compares the load of two random workers, so a slow or busy one is avoided without all
routers of a service rushing to the same idle one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar


class Loaded(Protocol):
    """Anything with a number of requests under way."""

    @property
    def in_flight(self) -> int: ...


W = TypeVar("W", bound=Loaded)


class Policy:
    """Chooses among workers; one object per stage, because round robin remembers its turn."""

    def __init__(self, name: str) -> None:
        self._choose = _POLICIES[name]
        self._turn = -1

    def choose(self, workers: Sequence[W]) -> W:
        """One of a non-empty sequence."""
        self._turn += 1
        return workers[self._choose([worker.in_flight for worker in workers], self._turn)]


def _random(loads: Sequence[int], turn: int) -> int:
    return random.randrange(len(loads))


def _round_robin(loads: Sequence[int], turn: int) -> int:
    return turn % len(loads)


def _power_of_two(loads: Sequence[int], turn: int) -> int:
    candidates = random.sample(range(len(loads)), min(2, len(loads)))
    return min(candidates, key=lambda index: loads[index])


_POLICIES: dict[str, Callable[[Sequence[int], int], int]] = {
    "random": _random,
    "round_robin": _round_robin,
    "power_of_two": _power_of_two,
}
POLICY_NAMES = tuple(_POLICIES)
