"""Which waiting request is admitted next: the first that has a place and pages.

Nobody overtakes the first one, but for one case: a request that begins with what a running one is just computing waits
until that is in the prefix cache instead of computing it a second time, and lets others go before it meanwhile. The
running one publishes page by page (memory.py) and always moves, so the wait ends, at the latest when it leaves.

Whoever cannot be admitted is not looked at again until something changed: more pages, another prefix, a free place, or
another queue. What running requests take between such changes only makes less room.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeAlias

from epd_runtime.engine.limits import Limits
from epd_runtime.engine.memory import RequestMemory
from epd_runtime.engine.request import Request
from epd_runtime.engine.state import State
from epd_runtime.kvcache.prefix_cache import Node

MAX_LOOKED_AT = 16  # waiting requests, in one step
Admitted: TypeAlias = tuple[Request, list[Node]]  # with the cached path that it begins with


class Admission:
    """Looks at a queue when something changed."""

    def __init__(self, memory: RequestMemory, limits: Limits) -> None:
        self._memory = memory
        self._limits = limits
        self._refused: tuple[int, int, int] | None = None  # what it was when nobody could be admitted

    def pick(self, queued: Sequence[Request], active: Sequence[Request]) -> Admitted | None:
        """Who is admitted now beside the active ones; None if nobody is."""
        situation = (self._memory.cache.num_changes, len(active), len(queued))
        if not queued or situation == self._refused:
            return None
        found = self._first(queued, active) if len(active) < self._limits.max_running_requests else None
        self._refused = situation if found is None else None
        return found

    def _first(self, queued: Sequence[Request], active: Sequence[Request]) -> Admitted | None:
        computing = [one for one in active if one.state is State.PREFILL]
        for request in itertools.islice(queued, MAX_LOOKED_AT):
            path = self._memory.match(request)
            if not any(self._is_worth_waiting(request, len(path), one) for one in computing):
                return (request, path) if self._memory.fits(request, path, active) else None
        return None

    def _is_worth_waiting(self, request: Request, num_cached: int, other: Request) -> bool:
        """Whether the other one computes enough of what this one needs behind its first num_cached pages."""
        last = num_cached + -(-self._limits.worth_waiting // self._limits.page_size)
        mine, theirs = request.page_keys, other.page_keys
        if min(len(mine), len(theirs)) < last or mine[last - 1] != theirs[last - 1]:
            return False
        return mine[:last] == theirs[:last]
