"""Which key is worked on next: pure, told the time, without a loop of its own (workqueue.py has that).

    add ──▶ waiting (until its time) ──▶ ready ──take──▶ in flight ──done──▶ gone, or waiting again
                     ▲                                      │
                     └── added while in flight, failed ─────┘

- A key is in one place only: the queue is bounded by the number of objects, and no key is taken twice at once.
- Of several times asked for, the earliest counts. A failed key waits its backoff out whatever happens meanwhile (events
  that its own half-done work causes must not make it spin), unless somebody releases it.
- Work is depth-first: a key that has begun goes before one that is new, and only so many new keys may be on their way
  at once (`slots`). A slot is given back when its key has settled, or when nothing was done for it for `patience`
  seconds: pods that load a model for minutes hold nobody up. While a slot is free, one of FAIRNESS takes is a new key.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

FAIRNESS = 16


class Schedule(Generic[K]):
    """All times are seconds of one monotonic clock."""

    def __init__(self, is_new: Callable[[K], bool], *, slots: int, patience: float) -> None:
        self._is_new = is_new
        self._num_slots = slots
        self._patience = patience
        self._waiting: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []  # also entries that _waiting no longer confirms
        self._count = 0
        self._begun: deque[K] = deque()
        self._new: deque[K] = deque()
        self._ready: set[K] = set()
        self._in_flight: set[K] = set()
        self._again: dict[K, float] = {}  # added while in flight
        self._held: dict[K, float] = {}  # failed keys: not before
        self._slots: dict[K, float] = {}  # keys that were new: until when they count as on their way
        self._row = 0  # takes of begun keys in a row

    def __len__(self) -> int:
        """Keys that are waiting or ready, those in flight not counted."""
        return len(self._waiting) + len(self._ready)

    @property
    def num_ready(self) -> int:
        """Keys whose time has come and that nobody has taken yet."""
        return len(self._ready)

    @property
    def num_in_flight(self) -> int:
        """Keys taken and not done."""
        return len(self._in_flight)

    def add(self, key: K, when: float) -> None:
        """Work on the key at this time, or earlier if that was asked for already."""
        when = max(when, self._held.get(key, when))
        if key in self._in_flight:
            self._again[key] = min(when, self._again.get(key, when))
        elif key not in self._ready and when < self._waiting.get(key, float("inf")):
            self._waiting[key] = when
            self._count += 1
            heapq.heappush(self._heap, (when, self._count, key))

    def release(self, key: K) -> None:
        """A failed key need not wait any longer."""
        self._held.pop(key, None)

    def take(self, now: float) -> K | None:
        """The next key, now in flight; None if there is nothing to do yet."""
        self._promote(now)
        key = self._choose(now)
        if key is not None:
            self._ready.discard(key)
            self._held.pop(key, None)
            self._in_flight.add(key)
        return key

    def done(self, key: K, now: float, *, settled: bool, hold_until: float | None = None) -> None:
        """The work on a key ended. settled: nothing is on its way. hold_until: it failed, not again before."""
        self._in_flight.discard(key)
        if settled:
            self._slots.pop(key, None)
        elif key in self._slots:
            self._slots[key] = now + self._patience
        again = self._again.pop(key, None)
        if hold_until is not None:
            self._held[key] = hold_until
            self.add(key, hold_until)
        if again is not None:
            self.add(key, again)

    def next_time(self, now: float) -> float | None:
        """When take() may have something next, if nothing is added before; None: never."""
        self._promote(now)
        if self._begun or (self._new and self._slot_free(now)):
            return now
        times = [self._heap[0][0]] if self._heap else []
        if self._new:  # a key in flight keeps its slot: its done() will tell
            times.extend(until for key, until in self._slots.items() if key not in self._in_flight)
        return min(times, default=None)

    def _promote(self, now: float) -> None:
        """Move keys whose time has come to the ready ones; drop what the heap has left over."""
        while self._heap:
            when, _, key = self._heap[0]
            current = self._waiting.get(key) == when
            if current and when > now:
                return
            heapq.heappop(self._heap)
            if current:
                del self._waiting[key]
                self._ready.add(key)
                (self._new if self._is_new(key) and key not in self._slots else self._begun).append(key)

    def _choose(self, now: float) -> K | None:
        new_may_start = bool(self._new) and self._slot_free(now)
        if self._begun and not (new_may_start and self._row >= FAIRNESS):
            self._row += 1
            return self._begun.popleft()
        if new_may_start:
            self._row = 0
            key = self._new.popleft()
            self._slots[key] = now + self._patience
            return key
        return None

    def _slot_free(self, now: float) -> bool:
        if len(self._slots) >= self._num_slots:
            self._slots = {key: until for key, until in self._slots.items() if until > now or key in self._in_flight}
        return len(self._slots) < self._num_slots
