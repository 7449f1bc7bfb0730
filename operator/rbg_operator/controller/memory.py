"""What a group's passes remember from one to the next. Losing it costs requests or time, never correctness."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from rbg_operator.api.documents import Json
from rbg_operator.kube.resources import Resource
from rbg_operator.plan.compare import Comparisons
from rbg_operator.plan.observed import STATUS_INTERVAL, ObjectKey
from rbg_operator.plan.steps import Apply

FIRST_REFUSAL_SECONDS = 1.0
MAX_REFUSAL_SECONDS = 25.0  # quotas are raised, webhooks are mended
MAX_INVALID_SECONDS = 300.0  # what is invalid as it is may become valid with a newer API server at best
FOREIGN_SECONDS = 10.0
DELETED_SECONDS = 30.0
MAX_FAILURES = 3  # in a row, of one object


@dataclass
class Refusal:
    """The API server refuses an object; it is offered again after a while, at once if it has changed."""

    message: str
    object: Json
    until: float  # monotonic
    attempts: int = 1


@dataclass(frozen=True)
class Stranger:
    """Another's object has a name that we need; it is not asked for again until then (monotonic)."""

    resource: Resource
    until: float


@dataclass
class Memory:
    """Of one group. Times are monotonic but status_written_at, which is seconds since the epoch."""

    uid: str
    confirmed_until: float  # until when the group is believed to be there without asking
    refused: dict[ObjectKey, Refusal] = field(default_factory=dict)
    failures: dict[ObjectKey, int] = field(default_factory=dict)  # internal errors in a row
    foreign: dict[ObjectKey, Stranger] = field(default_factory=dict)
    deleted: dict[str, float] = field(default_factory=dict)  # uid: until when the deletion is not sent again
    comparisons: Comparisons = field(default_factory=Comparisons)
    status_written_at: float = 0.0
    status_interval: float = STATUS_INTERVAL

    def waits(self, step: Apply) -> bool:
        """Whether the object was refused just now, as it is."""
        refusal = self.refused.get(step.key)
        return refusal is not None and refusal.object == step.object and time.monotonic() < refusal.until

    def fails_again(self, step: Apply) -> bool:
        """Count an internal error of the API server; whether it has been one too often for bad luck."""
        count = self.failures[step.key] = self.failures.get(step.key, 0) + 1
        return count >= MAX_FAILURES

    def succeed(self, step: Apply) -> None:
        """The object stands."""
        self.refused.pop(step.key, None)
        self.failures.pop(step.key, None)

    def refuse(self, step: Apply, message: str, *, invalid: bool) -> None:
        """The API server does not take the object. invalid: not because of something that may change around it."""
        before = self.refused.get(step.key)
        attempts = before.attempts + 1 if before is not None and before.object == step.object else 1
        longest = MAX_INVALID_SECONDS if invalid else MAX_REFUSAL_SECONDS
        seconds = min(FIRST_REFUSAL_SECONDS * 2.0 ** min(attempts - 1, 20), longest)
        self.refused[step.key] = Refusal(message, step.object, time.monotonic() + seconds, attempts)

    def finish(self, wanted: set[ObjectKey]) -> None:
        """After a pass that wanted to apply these: forget what is over."""
        now = time.monotonic()
        self.refused = {key: refusal for key, refusal in self.refused.items() if key in wanted}
        self.failures = {key: count for key, count in self.failures.items() if key in wanted}
        self.deleted = {uid: until for uid, until in self.deleted.items() if until > now}

    def look_again(self) -> float | None:
        """Seconds until something here is to be tried again."""
        times = [refusal.until for refusal in self.refused.values()]
        times += [stranger.until for stranger in self.foreign.values()]
        return max(0.0, min(times) - time.monotonic()) if times else None
